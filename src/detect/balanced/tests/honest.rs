//! Honest clients that look like scanners, and scanners that look like honest clients.

use super::*;

#[test]
fn late_reply_undoes_the_failure() {
    let mut wire = Wire::new();
    for port in 1..=12 {
        let from = wire.syn("192.0.2.1", SERVER, port);
        wire.pass(1500);
        wire.send((SERVER, port), ("192.0.2.1", from), SegmentKind::SynAck, 0);
    }
    assert_eq!(wire.scanners(), Vec::<String>::new());
}

#[test]
fn clients_of_a_stopped_service_are_no_scanners() {
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
fn failures_of_many_users_behind_one_address_are_excused() {
    let mut wire = Wire::new();
    // 60 users. Three in a hundred connections are to unknown ports.
    for number in 0..600u16 {
        if number % 33 == 20 {
            wire.refused("192.0.2.1", SERVER, 20_000 + number);
        } else {
            wire.visit("192.0.2.1", SERVER, [80, 443][usize::from(number % 2)]);
        }
        wire.pass(50);
    }
    assert_eq!(wire.scanners(), Vec::<String>::new());
}

/// The network was busy before the capture began. Some connections fail before others end.
#[test]
fn failures_of_a_large_network_are_excused_from_the_first_second() {
    for (dropped, expected) in [(false, vec![]), (true, vec!["192.0.2.1"])] {
        let mut wire = Wire::new();
        for number in 0..100u16 {
            if number % 20 == 19 {
                wire.refused("192.0.2.1", SERVER, 20_000 + number);
            } else {
                let from = wire.syn("192.0.2.1", SERVER, 443);
                wire.send((SERVER, 443), ("192.0.2.1", from), SegmentKind::SynAck, 0);
                if dropped {
                    wire.send(("192.0.2.1", from), (SERVER, 443), SegmentKind::Reset, 8);
                }
            }
            wire.pass(10);
        }
        wire.live(91);
        assert_eq!(wire.scanners(), expected, "dropped: {dropped}");
    }
}

/// Programs behind one address retry ports that were never open, besides their successful connections.
#[test]
fn retries_of_dead_ports_are_excused() {
    let mut wire = Wire::new();
    for number in 0..3600u16 {
        for _ in 0..20 {
            wire.visit("192.0.2.1", SERVER, 443);
        }
        if number > 5 {
            wire.refused("192.0.2.1", SERVER, 8080 + number % 10);
        }
        wire.pass(1000);
    }
    assert_eq!(wire.scanners(), Vec::<String>::new());
}

/// Their only use is to earn credit, whether on one port or on several.
#[test]
fn connections_without_data_earn_no_credit() {
    for ports in [1, 2, 20] {
        let mut wire = Wire::new();
        for number in 0..200 {
            if number % 20 == 19 {
                wire.refused("192.0.2.1", SERVER, 1000 + number);
            } else {
                let port = 80 + number % ports;
                let from = wire.syn("192.0.2.1", SERVER, port);
                wire.send((SERVER, port), ("192.0.2.1", from), SegmentKind::SynAck, 0);
                wire.send(("192.0.2.1", from), (SERVER, port), SegmentKind::FinAck, 8);
            }
            wire.pass(100);
        }
        assert_eq!(wire.scanners(), ["192.0.2.1"], "{ports} ports");
    }
}

#[test]
fn failures_of_a_large_network_are_excused_for_hours() {
    let mut wire = Wire::new();
    for number in 0..7200u16 {
        wire.pass(1000);
        if number % 33 == 20 {
            wire.refused("192.0.2.1", SERVER, 20_000 + number);
        } else {
            wire.visit("192.0.2.1", SERVER, 443);
        }
    }
    assert_eq!(wire.scanners(), Vec::<String>::new());
}

/// The source makes a hundred honest connections a second. A SYN scanner earns no credit among them. A scanner
/// with complete connections reaches only as many ports as are excused per hour.
#[test]
fn scanner_cannot_hide_among_honest_connections_for_long() {
    for (crafted, tries_a_second, at_most) in [(true, 1, 4), (false, 20, 50), (false, 2, 520)] {
        let mut wire = Wire::new();
        let mut tried = 0;
        'hour: for _ in 0..3600 {
            for _ in 0..100 {
                wire.crafted = false;
                wire.visit("192.0.2.2", SERVER, 443);
            }
            wire.crafted = crafted;
            for _ in 0..tries_a_second {
                tried += 1;
                wire.refused("192.0.2.2", SERVER, 1000 + tried);
                if !wire.found.is_empty() {
                    break 'hour;
                }
            }
            wire.pass(1000);
        }
        assert_eq!(wire.scanners(), ["192.0.2.2"]);
        assert!(tried <= at_most, "{tried} ports, {tries_a_second} a second");
    }
}

