//! Captures in which replies are missing.

use super::*;

#[test]
fn one_sided_capture_uses_the_classic_rule_until_replies_return() {
    let mut wire = Wire::new();
    // Many clients of one service, and no visible reply.
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
    assert_eq!(scan.rule, Rule::PortsOfHost);
    wire.visit("192.0.2.9", SERVER, 443);
    assert!(!wire.detector.is_one_sided());
}

/// One client with a connection that continues is enough if no reply was ever seen. What the client has tried
/// until then counts.
#[test]
fn first_continuing_connection_shows_a_one_sided_capture() {
    let mut wire = Wire::new();
    let from = [25, 143, 465].map(|port| (wire.syn("192.0.2.1", SERVER, port), port));
    assert!(!wire.detector.is_one_sided());
    wire.send(("192.0.2.1", from[0].0), (SERVER, 25), SegmentKind::FinAck, 99);
    assert!(wire.detector.is_one_sided());
    wire.syn("192.0.2.1", SERVER, 993);
    let [scan] = &wire.found[..] else { panic!("{:?}", wire.found) };
    assert_eq!((scan.rule, scan.attempts.len()), (Rule::PortsOfHost, 4));
    // A source cannot feign that while replies are visible.
    let mut wire = Wire::new();
    wire.visit("192.0.2.9", SERVER, 443);
    for port in 1..=3 {
        let from = wire.syn("192.0.2.1", SERVER, port);
        wire.send(("192.0.2.1", from), (SERVER, port), SegmentKind::FinAck, 99);
    }
    assert!(!wire.detector.is_one_sided());
}

/// The replies to some clients take another route. Clients with visible replies are judged as usual.
#[test]
fn clients_behind_an_asymmetric_route_are_no_scanners() {
    let mut wire = Wire::new();
    for round in 0..40u16 {
        for client in 1..=60 {
            let client = format!("203.0.113.{client}");
            for port in [80, 443] {
                let from = wire.syn(&client, SERVER, port);
                wire.pass(2);
                wire.send((&client, from), (SERVER, port), SegmentKind::FinAck, 99);
            }
        }
        for port in 0..6 {
            wire.visit("192.0.2.1", SERVER, 30_000 + 6 * round + port);
        }
        wire.live(20);
    }
    assert!(wire.detector.is_one_sided());
    assert_eq!(wire.scanners(), Vec::<String>::new());
    for port in [1, 2, 3, 4] {
        wire.syn("192.0.2.2", SERVER, port);
    }
    wire.live(1);
    let [scan] = &wire.found[..] else { panic!("{:?}", wire.found) };
    let source = scan.source.addr().to_string();
    assert_eq!((scan.rule, source.as_str()), (Rule::PortsOfHost, "192.0.2.2"));
}

/// Every third reply of a server is missing, and no loss is reported. The server closes all connections itself.
#[test]
fn clients_with_lost_replies_are_no_scanners() {
    let mut wire = Wire::new();
    for number in 0..2000u16 {
        let from = wire.syn("192.0.2.1", SERVER, 30_000 + number);
        if number % 3 > 0 {
            wire.send((SERVER, 30_000 + number), ("192.0.2.1", from), SegmentKind::SynAck, 0);
        }
        wire.pass(if number % 2 == 0 { 1500 } else { 50 });
        wire.send((SERVER, 30_000 + number), ("192.0.2.1", from), SegmentKind::FinAck, 99);
        wire.send(("192.0.2.1", from), (SERVER, 30_000 + number), SegmentKind::FinAck, 8);
    }
    assert_eq!(wire.scanners(), Vec::<String>::new());
}

/// A capture merged from the two directions of a tap may show the reply before the SYN, and the SYN may be
/// missing. Closed ports still count.
#[test]
fn reply_without_a_syn_shows_an_open_port() {
    for (answered, expected) in [(true, Vec::new()), (false, vec!["192.0.2.1".to_owned()])] {
        let mut wire = Wire::new();
        wire.visit("192.0.2.9", SERVER, 443);
        for port in [8001, 8002, 8003, 8004] {
            let from = wire.next_port + 1;
            if answered {
                wire.send((SERVER, port), ("192.0.2.1", from), SegmentKind::SynAck, 0);
            }
            wire.syn("192.0.2.1", SERVER, port);
            wire.send(("192.0.2.1", from), (SERVER, port), SegmentKind::ResetAck, 8);
        }
        wire.pass(1001);
        assert_eq!(wire.scanners(), expected);
    }
}

