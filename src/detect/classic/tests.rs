//! Tests of the classic rule.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::config::{Config, Threshold, WindowSpan};
use crate::types::Port;
use proptest::prelude::*;

const SECOND: u64 = 1_000_000_000;

fn probe(source: &str, port: u16, seconds: u64) -> Segment {
    Segment {
        moment: Moment::from_nanos(seconds * SECOND),
        source: source.parse().unwrap(),
        destination: if source.contains(':') { "fd00::2" } else { "10.0.0.2" }.parse().unwrap(),
        source_port: Port(40_000),
        port: Port(port),
        kind: SegmentKind::Syn,
        sequence: 0,
        acknowledged: 0,
        crafted: false,
        sender: 0,
    }
}

fn rule(edit: impl FnOnce(&mut DetectionConfig)) -> DetectionConfig {
    let mut rule = Config::default().detection;
    edit(&mut rule);
    rule
}

fn host() -> Host {
    Host::with_addresses(["10.0.0.2/24".parse().unwrap(), "fd00::2/64".parse().unwrap()])
}

fn consider(detector: &mut ClassicDetector, probe: &Segment, host: &Host) -> Option<Scan> {
    detector.look_up(std::slice::from_ref(probe), host);
    detector.consider(probe, detector.lookups[0], host)
}

fn scan(detector: &mut ClassicDetector, probes: impl IntoIterator<Item = Segment>) -> Vec<Scan> {
    let host = host();
    probes.into_iter().filter_map(|probe| consider(detector, &probe, &host)).collect()
}

#[test]
fn scan_is_reported_at_the_fourth_port_and_returned_at_each_doubling() {
    let mut detector = ClassicDetector::new(rule(|_| {}));
    let repeated = (1..=50).flat_map(|port| [port; 2]);
    let scans = scan(&mut detector, repeated.map(|port| probe("192.0.2.1", port, 1)));
    let returned: Vec<_> = scans.iter().map(|s| (s.tried, s.probes, s.continued)).collect();
    assert_eq!(returned, [(4, 7, false), (8, 15, true), (16, 31, true), (32, 63, true)]);
    assert_eq!(scans[0].ports(), [Port(1), Port(2), Port(3), Port(4)]);
    assert_eq!(scans[0].kind, ScanKind::Vertical);
    assert_eq!(scans[0].source, "192.0.2.1/32".parse().unwrap());
}

#[test]
fn continued_scan_is_reported_once_per_window() {
    let mut detector = ClassicDetector::new(rule(|_| {}));
    // Four ports, again and again.
    let scans = scan(&mut detector, (1..=150).map(|n| probe("192.0.2.1", n % 4, n.into())));
    let reports: Vec<_> =
        scans.iter().map(|s| (s.moment.as_nanos() / SECOND, s.continued)).collect();
    assert_eq!(reports, [(4, false), (64, true), (124, true)]);
}

#[test]
fn source_that_was_silent_for_a_window_starts_over() {
    let mut detector = ClassicDetector::new(rule(|_| {}));
    let first = (1..=4).map(|port| probe("192.0.2.1", port, 0));
    let second = (1..=4).map(|port| probe("192.0.2.1", port, 60));
    let scans = scan(&mut detector, first.chain(second));
    assert_eq!(scans.iter().map(|s| s.continued).collect::<Vec<_>>(), [false, false]);
}

#[test]
fn sources_are_counted_separately() {
    let mut detector = ClassicDetector::new(rule(|_| {}));
    let probes =
        (1..=3).flat_map(|port| [probe("192.0.2.1", port, 1), probe("192.0.2.2", port + 10, 1)]);
    assert_eq!(scan(&mut detector, probes), []);
}

#[test]
fn per_pair_counts_destinations_separately() {
    let probes = |per| {
        let mut detector = ClassicDetector::new(rule(|r| r.per = per));
        let to = |last: u8, port| Segment {
            destination: [10, 0, 0, last].into(),
            ..probe("192.0.2.1", port, 1)
        };
        scan(&mut detector, [to(2, 1), to(2, 2), to(3, 3), to(3, 4)]).len()
    };
    assert_eq!(probes(Per::Source), 1);
    assert_eq!(probes(Per::Pair), 0);
}

#[test]
fn stealth_probes_count_unless_disabled() {
    for (stealth, kinds) in [(true, vec![ScanKind::Stealth]), (false, vec![])] {
        let mut detector = ClassicDetector::new(rule(|r| r.stealth = stealth));
        let fin =
            (1..=4).map(|port| Segment { kind: SegmentKind::Fin, ..probe("192.0.2.1", port, 1) });
        let found: Vec<_> = scan(&mut detector, fin).iter().map(|s| s.kind).collect();
        assert_eq!(found, kinds);
    }
}