#[test]
fn clients_that_retry_after_a_restart_are_no_scanners() {
    let mut wire = Wire::of_the_server();
    wire.listen(&[25, 80, 143, 587, 993]);
    // A dead port that was never open.
    for round in 0..10 {
        for client in 1..=200 {
            wire.refused(&format!("203.0.113.{client}"), SERVER, 8443);
        }
        wire.live(2 + round);
    }
    // All services stop. The capture shows no connection to them.
    wire.listen(&[]);
    for client in 1..=200 {
        for port in [25, 143, 587, 993] {
            wire.refused(&format!("203.0.113.{client}"), SERVER, port);
        }
    }
    assert_eq!(wire.scanners(), Vec::<String>::new());
}

/// A load balancer behaves like a connect scan, but repeatedly.
#[test]
fn load_balancer_with_a_dead_service_is_no_scanner() {
    for seconds in [2, 10, 30] {
        let mut wire = Wire::new();
        for _ in 0..100 {
            (0..8).for_each(|port| wire.connect_without_data("192.0.2.1", SERVER, 8080 + port));
            (0..2).for_each(|port| wire.refused("192.0.2.1", SERVER, 9000 + port));
            wire.live(seconds);
        }
        assert_eq!(wire.found, [], "each {seconds} s");
    }
}

#[test]
fn hundreds_of_ftp_transfers_are_not_reported() {
    let mut wire = Wire::new();
    for number in 0..1000u16 {
        let (from, port) = (wire.syn("192.0.2.1", SERVER, 20_000 + number), 20_000 + number);
        wire.send((SERVER, port), ("192.0.2.1", from), SegmentKind::SynAck, 0);
        // A download or an upload.
        if number % 2 == 0 {
            wire.send((SERVER, port), ("192.0.2.1", from), SegmentKind::FinAck, 99);
            wire.send(("192.0.2.1", from), (SERVER, port), SegmentKind::FinAck, 8);
        } else {
            wire.send(("192.0.2.1", from), (SERVER, port), SegmentKind::FinAck, 99);
        }
        wire.pass(20);
    }
    assert_eq!(wire.found, []);
}

/// A browser tries IPv6 first, on which no service listens.
#[test]
fn port_open_on_one_address_is_open_on_all() {
    let mut wire = Wire::of_the_server();
    wire.host = Host::with_addresses(
        [SERVER, "2001:db8::1"].map(|a| IpNet::from(a.parse::<IpAddr>().unwrap())),
    );
    for port in [80, 443, 8080, 8443, 9090] {
        wire.refused("2001:db8:9::1", "2001:db8::1", port);
        wire.visit("192.0.2.1", SERVER, port);
    }
    assert_eq!(wire.found, []);
    wire.crafted = true;
    for port in 1..=4 {
        wire.refused("2001:db8:9::1", "2001:db8::1", port);
    }
    assert_eq!(wire.scanners(), ["2001:db8:9::"]);
}

/// The monitoring host connects once a minute and leaves when the server sends its greeting.
#[test]
fn monitoring_host_that_receives_greetings_is_no_scanner() {
    for (acknowledged, expected) in [(12, 0), (1, 1)] {
        let mut wire = Wire { acknowledged, ..Wire::new() };
        (0..8).for_each(|port| wire.connect_without_data("192.0.2.1", SERVER, 21 + port));
        (0..2).for_each(|port| wire.refused("192.0.2.1", SERVER, 3306 + port));
        wire.live(91);
        assert_eq!(wire.scanners().len(), expected, "received {} bytes", acknowledged - 1);
    }
}

/// One in four hosts of a mail server is gone. A source that finds no live host, or only the same one, is a
/// scanner.
#[test]
fn source_that_finds_most_hosts_alive_is_no_sweep() {
    for (alive, expected) in [(400, vec![]), (1, vec![ScanKind::Sweep]), (0, vec![ScanKind::Sweep])]
    {
        let mut wire = Wire::new();
        for number in 0..400 {
            let host = |number: u32| format!("198.51.{}.{}", 100 + number / 250, number % 250);
            if number % 4 == 0 {
                // Each dead host is retried later.
                for earlier in [0, 16, 32, 64] {
                    wire.refused("192.0.2.1", &host(number - number.min(earlier)), 25);
                }
            } else if alive > 0 {
                wire.visit("192.0.2.1", &host(400 + number % alive), 25);
            }
            wire.pass(500);
        }
        let new = wire.found.iter().filter(|scan| !scan.continued);
        let kinds: Vec<ScanKind> = new.map(|scan| scan.kind).collect();
        assert_eq!(kinds, expected, "{alive} hosts are alive");
    }
}

