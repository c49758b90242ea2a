//! The detector alone: nanoseconds per probe. The reference is the minimal scratch: counting the
//! probes of each source in the standard library's hash map.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use tcptracker::internals::Host;
use tcptracker::internals::Moment;
use tcptracker::internals::{ClassicDetector, Detector, SEEK_AT_ONCE, Scratch};
use tcptracker::internals::{DetectionConfig, Preset};
use tcptracker::internals::{Port, Segment, SegmentKind};

use crate::{median, row};

const PROBES: usize = 2_000_000;

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
            }
        })
        .collect()
}

fn nanos_a_probe(probes: &[Segment]) -> f64 {
    let host = Host::with_addresses(["10.0.0.1/24".parse().unwrap()]);
    let mut detector = ClassicDetector::new(DetectionConfig::default());
    let mut scans = 0;
    let mut sought = Vec::with_capacity(SEEK_AT_ONCE);
    // The first round fills the tables; the second one is measured.
    let mut nanos = 0.0;
    for round in 0..2 {
        let begun = Instant::now();
        // In batches, as in the service.
        for probes in probes.chunks(SEEK_AT_ONCE) {
            detector.seek(probes, &host, &mut sought);
            for (probe, sought) in probes.iter().zip(&sought) {
                let moment = Moment::from_nanos(probe.moment.as_nanos() + round * 6_000_000_000);
                let probe = Segment { moment, ..*probe };
                scans += usize::from(detector.observe(&probe, sought, &host).is_some());
            }
        }
        nanos = begun.elapsed().as_nanos() as f64 / probes.len() as f64;
    }
    assert!(scans < probes.len(), "uses the result, so that the compiler keeps the loop");
    nanos
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
    let rule = DetectionConfig { preset: Preset::Balanced, ..DetectionConfig::default() };
    let (mut detector, mut scratch, mut scans) = (Detector::new(rule), Scratch::default(), 0);
    let begun = Instant::now();
    detector.consider(&segments, &host, &mut scratch, |_, _, _, found| scans += found.len());
    assert!(scans < probes.len(), "uses the result, so that the compiler keeps the loop");
    begun.elapsed().as_nanos() as f64 / probes.len() as f64
}

/// The `balanced` preset in a flood without replies: the host does not listen on the port.
fn nanos_an_unanswered_probe(probes: &[Segment]) -> f64 {
    let host = Host::with_addresses(["10.0.0.1/24".parse().unwrap()]);
    let rule = DetectionConfig { preset: Preset::Balanced, ..DetectionConfig::default() };
    let (mut detector, mut scratch, mut scans) = (Detector::new(rule), Scratch::default(), 0);
    detector.listens_on(&Arc::default());
    let mut nanos = 0.0;
    for round in 0..2 {
        let later = |probe: &Segment| {
            let moment = Moment::from_nanos(probe.moment.as_nanos() + round * 6_000_000_000);
            Segment { moment, ..*probe }
        };
        let probes: Vec<Segment> = probes.iter().map(later).collect();
        let begun = Instant::now();
        detector.consider(&probes, &host, &mut scratch, |_, _, _, found| scans += found.len());
        nanos = begun.elapsed().as_nanos() as f64 / probes.len() as f64;
    }
    assert!(scans < probes.len(), "uses the result, so that the compiler keeps the loop");
    nanos
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
            ours.push(nanos_a_probe(&probes));
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
