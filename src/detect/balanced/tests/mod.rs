//! Tests of the rules on a simulated wire. Honest clients, hiding scanners and missing replies have files of
//! their own.

pub mod explained;
pub mod hiding;
pub mod honest;
pub mod unseen;

use std::net::IpAddr;
use std::time::Duration;

use super::*;
use crate::detect::balanced::thresholds::CHECKS;
use crate::types::{Outcome, Port, Rule, ScanKind};

const SERVER: &str = "198.51.100.1";

/// Keeps what the detector finds.
struct Found<'a>(&'a mut Vec<Scan>);

impl Observer for Found<'_> {
    fn segments(&mut self, _: &[Segment]) {}

    fn scan(&mut self, scan: Arc<Scan>) -> bool {
        self.0.push(Arc::unwrap_or_clone(scan));
        true
    }
}

/// A detector, what it has found, and a wire with methods to send segments.
struct Wire {
    detector: BalancedDetector,
    found: Vec<Scan>,
    host: Host,
    now: Moment,
    next_port: u16,
    /// Clients craft their SYNs.
    crafted: bool,
    /// The hardware addresses of this host and of the router, if the wire shows them.
    sides: bool,
    /// The acknowledgement number of clients. Replies have the sequence number 0, so 1 means that the client has
    /// received no data.
    acknowledged: u8,
}

impl Wire {
    fn new() -> Self {
        Self {
            detector: BalancedDetector::new(crate::config::Config::default().detection),
            found: Vec::new(),
            host: Host::default(),
            now: Moment::from_nanos(1_000_000_000_000),
            next_port: 1024,
            crafted: false,
            sides: false,
            acknowledged: 1,
        }
    }

    /// A wire on which a program crafts all SYNs, as a scanner does.
    fn of_a_scanner() -> Self {
        Self { crafted: true, ..Self::new() }
    }

    /// A wire of the server, which listens on port 80.
    fn of_the_server() -> Self {
        let mut wire = Self::new();
        wire.host = Host::with_addresses([IpNet::from(SERVER.parse::<IpAddr>().unwrap())]);
        wire.listen(&[80]);
        wire
    }

    fn listen(&mut self, ports: &[u16]) {
        let mut listening = PortSet::default();
        for port in ports {
            listening.insert(Port(*port));
        }
        self.detector.set_listening(&Arc::new(listening));
    }

    /// Lets time pass in small steps, as on a busy wire.
    fn live(&mut self, seconds: u64) {
        (0..seconds).for_each(|_| self.pass(1000));
    }

    /// A connection without data, as a connect scan makes it.
    fn connect_without_data(&mut self, client: &str, server: &str, port: u16) {
        let from = self.syn(client, server, port);
        self.send((server, port), (client, from), SegmentKind::SynAck, 0);
        self.send((client, from), (server, port), SegmentKind::ResetAck, 8);
    }

    fn pass(&mut self, millis: u64) {
        self.now = self.now + Duration::from_millis(millis);
        self.detector.pass_time(self.now, &self.host, &mut Found(&mut self.found));
    }

    fn send(&mut self, from: (&str, u16), to: (&str, u16), kind: SegmentKind, sequence: u8) {
        let sender = if from.0 == SERVER { 1 } else { 2 };
        self.send_by(if self.sides { sender } else { 0 }, from, to, kind, sequence);
    }

    /// Sends a segment by a hardware address.
    fn send_by(
        &mut self,
        sender: u16,
        from: (&str, u16),
        to: (&str, u16),
        kind: SegmentKind,
        sequence: u8,
    ) {
        let segment = Segment {
            moment: self.now,
            source: from.0.parse().unwrap(),
            destination: to.0.parse().unwrap(),
            source_port: Port(from.1),
            port: Port(to.1),
            kind,
            sequence,
            acknowledged: self.acknowledged,
            crafted: self.crafted,
            sender,
        };
        self.detector.observe(&[segment], &self.host, &mut Found(&mut self.found));
    }

    /// Sends a SYN. Returns the client's port.
    fn syn(&mut self, client: &str, server: &str, port: u16) -> u16 {
        self.next_port = self.next_port.checked_add(1).unwrap_or(1024);
        self.send((client, self.next_port), (server, port), SegmentKind::Syn, 7);
        self.next_port
    }

    fn refused(&mut self, client: &str, server: &str, port: u16) {
        let from = self.syn(client, server, port);
        self.send((server, port), (client, from), SegmentKind::ResetAck, 0);
    }