#[test]
fn single_scanner_of_a_silent_network_is_no_one_sided_capture() {
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
fn reported_packet_loss_excuses_pending_probes() {
    let mut wire = Wire::new();
    for port in 1..=40 {
        wire.syn("192.0.2.1", SERVER, port);
        wire.pass(10);
    }
    wire.detector.packets_lost();
    wire.pass(2000);
    assert_eq!(wire.scanners(), Vec::<String>::new());
}

/// Probes of many hosts are a sweep if the SYNs are crafted. Otherwise they are ordinary use.
#[test]
fn sweep_in_a_one_sided_capture_is_detected_by_crafted_segments() {
    for (crafted, expected) in [(true, vec![ScanKind::Sweep]), (false, vec![])] {
        let mut wire = Wire { crafted, ..Wire::new() };
        for number in 0..60 {
            let target = format!("198.51.100.{number}");
            let from = wire.syn("192.0.2.1", &target, 443);
            wire.send(("192.0.2.1", from), (&target, 443), SegmentKind::Reset, 8);
            wire.pass(100);
        }
        wire.live(1);
        assert!(wire.detector.is_one_sided());
        let new = wire.found.iter().filter(|scan| !scan.continued);
        let kinds: Vec<ScanKind> = new.map(|scan| scan.kind).collect();
        assert_eq!(kinds, expected, "crafted: {crafted}");
    }
}

/// A firewall drops probes of ports on which no service listens. That silence says nothing about visibility.
#[test]
fn scanners_of_a_host_behind_a_firewall_are_no_one_sided_capture() {
    let mut wire = Wire::of_the_server();
    for number in 0..400 {
        wire.syn(&format!("203.0.113.{}", number % 200), SERVER, 23);
        wire.pass(100);
    }
    assert!(!wire.detector.is_one_sided());
}

/// Clients that connect at the same time: the missing replies are noticed after all other replies have arrived.
#[test]
fn replies_to_other_clients_rule_out_a_one_sided_capture() {
    let mut wire = Wire::new();
    for _ in 0..4 {
        for client in 1..=200 {
            let client = format!("203.0.113.{client}");
            wire.syn(&client, SERVER, 8443);
            wire.refused(&client, SERVER, 9443);
            wire.pass(1);
        }
        wire.live(2);
    }
    assert!(!wire.detector.is_one_sided());
}

/// A host with six services goes down, and all its clients keep trying.
#[test]
fn clients_during_an_outage_are_no_scanners() {
    let mut wire = Wire::new();
    let services = [2379, 5432, 5672, 6379, 8500, 9092];
    let clients: Vec<String> = (1..=60).map(|client| format!("203.0.113.{client}")).collect();
    for client in &clients {
        for port in services {
            wire.visit(client, SERVER, port);
        }
    }
    for _ in 0..5 {
        for client in &clients {
            for port in services {
                wire.syn(client, SERVER, port);
            }
        }
        wire.live(2);
    }
    assert!(wire.detector.is_one_sided());
    assert_eq!(wire.scanners(), Vec::<String>::new());
    for port in 1..=4 {
        wire.syn("192.0.2.1", SERVER, port);
    }
    assert_eq!(wire.scanners(), ["192.0.2.1"]);
}

/// The line of a gateway is down for ten minutes, so no client behind it receives replies. A single client
/// would be a sweep.
#[test]
fn clients_behind_a_broken_line_are_no_scanners() {
    for (clients, expected) in [(5, vec![]), (1, vec!["203.0.113.0"])] {
        let mut wire = Wire::new();
        wire.visit("203.0.113.0", "198.51.100.1", 443);
        for number in 0..600 {
            let target = format!("198.51.{}.{}", 101 + number / 250, number % 250);
            wire.syn(&format!("203.0.113.{}", number % clients), &target, 443);
            wire.pass(1000);
        }
        assert_eq!(wire.scanners(), expected, "{clients} clients");
    }
}
