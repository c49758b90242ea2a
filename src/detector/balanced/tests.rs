use super::*;
use crate::clock::Moment;
use std::time::Duration;

const SERVER: &str = "198.51.100.1";

/// A detector and what it has found, on a wire on which one can do things.
struct Wire {
    detector: Balanced,
    found: Vec<Scan>,
    host: Host,
    now: Moment,
    next_port: u16,
}

impl Wire {
    fn new() -> Self {
        Self {
            detector: Balanced::new(DetectionConfig::default()),
            found: Vec::new(),
            host: Host::default(),
            now: Moment::from_nanos(1_000_000_000_000),
            next_port: 1024,
        }
    }

    /// A wire of the server itself, which listens on port 80.
    fn of_the_server() -> Self {
        let mut wire = Self::new();
        wire.host = Host::with_addresses([IpNet::from(SERVER.parse::<IpAddr>().unwrap())]);
        let mut listening = Listening::default();
        listening.insert(80);
        wire.detector.listens_on(Arc::new(listening));
        wire
    }

    fn pass(&mut self, millis: u64) {
        self.now = self.now + Duration::from_millis(millis);
        self.detector.pass_time(self.now, &self.host, &mut self.found);
    }

    fn send(&mut self, from: (&str, u16), to: (&str, u16), kind: ProbeKind, sequence: u8) {
        let segment = Probe {
            moment: self.now,
            source: from.0.parse().unwrap(),
            destination: to.0.parse().unwrap(),
            source_port: Port(from.1),
            port: Port(to.1),
            kind,
            sequence,
        };
        self.detector.observe(&segment, &self.host, &mut self.found);
    }

    /// Begins a connection; returns the client's port.
    fn syn(&mut self, client: &str, server: &str, port: u16) -> u16 {
        self.next_port = self.next_port.checked_add(1).unwrap_or(1024);
        self.send((client, self.next_port), (server, port), ProbeKind::Syn, 7);
        self.next_port
    }

    fn refused(&mut self, client: &str, server: &str, port: u16) {
        let from = self.syn(client, server, port);
        self.send((server, port), (client, from), ProbeKind::ResetAck, 0);
    }

    /// A connection as honest clients have it.
    fn visit(&mut self, client: &str, server: &str, port: u16) {
        let from = self.syn(client, server, port);
        self.send((server, port), (client, from), ProbeKind::Answer, 0);
        self.send((client, from), (server, port), ProbeKind::Close, 99);
    }

    fn scanners(&self) -> Vec<String> {
        let mut all: Vec<String> = self
            .found
            .iter()
            .filter(|scan| scan.rule.blocks())
            .map(|scan| scan.source.addr().to_string())
            .collect();
        all.dedup();
        all
    }
}

#[test]
fn the_fourth_refused_port_is_a_scan_with_its_evidence() {
    let mut wire = Wire::new();
    for port in [22, 23, 23, 24] {
        wire.refused("192.0.2.1", SERVER, port);
    }
    assert_eq!(wire.found, []);
    wire.refused("192.0.2.1", SERVER, 25);
    let [scan] = &wire.found[..] else { panic!("{:?}", wire.found) };
    assert_eq!((scan.kind, scan.rule), (ScanKind::Vertical, Rule::FailedPorts));
    assert_eq!(scan.ports(), [22, 23, 24, 25].map(Port));
    assert!(scan.attempts.iter().all(|attempt| attempt.outcome == Outcome::Refused));
}

#[test]
fn what_is_answered_never_counts_and_what_stays_unanswered_does_after_a_second() {
    let mut wire = Wire::new();
    for port in 1000..1050 {
        wire.visit("192.0.2.1", SERVER, port);
    }
    for port in 1..=4 {
        wire.syn("192.0.2.2", SERVER, port);
    }
    wire.pass(999);
    assert_eq!(wire.scanners(), Vec::<String>::new());
    wire.pass(1);
    assert_eq!(wire.scanners(), ["192.0.2.2"]);
}