/// The first SYN or its reply is lost: the client repeats the SYN, and the server replies again.
#[test]
fn client_that_repeats_its_syn_is_not_half_open() {
    let mut wire = Wire::new();
    for port in 1..=10 {
        let from = wire.syn("192.0.2.1", SERVER, port);
        wire.send((SERVER, port), ("192.0.2.1", from), SegmentKind::SynAck, 0);
        wire.pass(1010);
        wire.send(("192.0.2.1", from), (SERVER, port), SegmentKind::Syn, 7);
        wire.send((SERVER, port), ("192.0.2.1", from), SegmentKind::SynAck, 0);
    }
    assert_eq!(wire.found, []);
}

/// Ports of this host are forwarded to another host, 30 ms away. The first reply shows that.
#[test]
fn ports_forwarded_to_a_distant_host_are_open() {
    let mut wire = Wire::of_the_server();
    let ask = |wire: &mut Wire, ports: std::ops::Range<u16>| {
        let asked: Vec<_> = ports.map(|p| (wire.syn("192.0.2.1", SERVER, p), p)).collect();
        wire.pass(30);
        for (from, port) in asked {
            wire.send((SERVER, port), ("192.0.2.1", from), SegmentKind::SynAck, 0);
        }
    };
    ask(&mut wire, 2000..2001);
    ask(&mut wire, 2001..2021);
    assert_eq!(wire.found, []);
}

/// The set-up of a mail client guesses ports. Then the client uses what it has found, and the scanner does not.
#[test]
fn wizard_that_uses_what_it_finds_is_no_scanner() {
    for (open, uses, expected) in
        [(&[993, 587][..], true, 0), (&[993], true, 0), (&[993, 587], false, 1), (&[], true, 1)]
    {
        let mut wire = Wire::new();
        for port in [143, 993, 110, 995, 587, 465, 25] {
            if !open.contains(&port) {
                wire.refused("192.0.2.1", SERVER, port);
            } else if uses {
                wire.visit("192.0.2.1", SERVER, port);
            } else {
                wire.connect_without_data("192.0.2.1", SERVER, port);
            }
            wire.pass(20);
        }
        wire.live(91);
        assert_eq!(wire.scanners().len(), expected, "open: {open:?}, used: {uses}");
    }
}

/// The services are there after a while, or never. A scanner tries its ports once or twice.
#[test]
fn program_that_waits_for_its_services_is_no_scanner() {
    for (each, tries, expected) in [(1, 80, 0), (2, 12, 0), (20, 200, 0), (1, 1, 1), (1, 2, 1)] {
        let mut wire = Wire::new();
        for _ in 0..tries {
            (0..6).for_each(|port| wire.refused("192.0.2.1", SERVER, 5432 + port));
            wire.live(each);
        }
        wire.live(91);
        assert_eq!(wire.scanners().len(), expected, "{tries} tries, one in {each} s");
    }
    let mut wire = Wire::new();
    (0..6).for_each(|port| wire.refused("192.0.2.1", SERVER, 5432 + port));
    wire.live(50);
    (0..3).for_each(|port| wire.visit("192.0.2.1", SERVER, 5432 + port));
    wire.live(91);
    assert_eq!(wire.scanners(), Vec::<String>::new(), "three of the services have come");
}

/// A monitoring host during an outage of three days. It was refused, or received no reply.
#[test]
fn ports_that_a_source_has_used_stay_known_for_a_day_after_each_try() {
    for refused in [true, false] {
        let mut wire = Wire::new();
        let ports = [80, 443, 25, 993, 22, 5432, 6379, 8080, 9090];
        for port in ports {
            wire.visit("192.0.2.1", SERVER, port);
        }
        for _ in 0..3 * 24 * 2 {
            for port in ports {
                if refused {
                    wire.refused("192.0.2.1", SERVER, port);
                } else {
                    wire.syn("192.0.2.1", SERVER, port);
                }
            }
            // Others receive replies.
            wire.visit("192.0.2.9", SERVER, 1);
            wire.pass(1_800_000);
        }
        assert_eq!(wire.scanners(), Vec::<String>::new(), "refused: {refused}");
        wire.pass(86_400_000);
        for port in ports {
            wire.refused("192.0.2.1", SERVER, port);
        }
        assert_eq!(wire.scanners(), ["192.0.2.1"], "after a day without a try");
    }
}

