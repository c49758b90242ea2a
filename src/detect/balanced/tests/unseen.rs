//! What cannot be seen counts against nobody.

use super::*;

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
    assert_eq!(scan.rule, Rule::PortsOfHost);
    wire.visit("192.0.2.9", SERVER, 443);
    assert!(!wire.detector.is_one_sided());
}

/// One client is enough where no answer was ever seen: its connections go on all the same. And whatever it
/// has tried until then counts.
#[test]
fn one_sided_capture_of_a_single_client_shows_by_its_first_connection() {
    let mut wire = Wire::new();
    let from = [25, 143, 465].map(|port| (wire.syn("192.0.2.1", SERVER, port), port));
    assert!(!wire.detector.is_one_sided());
    wire.send(("192.0.2.1", from[0].0), (SERVER, 25), SegmentKind::FinAck, 99);
    assert!(wire.detector.is_one_sided());
    wire.syn("192.0.2.1", SERVER, 993);
    let [scan] = &wire.found[..] else { panic!("{:?}", wire.found) };
    assert_eq!((scan.rule, scan.attempts.len()), (Rule::PortsOfHost, 4));
    // Nobody can feign that where answers are seen.
    let mut wire = Wire::new();
    wire.visit("192.0.2.9", SERVER, 443);
    for port in 1..=3 {
        let from = wire.syn("192.0.2.1", SERVER, port);
        wire.send(("192.0.2.1", from), (SERVER, port), SegmentKind::FinAck, 99);
    }
    assert!(!wire.detector.is_one_sided());
}

/// The answers to a part of the clients take another way. Who is answered within sight is judged as ever.
#[test]
fn an_asymmetric_route_makes_no_scanners() {
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

/// Packets are missing, and nobody counts them: every third answer of a server that closes all by itself.
#[test]
fn answers_that_were_lost_make_no_scanners() {
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

/// A tap's two directions put together may show the answer before its question, and a capture may have
/// lost or not seen the question. A port that is closed is none the less.
#[test]
fn an_answer_without_its_question_shows_an_open_port() {
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

/// Many hosts are a sweep if their SYNs are made up, else somebody's day at work.
#[test]
fn a_sweep_is_seen_in_a_one_sided_capture_by_its_made_up_segments() {
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
        let kinds: Vec<ScanKind> = wire.found.iter().map(|scan| scan.kind).collect();
        assert_eq!(kinds, expected, "crafted: {crafted}");
    }
}

/// A firewall drops what comes to ports on which nothing listens: this silence is explained.
#[test]
fn scanners_of_a_host_behind_a_firewall_make_no_capture_one_sided() {
    let mut wire = Wire::of_the_server();
    for number in 0..400 {
        wire.syn(&format!("203.0.113.{}", number % 200), SERVER, 23);
        wire.pass(100);
    }
    assert!(!wire.detector.is_one_sided());
}

/// Clients that ask by the clock: whom nobody answers is known when all answers of the round have come.
#[test]
fn answers_seen_while_others_wait_in_vain_are_no_one_sided_capture() {
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

/// A host with six services is gone, and all its clients go on asking.
#[test]
fn an_outage_looks_one_sided_and_makes_no_scanners() {
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

/// A gateway's line is down for ten minutes: whoever is behind it finds nobody. A single one would be a sweep.
#[test]
fn a_line_that_is_down_makes_no_scanners() {
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