#[test]
fn half_open_is_seen_with_and_without_the_scanners_reset() {
    let mut wire = Wire::new();
    for port in 1..=4 {
        let from = wire.syn("192.0.2.1", SERVER, port);
        wire.send((SERVER, port), ("192.0.2.1", from), ProbeKind::Answer, 0);
        wire.send(("192.0.2.1", from), (SERVER, port), ProbeKind::Reset, 8);
    }
    assert_eq!(wire.scanners(), ["192.0.2.1"]);
    wire.found.clear();
    let from = [1, 2, 3, 4].map(|port| {
        let from = wire.syn("192.0.2.2", SERVER, port);
        wire.send((SERVER, port), ("192.0.2.2", from), ProbeKind::Answer, 0);
        (port, from)
    });
    wire.pass(1000);
    for (port, from) in from {
        wire.send((SERVER, port), ("192.0.2.2", from), ProbeKind::Answer, 0);
    }
    assert_eq!(wire.scanners(), ["192.0.2.2"], "the server has asked again, the client has not");
}

#[test]
fn a_late_answer_takes_back_what_was_held_against_its_client() {
    let mut wire = Wire::new();
    for port in 1..=12 {
        let from = wire.syn("192.0.2.1", SERVER, port);
        wire.pass(1500);
        wire.send((SERVER, port), ("192.0.2.1", from), ProbeKind::Answer, 0);
    }
    assert_eq!(wire.scanners(), Vec::<String>::new());
}

#[test]
fn slow_scans_are_found_by_the_longer_windows() {
    for (pause, at_most) in [(20, 5), (60, 5), (300, 5), (3 * 3600 - 600, 8)] {
        let mut wire = Wire::new();
        let mut probes = 0;
        for port in 1..=9 {
            wire.refused("192.0.2.1", SERVER, port);
            probes += u32::from(wire.found.is_empty());
            wire.pass(pause * 1000);
        }
        assert!(probes < at_most, "a pause of {pause} s: {probes}");
    }
}

#[test]
fn a_service_that_is_down_makes_no_scanners_of_its_clients() {
    let mut wire = Wire::new();
    for port in [25, 110, 143, 465, 587, 993, 995] {
        wire.visit("192.0.2.1", SERVER, port);
    }
    for client in 1..100 {
        for port in [25, 110, 143, 465, 587, 993, 995] {
            wire.refused(&format!("203.0.113.{client}"), SERVER, port);
        }
    }
    assert_eq!(wire.scanners(), Vec::<String>::new());
}

#[test]
fn users_behind_one_address_may_err_but_hide_no_scanner() {
    let mut wire = Wire::new();
    // 60 users, three in a hundred connections to ports of which nobody knows.
    for number in 0..600u16 {
        if number % 33 == 20 {
            wire.refused("192.0.2.1", SERVER, 20_000 + number);
        } else {
            wire.visit("192.0.2.1", SERVER, [80, 443][usize::from(number % 2)]);
        }
        wire.pass(50);
    }
    assert_eq!(wire.scanners(), Vec::<String>::new());
    // Among a hundred honest connections a second, two ports a second.
    for second in 0..60u16 {
        for _ in 0..100 {
            wire.visit("192.0.2.2", SERVER, 443);
        }
        for half in 0..2 {
            wire.refused("192.0.2.2", SERVER, 1000 + 2 * second + half);
        }
        wire.pass(1000);
        if !wire.found.is_empty() {
            break;
        }
    }
    assert_eq!(wire.scanners(), ["192.0.2.2"]);
}

#[test]
fn one_sided_capture_goes_back_to_the_classic_rule_and_comes_back() {
    let mut wire = Wire::new();
    // Many clients of one service, and no answer to be seen.
    for client in 1..=200 {
        wire.syn(&format!("203.0.113.{client}"), SERVER, 443);
        wire.pass(20);
    }
    wire.pass(1000);
    assert!(wire.detector.is_one_sided());
    assert_eq!(wire.scanners(), Vec::<String>::new());
    for port in [21, 22, 23, 25] {
        wire.syn("192.0.2.1", SERVER, port);
    }
    let [scan] = &wire.found[..] else { panic!("{:?}", wire.found) };
    assert_eq!(scan.rule, Rule::Ports);
    wire.visit("192.0.2.9", SERVER, 443);
    assert!(!wire.detector.is_one_sided());
}