    /// A connection of an honest client.
    fn visit(&mut self, client: &str, server: &str, port: u16) {
        let from = self.syn(client, server, port);
        self.send((server, port), (client, from), SegmentKind::SynAck, 0);
        self.send((client, from), (server, port), SegmentKind::FinAck, 99);
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
fn fourth_refused_port_is_a_scan_with_evidence() {
    let mut wire = Wire::of_a_scanner();
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
fn answered_port_never_counts_and_unanswered_port_counts_after_a_second() {
    let mut wire = Wire::new();
    for port in 1000..1050 {
        wire.visit("192.0.2.1", SERVER, port);
    }
    wire.crafted = true;
    for port in 1..=4 {
        wire.syn("192.0.2.2", SERVER, port);
    }
    wire.pass(999);
    assert_eq!(wire.scanners(), Vec::<String>::new());
    wire.pass(1);
    assert_eq!(wire.scanners(), ["192.0.2.2"]);
}

#[test]
fn half_open_scan_is_detected_with_and_without_reset() {
    let mut wire = Wire::of_a_scanner();
    for port in 1..=4 {
        let from = wire.syn("192.0.2.1", SERVER, port);
        wire.send((SERVER, port), ("192.0.2.1", from), SegmentKind::SynAck, 0);
        wire.send(("192.0.2.1", from), (SERVER, port), SegmentKind::Reset, 8);
    }
    assert_eq!(wire.scanners(), ["192.0.2.1"]);
    wire.found.clear();
    let from = [1, 2, 3, 4].map(|port| {
        let from = wire.syn("192.0.2.2", SERVER, port);
        wire.send((SERVER, port), ("192.0.2.2", from), SegmentKind::SynAck, 0);
        (port, from)
    });
    wire.pass(1000);
    for (port, from) in from {
        wire.send((SERVER, port), ("192.0.2.2", from), SegmentKind::SynAck, 0);
    }
    assert_eq!(
        wire.scanners(),
        ["192.0.2.2"],
        "the server has repeated its reply, and the client is silent"
    );
}

/// The capture shows each packet twice, when it enters and when it leaves.
#[test]
fn half_open_scan_is_detected_with_copied_packets() {
    let mut wire = Wire::of_a_scanner();
    let from = [1, 2, 3, 4].map(|port| {
        let from = wire.syn("192.0.2.1", SERVER, port);
        wire.send(("192.0.2.1", from), (SERVER, port), SegmentKind::Syn, 7);
        wire.send((SERVER, port), ("192.0.2.1", from), SegmentKind::SynAck, 0);
        wire.send((SERVER, port), ("192.0.2.1", from), SegmentKind::SynAck, 0);
        (port, from)
    });
    wire.pass(1000);
    for (port, from) in from {
        wire.send((SERVER, port), ("192.0.2.1", from), SegmentKind::SynAck, 0);
    }
    assert_eq!(wire.scanners(), ["192.0.2.1"]);
}

#[test]
fn longer_windows_detect_slow_scans() {
    for (pause, at_most) in [(20, 5), (60, 5), (300, 5), (3 * 3600 - 600, 8)] {
        let mut wire = Wire::of_a_scanner();
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
fn silence_of_a_closed_port_counts_at_once_unless_it_replies() {
    let mut wire = Wire::of_the_server();
    wire.crafted = true;
    for port in 1..=4 {
        wire.syn("192.0.2.1", SERVER, port);
        wire.pass(2);
    }
    wire.pass(5);
    assert_eq!(wire.scanners(), ["192.0.2.1"]);
    wire.found.clear();
    wire.crafted = false;
    // A service that listens for a moment, as for data connections of FTP, or that of a container.
    for port in 50_000..50_020 {
        wire.visit("192.0.2.2", SERVER, port);
        wire.pass(100);
    }
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
    for port in 800..=1300 {
        if port < 1024 {
            wire.visit("192.0.2.1", SERVER, port);
        } else {
            wire.connect_without_data("192.0.2.1", SERVER, port);
        }
    }
    let [scan] = &wire.found[..] else { panic!("{:?}", wire.found) };
    assert_eq!((scan.rule, scan.rule.blocks()), (Rule::ManyPorts, false));
}

#[test]
fn forgotten_source_starts_over() {
    let mut wire = Wire::of_a_scanner();
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
fn flood_of_forged_sources_does_not_evict_source_with_two_failures() {
    let mut wire = Wire::of_a_scanner();
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

/// A scan of four ports is detected although no segment arrives for an hour.
#[test]
fn late_timeout_is_judged_at_its_own_time() {
    let mut wire = Wire::of_a_scanner();
    for port in 1..=4 {
        wire.syn("192.0.2.1", SERVER, port);
    }
    let due = wire.now + Duration::from_secs(1);
    wire.pass(3_600_000);
    let [scan] = &wire.found[..] else { panic!("{:?}", wire.found) };
    assert_eq!((scan.moment, scan.span), (due, Duration::from_secs(60)));
}

#[test]
fn icmp_unreachable_is_a_refusal_only_if_it_quotes_the_syn() {
    for (sequence, expected) in [(7, 1), (8, 0)] {
        let mut wire = Wire::of_a_scanner();
        for port in 1..=4 {
            let from = wire.syn("192.0.2.1", SERVER, port);
            wire.send((SERVER, port), ("192.0.2.1", from), SegmentKind::Unreachable, sequence);
        }
        assert_eq!(wire.found.len(), expected);
    }
}

#[test]
fn connect_scan_is_detected_by_its_closed_ports() {
    for (open, closed, expected) in [(8, 2, 1), (3, 1, 1), (9, 1, 1), (10, 0, 0), (2, 1, 0)] {
        let mut wire = Wire::new();
        (0..open).for_each(|port| wire.connect_without_data("192.0.2.1", SERVER, 80 + port));
        (0..closed).for_each(|port| wire.refused("192.0.2.1", SERVER, 20 + port));
        wire.live(89);
        assert_eq!(wire.found, []);
        wire.live(1);
        let rules: Vec<Rule> = wire.found.iter().map(|scan| scan.rule).collect();
        assert_eq!(rules, vec![Rule::ConnectScan; expected], "{open} open, {closed} closed");
    }
}

/// ACK and Maimon scans, also of the ports of databases.
#[test]
fn refused_out_of_state_segments_are_a_scan() {
    for first in [1, 3300, 9000] {
        let mut wire = Wire::new();
        for port in first..first + 8 {
            wire.send((SERVER, port), ("192.0.2.1", 40_000), SegmentKind::Reset, 0);
        }
        assert_eq!(wire.found.iter().map(|s| s.rule).collect::<Vec<_>>(), [Rule::OutOfState]);
    }
    // Peers of connections from before a restart, or of a proxy.
    let mut wire = Wire::new();
    for port in (1024..1124).chain(33_000..33_100) {
        wire.send((SERVER, port), ("192.0.2.1", 443), SegmentKind::Reset, 0);
        wire.send((SERVER, port), ("192.0.2.2", 8080), SegmentKind::Reset, 0);
    }
    assert_eq!(wire.found, []);
}

/// A connect scan sends no data to open hosts, which are no use.
#[test]
fn sweep_of_open_and_closed_hosts_is_detected() {
    for (closed, expected) in [(29, 0), (30, 1)] {
        let mut wire = Wire::new();
        for number in 0..60 {
            let host = format!("198.51.100.{number}");
            if number % 2 == 0 && number / 2 < closed {
                wire.refused("192.0.2.1", &host, 22);
            } else {
                wire.connect_without_data("192.0.2.1", &host, 22);
            }
        }
        let kinds: Vec<ScanKind> = wire.found.iter().map(|scan| scan.kind).collect();
        assert_eq!(kinds, vec![ScanKind::Sweep; expected], "{closed} of 60 are closed");
    }
}

/// A slow sweep differs from a mail server only in its SYNs.
#[test]
fn slow_sweep_is_detected_by_its_crafted_segments() {
    for (crafted, expected) in [(true, vec![Duration::from_secs(86_400)]), (false, vec![])] {
        let mut wire = Wire { crafted, ..Wire::new() };
        for number in 0..30 {
            wire.syn("192.0.2.1", &format!("198.51.100.{number}"), 25);
            wire.visit("192.0.2.1", "198.51.100.99", 25);
            wire.pass(120_000);
        }
        let spans: Vec<Duration> = wire.found.iter().map(|scan| scan.span).collect();
        assert_eq!(spans, expected, "crafted: {crafted}");
    }
}

#[test]
fn connect_scanners_beyond_the_limit_are_judged_at_once() {
    let mut wire = Wire::new();
    for number in 0..=CHECKS {
        let source = format!("192.0.{}.{}", number / 256, number % 256);
        (0..3).for_each(|port| wire.connect_without_data(&source, SERVER, 80 + port));
        wire.refused(&source, SERVER, 20);
    }
    assert_eq!(wire.scanners(), ["192.0.4.0"]);
    wire.live(90);
    assert_eq!(wire.scanners().len(), CHECKS + 1);
}

/// The hosts are addresses of this host, a network configured as local, or other hosts.
#[test]
fn sweep_is_detected_for_own_local_and_other_hosts() {
    let own: Vec<IpNet> = (0..40).map(|n| IpAddr::from([198, 51, 100, n]).into()).collect();
    let hosts = [
        Host::with_addresses(own),
        Host::with_networks(vec!["198.51.100.0/24".parse().unwrap()]),
        Host::with_addresses(["198.51.100.77/24".parse().unwrap()]),
    ];
    for host in hosts {
        let mut wire = Wire { host, ..Wire::new() };
        for number in 0..30 {
            wire.refused("192.0.2.1", &format!("198.51.100.{number}"), 22);
        }
        assert_eq!(wire.found.first().map(|scan| scan.kind), Some(ScanKind::Sweep));
    }
}