/// A gateway: a backup server calls on computers that are switched off, or a branch is cut off.
#[test]
fn hosts_that_a_source_has_used_are_no_sweep() {
    for (used, expected) in [(true, 0), (false, 1)] {
        let mut wire = Wire::new();
        let hosts: Vec<String> = (1..=40).map(|number| format!("198.51.100.{number}")).collect();
        for host in hosts.iter().filter(|_| used) {
            wire.visit("192.0.2.1", host, 445);
        }
        wire.pass(7_200_000);
        wire.visit("192.0.2.9", SERVER, 443);
        for host in &hosts {
            wire.syn("192.0.2.1", host, 445);
            wire.live(2);
        }
        assert_eq!(wire.scanners().len(), expected, "used: {used}");
    }
}

/// A load balancer is taken out of service after some checks. One of its services is down.
#[test]
fn load_balancer_that_ends_is_no_scanner() {
    for (seconds, checks, expected) in [(60, 7, 0), (85, 2, 0), (25, 7, 0), (60, 1, 1)] {
        let mut wire = Wire::new();
        for _ in 0..checks {
            (0..5).for_each(|port| wire.connect_without_data("192.0.2.1", SERVER, 8080 + port));
            wire.refused("192.0.2.1", SERVER, 8085);
            wire.live(seconds);
        }
        wire.live(200);
        assert_eq!(wire.scanners().len(), expected, "each {seconds} s, {checks} checks");
    }
}

/// The client has given up when the reply comes, and its system refuses the reply. So does that of a scanner.
#[test]
fn reply_that_comes_too_late_is_no_half_open_scan() {
    for (millis, crafted, expected) in
        [(1250, false, 0), (2200, false, 0), (950, false, 0), (1250, true, 1), (100, false, 1)]
    {
        let mut wire = Wire { crafted, ..Wire::new() };
        for port in 1..=5 {
            let from = wire.syn("192.0.2.1", SERVER, port);
            wire.pass(millis);
            wire.send((SERVER, port), ("192.0.2.1", from), SegmentKind::SynAck, 0);
            wire.send(("192.0.2.1", from), (SERVER, port), SegmentKind::Reset, 8);
        }
        wire.live(91);
        assert_eq!(wire.scanners().len(), expected, "{millis} ms, crafted: {crafted}");
    }
}

/// Users behind one address go on with their connections to a server that was restarted.
#[test]
fn forgotten_connections_of_used_services_are_no_scan() {
    for (used, expected) in [(true, 0), (false, 1)] {
        let mut wire = Wire::new();
        for port in (1..=12).filter(|_| used) {
            wire.visit("192.0.2.1", SERVER, port);
        }
        for port in 1..=12 {
            wire.send((SERVER, port), ("192.0.2.1", 50_000 + port), SegmentKind::Reset, 0);
            wire.pass(1000);
        }
        assert_eq!(wire.scanners().len(), expected, "used: {used}");
    }
}

/// The server connects from port 20, as its client has asked, and the firewall of the client drops that.
#[test]
fn data_connections_of_an_ftp_session_are_no_probes() {
    let client = SERVER;
    for (own, session, forged, expected) in [
        (true, true, false, 0),
        (true, true, true, 1),
        (true, false, false, 1),
        (false, true, false, 0),
        (false, false, false, 1),
    ] {
        let mut wire = if own { Wire::of_the_server() } else { Wire::new() };
        wire.sides = true;
        if session {
            let from = 50_000;
            let by = if forged { 2 } else { 1 };
            wire.send_by(by, (client, from), ("192.0.2.1", 21), SegmentKind::Syn, 7);
            wire.send(("192.0.2.1", 21), (client, from), SegmentKind::SynAck, 0);
            wire.live(4);
        }
        for port in 0..12 {
            wire.send(("192.0.2.1", 20), (client, 51_000 + port), SegmentKind::Syn, 7);
            wire.live(2);
        }
        assert_eq!(wire.scanners().len(), expected, "{own} {session} {forged}");
    }
}

/// A server replies to SYNs that were forged in the name of this host, whose system refuses that.
#[test]
fn server_that_replies_to_forged_syns_is_no_scanner() {
    let mut wire = Wire::of_the_server();
    for port in 700..800 {
        wire.send(("192.0.2.1", 443), (SERVER, port), SegmentKind::SynAck, 5);
        wire.send((SERVER, port), ("192.0.2.1", 443), SegmentKind::Reset, 8);
        wire.pass(100);
    }
    assert_eq!(wire.found, []);
}