#[test]
fn a_single_scanner_of_a_silent_network_makes_no_capture_one_sided() {
    let mut wire = Wire::new();
    for number in 0..1000 {
        let target = format!("198.51.{}.{}", number / 250, number % 250);
        wire.syn("192.0.2.1", &target, 22);
        wire.pass(10);
    }
    wire.pass(1000);
    assert!(!wire.detector.is_one_sided());
    assert_eq!(wire.found.first().map(|scan| scan.kind), Some(ScanKind::Sweep));
}

#[test]
fn where_nothing_listens_it_is_known_at_once_unless_somebody_answers() {
    let mut wire = Wire::of_the_server();
    for port in 1..=4 {
        wire.syn("192.0.2.1", SERVER, port);
        wire.pass(2);
    }
    wire.pass(5);
    assert_eq!(wire.scanners(), ["192.0.2.1"]);
    wire.found.clear();
    // A service that listens for a moment, as FTP's data connections; or a container's.
    for port in 50_000..50_020 {
        wire.visit("192.0.2.2", SERVER, port);
        wire.pass(100);
    }
    assert_eq!(wire.scanners(), Vec::<String>::new());
}

#[test]
fn lost_packets_make_no_scanners() {
    let mut wire = Wire::new();
    for port in 1..=40 {
        wire.syn("192.0.2.1", SERVER, port);
        wire.pass(10);
    }
    wire.detector.has_lost();
    wire.pass(2000);
    assert_eq!(wire.scanners(), Vec::<String>::new());
}

#[test]
fn many_sources_with_a_few_ports_each_are_reported_and_not_blocked() {
    let mut wire = Wire::new();
    for source in 0..20u16 {
        for port in 0..3 {
            wire.refused(&format!("192.0.2.{source}"), SERVER, 2000 + source * 3 + port);
        }
    }
    let [scan] = &wire.found[..] else { panic!("{:?}", wire.found) };
    assert_eq!((scan.rule, scan.rule.blocks()), (Rule::ManySources, false));
}

#[test]
fn a_host_that_answers_on_all_ports_shows_its_scanner() {
    let mut wire = Wire::new();
    for port in 1..=400 {
        wire.visit("192.0.2.1", SERVER, port);
    }
    let [scan] = &wire.found[..] else { panic!("{:?}", wire.found) };
    assert_eq!((scan.rule, scan.rule.blocks()), (Rule::ManyPorts, false));
}

#[test]
fn what_is_let_in_again_begins_anew() {
    let mut wire = Wire::new();
    for port in 1..=4 {
        wire.refused("192.0.2.1", SERVER, port);
    }
    assert_eq!(wire.scanners(), ["192.0.2.1"]);
    wire.found.clear();
    wire.detector.forget("192.0.2.1/32".parse().unwrap());
    for port in 5..=7 {
        wire.refused("192.0.2.1", SERVER, port);
    }
    assert_eq!(wire.scanners(), Vec::<String>::new());
}

#[test]
fn a_flood_of_forged_sources_pushes_nobody_out_who_has_failed_twice() {
    let mut wire = Wire::new();
    wire.refused("192.0.2.1", SERVER, 1);
    wire.refused("192.0.2.1", SERVER, 2);
    for number in 0..300_000u32 {
        let source = IpAddr::from((0x0a00_0000 + number).to_be_bytes()).to_string();
        wire.refused(&source, SERVER, 80);
        if number % 1000 == 0 {
            wire.pass(1);
        }
    }
    wire.refused("192.0.2.1", SERVER, 3);
    wire.refused("192.0.2.1", SERVER, 4);
    assert_eq!(wire.scanners(), ["192.0.2.1"]);
}
