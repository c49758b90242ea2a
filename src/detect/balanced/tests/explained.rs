//! What the detector says about sources that are not blocked.

use super::*;
use crate::types::{Decision, Pending};

impl Wire {
    fn explain(&mut self, source: &str) -> Pending {
        self.detector.explain(source.parse::<IpAddr>().unwrap().into(), self.now, &self.host)
    }
}

/// Returns port and decision of each failure.
fn decisions(pending: &Pending) -> Vec<(u16, Decision)> {
    let failures = pending.failures.iter();
    failures.map(|judged| (judged.attempt.port.0, judged.decision)).collect()
}

#[test]
fn each_failure_is_explained_and_the_distance_to_a_block_is_known() {
    let mut wire = Wire::of_a_scanner();
    assert_eq!(wire.explain("192.0.2.1"), Pending::default());
    wire.refused("192.0.2.1", SERVER, 21);
    assert_eq!(wire.explain("192.0.2.1").missing(), Some(3));
    wire.pass(1000);
    wire.refused("192.0.2.1", SERVER, 22);
    wire.refused("192.0.2.9", SERVER, 23);
    let pending = wire.explain("192.0.2.1");
    assert_eq!(decisions(&pending), [(21, Decision::Counts), (22, Decision::Counts)]);
    let counts: Vec<_> =
        pending.progress.iter().map(|progress| (progress.count, progress.threshold)).collect();
    assert_eq!(counts, [(2, 3), (2, 4), (2, 7)]);
    assert_eq!(pending.progress[0].host, Some(SERVER.parse().unwrap()));
    // A minute later, only the longer rules count them.
    wire.pass(60_000);
    assert_eq!(wire.explain("192.0.2.1").missing(), Some(3));
    assert_eq!(wire.explain("192.0.2.1").progress.len(), 2);
    assert!(wire.scanners().is_empty());
}

#[test]
fn failures_of_a_port_that_the_source_has_used_are_excused() {
    let mut wire = Wire::new();
    wire.visit("192.0.2.1", SERVER, 443);
    wire.pass(10_000);
    wire.syn("192.0.2.1", SERVER, 443);
    wire.pass(10_000);
    let pending = wire.explain("192.0.2.1");
    assert_eq!(decisions(&pending), [(443, Decision::Used)]);
    assert_eq!(pending.missing(), None);
}

#[test]
fn failures_of_this_host_are_explained_although_a_flood_follows() {
    let mut wire = Wire::of_the_server();
    wire.crafted = true;
    wire.refused("192.0.2.1", SERVER, 21);
    wire.pass(1000);
    wire.refused("192.0.2.1", SERVER, 22);
    for number in 0..5000 {
        wire.refused(&format!("10.0.{}.{}", number / 250, number % 250), SERVER, 21);
    }
    let pending = wire.explain("192.0.2.1");
    assert_eq!(pending.missing(), Some(2));
    assert_eq!(decisions(&pending), [(21, Decision::Counts), (22, Decision::Counts)]);
}