#[test]
fn ipv6_network_is_one_source_but_neighbours_are_not() {
    let mut detector = ClassicDetector::new(rule(|_| {}));
    let hopping = (1..=4).map(|n| probe(&format!("2001:db8::{n}"), n, 1));
    let scans = scan(&mut detector, hopping);
    assert_eq!(scans[0].source, "2001:db8::/64".parse().unwrap());

    let neighbours = (1..=4).map(|n| probe(&format!("fd00::1{n}"), n, 1));
    assert_eq!(scan(&mut detector, neighbours), []);
    let neighbour = (1..=4).map(|n| probe("fd00::99", n, 1));
    assert_eq!(scan(&mut detector, neighbour)[0].source, "fd00::99/128".parse().unwrap());
}

#[test]
fn clock_that_runs_backwards_stands_still() {
    let mut detector = ClassicDetector::new(rule(|_| {}));
    let times = [100, 90, 80, 70];
    let probes = times.into_iter().zip(1..).map(|(t, port)| probe("192.0.2.1", port, t));
    assert_eq!(scan(&mut detector, probes).len(), 1);
}

#[test]
fn memory_is_bounded_and_evictions_are_counted() {
    let mut detector = ClassicDetector::new(rule(|r| r.max_sources = 1024.try_into().unwrap()));
    let flood = (0..5000u32).map(|n| Segment {
        source: std::net::Ipv4Addr::from(0x0b00_0000 + n).into(),
        ..probe("192.0.2.1", 80, 1)
    });
    assert_eq!(scan(&mut detector, flood), []);
    assert_eq!((detector.sources(), detector.evicted()), (3 * 1024, 5000 - 3 * 1024));
}

#[test]
fn first_report_names_the_decoys() {
    let mut detector = ClassicDetector::new(rule(|_| {}));
    let sources = ["198.51.100.1", "192.0.2.1", "203.0.113.1"];
    let probes = (1..=9).flat_map(|port| sources.map(|source| probe(source, port, port.into())));
    let honest = probe("192.0.2.9", 443, 1);
    let scans = scan(&mut detector, std::iter::once(honest).chain(probes));
    assert!(scans.iter().all(|scan| scan.decoy), "also when a source is returned");
    let first = scans.iter().filter(|scan| !scan.continued);
    let found: Vec<_> = first.map(|scan| (scan.address, scan.others.clone())).collect();
    let addresses = sources.map(|source| source.parse::<IpAddr>().unwrap());
    let [a, b, c] = addresses;
    assert_eq!(found, [(a, vec![b, c]), (b, vec![a, c]), (c, vec![a, b])]);
}

#[test]
fn forgotten_source_starts_over() {
    let mut detector = ClassicDetector::new(rule(|_| {}));
    scan(&mut detector, (1..=4).map(|port| probe("192.0.2.1", port, 1)));
    detector.forget("192.0.2.1/32".parse().unwrap());
    assert_eq!(scan(&mut detector, [probe("192.0.2.1", 5, 2)]), []);
    assert_eq!(scan(&mut detector, (6..=8).map(|p| probe("192.0.2.1", p, 2))).len(), 1);
}

/// The rule without any optimisation: it remembers every probe of every source.
fn naive(probes: &[Segment], threshold: usize, span: Duration) -> Vec<(IpAddr, u64)> {
    let mut fired = Vec::new();
    for (at, probe) in probes.iter().enumerate() {
        let own = || probes[..=at].iter().filter(|earlier| earlier.source == probe.source);
        let recent = own().filter(|earlier| probe.moment.since(earlier.moment) < span);
        let ports: std::collections::BTreeSet<Port> = recent.map(|recent| recent.port).collect();
        let first = !fired.iter().any(|(source, _)| *source == probe.source);
        if ports.len() > threshold && first {
            fired.push((probe.source, own().count() as u64));
        }
    }
    fired
}

/// A report names the segments up to its last probe first, and an undelivered scan is reported again.
#[test]
fn observer_receives_segments_before_the_scan_and_may_refuse_it() {
    struct Calls(Vec<usize>);
    impl Observer for Calls {
        fn segments(&mut self, segments: &[Segment]) {
            self.0.push(segments.len());
        }

        fn scan(&mut self, scan: Arc<Scan>) -> bool {
            assert_eq!(scan.attempts.len(), 4);
            self.0.push(0);
            false
        }
    }
    let mut detector = ClassicDetector::new(rule(|_| {}));
    let mut calls = Calls(Vec::new());
    let mut probes: Vec<Segment> = (1..=6).map(|port| probe("192.0.2.1", port, 1)).collect();
    // Replies of open ports are no probes.
    probes.insert(0, Segment { kind: SegmentKind::SynAck, ..probe("192.0.2.1", 9, 1) });
    detector.observe(&probes, &host(), &mut calls);
    assert_eq!(calls.0, [5, 0, 1, 0, 1, 0, 0]);
}

