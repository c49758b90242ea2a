//! The detector alone: nanoseconds per probe. The reference is the minimal scratch: counting the
//! probes of each source in the standard library's hash map.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use tcptracker::internals::Host;
use tcptracker::internals::Moment;
use tcptracker::internals::{DetectionConfig, Effective, Preset};
use tcptracker::internals::{Detector, Observer, Scan, new_detector};
use tcptracker::internals::{Port, Segment, SegmentKind};

use crate::{median, row};

const PROBES: usize = 2_000_000;

/// Counts scans, so that the compiler keeps the loop.
#[derive(Default)]
struct Scans(usize);

impl Observer for Scans {
    fn segments(&mut self, _: &[Segment]) {}

    fn scan(&mut self, _: Arc<Scan>) -> bool {
        self.0 += 1;
        true
    }
}

fn detector(preset: Preset) -> Box<dyn Detector> {
    new_detector(DetectionConfig { preset, ..Effective::default().into_config().detection })
}

/// Probes of pseudo-random sources and ports.
fn probes(sources: u32, ports: u16) -> Vec<Segment> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..PROBES)
        .map(|number| {
            // xorshift64 (Marsaglia 2003).
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let source = u32::try_from(state % u64::from(sources)).unwrap_or(0);
            Segment {
                moment: Moment::from_nanos(number as u64 * 3_000),
                source: Ipv4Addr::from(0x0b00_0000 + source).into(),
                destination: [10, 0, 0, 1].into(),
                source_port: Port(40_000),
                port: Port(1 + u16::try_from(state >> 48).unwrap_or(0) % ports),
                kind: SegmentKind::Syn,
                sequence: 0,
                acknowledged: 0,
                crafted: false,
                sender: 0,
            }
        })
        .collect()
}

/// The second of two rounds: the first one fills the tables.
fn nanos_a_probe(mut detector: Box<dyn Detector>, probes: &[Segment]) -> f64 {
    let host = Host::with_addresses(["10.0.0.1/24".parse().unwrap()]);
    let mut scans = Scans::default();
    let mut nanos = 0.0;
    for round in 0..2 {
        let later = |probe: &Segment| {
            let moment = Moment::from_nanos(probe.moment.as_nanos() + round * 6_000_000_000);
            Segment { moment, ..*probe }
        };
        let probes: Vec<Segment> = probes.iter().map(later).collect();
        let begun = Instant::now();
        detector.observe(&probes, &host, &mut scans);
        nanos = begun.elapsed().as_nanos() as f64 / probes.len() as f64;
    }
    assert!(scans.0 < probes.len());
    nanos
}

fn nanos_a_classic_probe(probes: &[Segment]) -> f64 {
    nanos_a_probe(detector(Preset::Classic), probes)
}

/// The `balanced` preset, with a refusal for each probe.
fn nanos_a_refused_probe(probes: &[Segment]) -> f64 {
    let host = Host::with_addresses(["10.0.0.1/24".parse().unwrap()]);
    let refused = |probe: &Segment| Segment {
        source: probe.destination,
        destination: probe.source,
        source_port: probe.port,
        port: probe.source_port,
        kind: SegmentKind::ResetAck,
        ..*probe
    };
    let segments: Vec<Segment> = probes.iter().flat_map(|probe| [*probe, refused(probe)]).collect();
    let (mut detector, mut scans) = (detector(Preset::Balanced), Scans::default());
    let begun = Instant::now();
    detector.observe(&segments, &host, &mut scans);
    assert!(scans.0 < probes.len());
    begun.elapsed().as_nanos() as f64 / probes.len() as f64
}

/// The `balanced` preset in a flood without replies: the host does not listen on the port.
fn nanos_an_unanswered_probe(probes: &[Segment]) -> f64 {
    let mut detector = detector(Preset::Balanced);
    detector.set_listening(&Arc::default());
    nanos_a_probe(detector, probes)
}

/// The reference: counts the probes of the first 524,288 sources, as many as the detector remembers
/// by default.
fn nanos_a_count(probes: &[Segment]) -> f64 {
    let mut counts: HashMap<IpAddr, u64> = HashMap::new();
    let mut nanos = 0.0;
    for _ in 0..2 {
        let begun = Instant::now();
        for probe in probes {
            if counts.len() < 524_288 {
                *counts.entry(probe.source).or_default() += 1;
            } else if let Some(count) = counts.get_mut(&probe.source) {
                *count += 1;
            }
        }
        nanos = begun.elapsed().as_nanos() as f64 / probes.len() as f64;
    }
    assert!(!counts.is_empty(), "uses the result, so that the compiler keeps the loop");
    nanos
}

pub(crate) fn run() {
    let bar = "at most 100 ns";
    for (what, sources, ports, bar) in [
        ("detector: a probe, 100,000 live sources, 3 ports each", 100_000, 3, bar),
        ("detector: a probe, one source, 3 ports", 1, 3, "-"),
        ("detector: a probe, 100,000 sources, one port", 100_000, 1, "-"),
        ("detector: a probe, forged flood, 10 M sources", 10_000_000, 1, "-"),
    ] {
        let probes = probes(sources, ports);
        let (mut ours, mut reference) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            reference.push(nanos_a_count(&probes));
            ours.push(nanos_a_classic_probe(&probes));
        }
        let (ours, reference) = (median(ours), median(reference));
        let (text, crafted) = (format!("{ours:.0} ns"), format!("{reference:.0} ns"));
        row(what, &text, &crafted, Some(ours / reference), bar);
        let (what_balanced, nanos_balanced): (_, fn(&[Segment]) -> f64) = if ports > 1 {
            ("balanced, a probe and its refusal", nanos_a_refused_probe)
        } else {
            ("balanced, an unanswered probe", nanos_an_unanswered_probe)
        };
        let balanced = median((0..5).map(|_| nanos_balanced(&probes)).collect());
        let what = what.replace("a probe", what_balanced);
        let (text, classic) = (format!("{balanced:.0} ns"), format!("{ours:.0} ns"));
        row(&what, &text, &classic, Some(balanced / ours), "vs the classic preset");
    }
}
