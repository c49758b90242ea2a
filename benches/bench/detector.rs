//! The detector alone: nanoseconds a probe.

use std::net::Ipv4Addr;
use std::time::Instant;

use tcptracker::clock::Moment;
use tcptracker::config::DetectionConfig;
use tcptracker::detector::Detector;
use tcptracker::host::Host;
use tcptracker::probe::{Port, Probe, ProbeKind};

use crate::{median, row};

const PROBES: usize = 2_000_000;

/// Probes of sources in no order, the port of each a function of how often it came.
fn probes(sources: u32, ports: u16) -> Vec<Probe> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..PROBES)
        .map(|number| {
            // xorshift64 (Marsaglia 2003): cheap and in no order.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let source = u32::try_from(state % u64::from(sources)).unwrap_or(0);
            Probe {
                moment: Moment::from_nanos(number as u64 * 3_000),
                source: Ipv4Addr::from(0x0b00_0000 + source).into(),
                destination: [10, 0, 0, 1].into(),
                source_port: Port(40_000),
                port: Port(1 + u16::try_from(state >> 48).unwrap_or(0) % ports),
                kind: ProbeKind::Syn,
            }
        })
        .collect()
}

fn nanos_a_probe(probes: &[Probe]) -> f64 {
    let host = Host::with_addresses(["10.0.0.1/24".parse().unwrap()]);
    let mut detector = Detector::new(DetectionConfig::default());
    let mut scans = 0;
    // Once to fill its memory, once to be measured.
    let mut nanos = 0.0;
    for round in 0..2 {
        let begun = Instant::now();
        for probe in probes {
            let moment = Moment::from_nanos(probe.moment.as_nanos() + round * 6_000_000_000);
            scans += usize::from(detector.observe(&Probe { moment, ..*probe }, &host).is_some());
        }
        nanos = begun.elapsed().as_nanos() as f64 / probes.len() as f64;
    }
    assert!(scans < probes.len(), "looked at, so that it is not optimised away");
    nanos
}

pub(crate) fn run() {
    for (what, sources, ports) in [
        ("detector: ns a probe, 100,000 live sources, 3 ports each", 100_000, 3),
        ("detector: ns a probe, one source, 3 ports", 1, 3),
        ("detector: ns a probe, forged flood, 10 M sources", 10_000_000, 1),
    ] {
        let probes = probes(sources, ports);
        let nanos = median((0..3).map(|_| nanos_a_probe(&probes)).collect());
        row(what, &format!("{nanos:.0} ns"), "-", None, "at most 100 ns at 100,000 sources");
    }
}