proptest! {
    /// Compares which sources are reported, and at which probe, through both stages.
    #[test]
    fn detector_equals_the_naive_rule(
        threshold in 1..=64u64,
        seconds in 1..=3600u64,
        steps in proptest::collection::vec((0..6u8, 0..80u16, 0..3u64), 1..250),
    ) {
        let unit = seconds * SECOND / (2 * threshold);
        let mut now = 0;
        let probes: Vec<Segment> = steps
            .into_iter()
            .map(|(source, port, pause)| {
                now += pause * unit;
                let source = IpAddr::from([198, 51, 100, source]);
                Segment { moment: Moment::from_nanos(now), source, ..probe("192.0.2.1", port, 0) }
            })
            .collect();
        let window: WindowSpan = format!("{seconds}s").try_into().unwrap();
        let mut detector = ClassicDetector::new(rule(|rule| {
            rule.ports = threshold.try_into().unwrap();
            rule.window = window;
        }));
        let mut found: Vec<(IpAddr, u64)> = Vec::new();
        for scan in scan(&mut detector, probes.iter().copied()) {
            if !found.iter().any(|(source, _)| *source == scan.address) {
                found.push((scan.address, scan.probes));
            }
        }
        prop_assert_eq!(found, naive(&probes, usize::try_from(threshold).unwrap(), window.get()));
    }
}

#[test]
fn another_threshold_keeps_the_sources() {
    let mut detector = ClassicDetector::new(rule(|_| {}));
    assert_eq!(scan(&mut detector, (1..=3).map(|port| probe("192.0.2.1", port, 1))), []);
    assert_eq!(scan(&mut detector, [probe("192.0.2.2", 1, 1)]), []);
    let stricter = rule(|rule| rule.ports = Threshold::try_from(1).unwrap());
    assert!(detector.reconfigure(stricter));
    assert_eq!(
        scan(&mut detector, [probe("192.0.2.1", 1, 2)]).len(),
        1,
        "it has tried three ports"
    );
    assert_eq!(scan(&mut detector, [probe("192.0.2.2", 2, 2)]).len(), 1, "candidates count too");

    let mut detector = ClassicDetector::new(rule(|_| {}));
    assert_eq!(scan(&mut detector, (1..=3).map(|port| probe("192.0.2.1", port, 1))), []);
    let laxer = rule(|rule| rule.ports = Threshold::try_from(5).unwrap());
    assert!(detector.reconfigure(laxer));
    assert_eq!(scan(&mut detector, (4..=5).map(|port| probe("192.0.2.1", port, 2))), []);
    let found = scan(&mut detector, [probe("192.0.2.1", 6, 3)]);
    assert_eq!(found[0].ports(), (1..=6).map(Port).collect::<Vec<_>>());

    // Another window applies to earlier probes, too.
    let mut detector = ClassicDetector::new(rule(|_| {}));
    assert_eq!(scan(&mut detector, (1..=3).map(|port| probe("192.0.2.1", port, 1))), []);
    let shorter = rule(|rule| rule.window = "10s".to_owned().try_into().unwrap());
    assert!(detector.reconfigure(shorter));
    assert_eq!(scan(&mut detector, (4..=6).map(|port| probe("192.0.2.1", port, 12))), []);
}

#[test]
fn another_unit_of_counting_forgets_the_sources() {
    let mut detector = ClassicDetector::new(rule(|_| {}));
    assert_eq!(scan(&mut detector, (1..=3).map(|port| probe("192.0.2.1", port, 1))), []);
    assert!(!detector.reconfigure(rule(|rule| rule.per = Per::Pair)));
    assert_eq!(detector.sources(), 0);
    assert_eq!(scan(&mut detector, (4..=6).map(|port| probe("192.0.2.1", port, 2))), []);
    assert_eq!(scan(&mut detector, [probe("192.0.2.1", 7, 2)]).len(), 1);
}

#[test]
fn a_source_below_the_threshold_is_explained() {
    let mut detector = ClassicDetector::new(rule(|_| {}));
    let source = "192.0.2.1/32".parse().unwrap();
    let at = |seconds: u64| Moment::from_nanos(seconds * SECOND);
    for (port, missing) in [(21, 3), (21, 3), (22, 2), (23, 1)] {
        assert!(scan(&mut detector, [probe("192.0.2.1", port, 1)]).is_empty());
        assert_eq!(detector.explain(source, at(1), &host()).missing(), Some(missing));
    }
    let ports: Vec<u16> = {
        let pending = detector.explain(source, at(60), &host());
        pending.failures.iter().map(|judged| judged.attempt.port.0).collect()
    };
    assert_eq!(ports, [21, 22, 23]);
    assert_eq!(detector.explain(source, at(61), &host()), Pending::default());
    let other = "192.0.2.2/32".parse().unwrap();
    assert_eq!(detector.explain(other, at(1), &host()), Pending::default());
}
