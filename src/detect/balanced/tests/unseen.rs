//! Captures in which replies are missing.

use super::*;

/// Only the classic threshold is left for SYNs of operating systems, and silent hosts are no sweep. Crafted SYNs
/// are judged as usual.
#[test]
fn one_sided_capture_forgives_silence_until_replies_return() {
    for (crafted, pause, expected) in [(false, 1, 1), (false, 30, 0), (true, 30, 1)] {
        let mut wire = Wire::new();
        for client in 1..=200 {
            let client = format!("203.0.113.{client}");
            let from = wire.syn(&client, SERVER, 443);
            wire.pass(20);
            wire.send((&client, from), (SERVER, 443), SegmentKind::FinAck, 99);
        }
        assert!(wire.detector.is_one_sided() && wire.detector.was_one_sided());
        wire.crafted = crafted;
        for port in [21, 22, 23, 25, 26, 27] {
            wire.syn("192.0.2.1", SERVER, port);
            wire.live(pause);
        }
        wire.live(91);
        assert_eq!(wire.scanners().len(), expected, "{crafted} {pause}");
        wire.visit("192.0.2.9", SERVER, 443);
        assert!(!wire.detector.is_one_sided());
    }
}

/// What continues counts as open, for up to seven ports.
#[test]
fn ports_whose_replies_are_not_seen_count_as_open() {
    for (ports, answered, expected) in [(7, false, 0), (7, true, 0), (8, true, 1)] {
        let mut wire = Wire::new();
        if answered {
            wire.visit("192.0.2.9", SERVER, 443);
        }
        for port in 1..=ports {
            let from = wire.syn("192.0.2.1", SERVER, port);
            // Before the probe times out, after, and when it is followed no longer.
            wire.pass(1500 * u64::from(port % 3));
            wire.send(("192.0.2.1", from), (SERVER, port), SegmentKind::FinAck, 99);
        }
        wire.live(91);
        assert_eq!(wire.scanners().len(), expected, "{ports} ports");
        assert_eq!(wire.detector.is_one_sided(), !answered);
    }
}

/// Fourteen sources feign connections whose replies are not seen. The scanner feigns some, too.
#[test]
fn feigned_connections_blind_the_detector_for_no_other_port() {
    for scanner in ["192.0.2.1", "2001:db8:bad:1::1"] {
        let mut wire = Wire::new();
        wire.visit("203.0.113.1", SERVER, 443);
        for number in 1..=14 {
            let source = scanner
                .replace("2.1", &format!("2.{number}"))
                .replace("::1", &format!("::{number}"));
            let from = wire.syn(&source, SERVER, 8443);
            wire.send((&source, from), (SERVER, 8443), SegmentKind::FinAck, 8);
            let from = wire.syn(&source, SERVER, 8443);
            wire.send((&source, from), (SERVER, 8443), SegmentKind::FinAck, 99);
        }
        wire.crafted = true;
        for port in 1..=6 {
            wire.syn(scanner, SERVER, port);
            wire.live(30);
        }
        assert_eq!(wire.scanners().len(), 1);
        assert!(!wire.detector.is_one_sided());
    }
}

/// The replies to some clients take another route. Clients with visible replies are judged as usual.
#[test]
fn clients_behind_an_asymmetric_route_are_no_scanners() {
    let mut wire = Wire::new();
    for round in 0..40u16 {
        for client in 1..=60 {
            let client = format!("203.0.113.{client}");
            for port in [80, 443, 25, 110, 143] {
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
    assert_eq!(wire.scanners(), Vec::<String>::new());
    wire.crafted = true;
    for port in [1, 2, 3, 4] {
        wire.syn("192.0.2.2", SERVER, port);
    }
    wire.live(1);
    assert_eq!(wire.scanners(), ["192.0.2.2"]);
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
        wire.live(91);
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
fn reported_packet_loss_excuses_pending_probes_of_operating_systems() {
    for (crafted, expected) in [(false, vec![]), (true, vec!["192.0.2.1"])] {
        let mut wire = Wire { crafted, ..Wire::new() };
        for port in 1..=40 {
            wire.syn("192.0.2.1", SERVER, port);
            wire.pass(10);
        }
        wire.detector.packets_lost();
        wire.live(91);
        assert_eq!(wire.scanners(), expected, "crafted: {crafted}");
    }
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
    assert_eq!(wire.scanners(), Vec::<String>::new());
    wire.crafted = true;
    for port in 1..=4 {
        wire.syn("192.0.2.1", SERVER, port);
    }
    wire.live(1);
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
