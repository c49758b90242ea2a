//! The memory of a full detector, compared with the figures that the start of the service counts on.
//!
//! A program of its own with one test, because it measures the memory of the whole process.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may stop where it stands, and starts itself"
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tcptracker::internals::{
    Detector, Effective, Host, Moment, Observer, Port, Preset, Scan, Segment, SegmentKind,
    most_detector_bytes, new_detector,
};

/// The variable that tells a child what to measure.
const CHILD: &str = "TCPTRACKER_MEASURES";

struct Ignores;

impl Observer for Ignores {
    fn segments(&mut self, _: &[Segment]) {}

    fn scan(&mut self, _: Arc<Scan>) -> bool {
        true
    }
}

/// Memory that the process itself allocated and touched.
fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

fn source(number: u64) -> IpAddr {
    Ipv6Addr::from(0x2001_0db8_u128 << 96 | u128::from(number) << 64 | 1).into()
}

const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2));

fn segment(
    moment: Moment,
    from: IpAddr,
    to: IpAddr,
    ports: (u16, u16),
    kind: SegmentKind,
) -> Segment {
    Segment {
        moment,
        source: from,
        destination: to,
        source_port: Port(ports.0),
        port: Port(ports.1),
        kind,
        sequence: 0,
        acknowledged: 1,
        crafted: false,
        sender: 0,
    }
}

/// Two probes of each source of the second stage, one of each candidate.
fn fill_classic(detector: &mut dyn Detector, sources: u64, host: &Host) {
    let start = Moment::default();
    let mut batch = Vec::new();
    for number in 0..sources * 4 {
        for port in 0..if number < sources { 2 } else { 1 } {
            batch.push(segment(start, source(number), SERVER, (40_000, port), SegmentKind::Syn));
        }
        if batch.len() > 60 {
            detector.observe(&batch, host, &mut Ignores);
            batch.clear();
        }
    }
}

/// Probes that fail: on two ports, on many hosts, and out of state.
fn fill_balanced(detector: &mut dyn Detector, sources: u64, host: &Host) {
    let mut now = Moment::default();
    for number in 0..sources * 4 {
        let from = source(number);
        let mut batch = Vec::new();
        for port in 0..if number < sources { 3 } else { 1 } {
            batch.push(segment(now, from, SERVER, (40_000, port), SegmentKind::Syn));
            batch.push(segment(now, SERVER, from, (port, 40_000), SegmentKind::ResetAck));
        }
        // Another host refuses one of the ports.
        let other = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 3));
        batch.push(segment(now, from, other, (40_001, 0), SegmentKind::Syn));
        batch.push(segment(now, other, from, (0, 40_001), SegmentKind::ResetAck));
        batch.push(segment(now, from, SERVER, (40_002, 99), SegmentKind::Reset));
        detector.observe(&batch, host, &mut Ignores);
        now = now + Duration::from_micros(1);
    }
}

#[test]
fn full_detector_takes_at_most_what_the_start_counts_on() {
    // Memory that a detector gives back stays with the process: each needs one of its own.
    if let Ok(which) = std::env::var(CHILD) {
        let (preset, number) = which.split_once(' ').unwrap();
        return measure(preset == "classic", number.parse().unwrap());
    }
    for which in ["classic 0", "classic 1", "classic 2", "balanced 0", "balanced 1"] {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--nocapture", "--test-threads=1"])
            .env(CHILD, which)
            .status();
        assert!(child.unwrap().success(), "{which}");
    }
}

fn measure(classic: bool, number: usize) {
    // A power of two fills its index best; more than one makes it grow.
    let (sources, ports) = [(16_384_u32, 3_u64), (20_000, 3), (16_384, 40)][number];
    let host = Host::with_addresses(["10.77.0.2/24".parse().unwrap()]);
    let mut rule = Effective::default().into_config().detection;
    rule.preset = if classic { Preset::Classic } else { Preset::Balanced };
    rule.max_sources = u64::from(sources).try_into().unwrap();
    rule.ports = ports.try_into().unwrap();
    let (most, before) = (most_detector_bytes(&rule), anonymous_bytes());
    let mut detector = new_detector(rule);
    let fill = if classic { fill_classic } else { fill_balanced };
    fill(&mut *detector, sources.into(), &host);
    let taken = anonymous_bytes() - before;
    let each = |bytes: u64| bytes / u64::from(sources);
    println!(
        "{sources} sources, {ports} ports: {} bytes each, at most {}",
        each(taken),
        each(most)
    );
    assert!(detector.sources() >= sources as usize, "{} sources", detector.sources());
    assert!(taken <= most, "{taken} bytes, at most {most}");
}
