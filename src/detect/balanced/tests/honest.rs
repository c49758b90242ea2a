//! Who is no scanner, and who is one all the same.

use super::*;

#[test]
fn a_late_answer_takes_back_what_was_held_against_its_client() {
    let mut wire = Wire::new();
    for port in 1..=12 {
        let from = wire.syn("192.0.2.1", SERVER, port);
        wire.pass(1500);
        wire.send((SERVER, port), ("192.0.2.1", from), SegmentKind::SynAck, 0);
    }
    assert_eq!(wire.scanners(), Vec::<String>::new());
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
}

/// It was busy before it was watched: some have erred before a connection is over.
#[test]
fn a_large_network_errs_from_the_first_second() {
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
        assert_eq!(wire.scanners(), expected, "dropped: {dropped}");
    }
}

/// Programs behind one address go on trying what has never been there, beside their work.
#[test]
fn dead_ports_are_tried_over_and_over() {
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

/// Connections on which nothing is said: a monitoring host's, or such as are made to be forgiven.
#[test]
fn nobody_is_forgiven_for_saying_nothing_over_and_over() {
    for (ports, expected) in [(20, vec![]), (1, vec!["192.0.2.1"])] {
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
        assert_eq!(wire.scanners(), expected, "{ports} ports");
    }
}

#[test]
fn a_large_network_errs_for_hours() {
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

/// Among a hundred honest connections a second of the same source: a SYN scanner gets nowhere, and whoever
/// makes whole connections no further than an hour's forgiveness.
#[test]
fn nobody_hides_among_the_connections_of_others_for_long() {
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
fn a_restart_makes_no_scanners_of_those_who_try_again() {
    let mut wire = Wire::of_the_server();
    wire.listen(&[25, 80, 143, 587, 993]);
    // One dead port that was never open, tried over and over.
    for round in 0..10 {
        for client in 1..=200 {
            wire.refused(&format!("203.0.113.{client}"), SERVER, 8443);
        }
        wire.live(2 + round);
    }
    // Everything is stopped: nobody has connected to it within sight.
    wire.listen(&[]);
    for client in 1..=200 {
        for port in [25, 143, 587, 993] {
            wire.refused(&format!("203.0.113.{client}"), SERVER, port);
        }
    }
    assert_eq!(wire.scanners(), Vec::<String>::new());
}

/// It does as a connect scan, again and again.
#[test]
fn a_load_balancer_with_a_dead_service_is_no_scanner() {
    for seconds in [2, 10, 30] {
        let mut wire = Wire::new();
        for _ in 0..100 {
            (0..8).for_each(|port| wire.sound("192.0.2.1", SERVER, 8080 + port));
            (0..2).for_each(|port| wire.refused("192.0.2.1", SERVER, 9000 + port));
            wire.live(seconds);
        }
        assert_eq!(wire.found, [], "each {seconds} s");
    }
}

#[test]
fn files_by_the_hundred_are_not_even_reported() {
    let mut wire = Wire::new();
    for number in 0..1000u16 {
        let (from, port) = (wire.syn("192.0.2.1", SERVER, 20_000 + number), 20_000 + number);
        wire.send((SERVER, port), ("192.0.2.1", from), SegmentKind::SynAck, 0);
        // Fetched, or brought.
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

/// A browser tries IPv6 first, where nobody listens.
#[test]
fn a_host_open_by_one_of_its_addresses_is_open() {
    let mut wire = Wire::of_the_server();
    wire.host = Host::with_addresses(
        [SERVER, "2001:db8::1"].map(|a| IpNet::from(a.parse::<IpAddr>().unwrap())),
    );
    for port in [80, 443, 8080, 8443, 9090] {
        wire.refused("2001:db8:9::1", "2001:db8::1", port);
        wire.visit("192.0.2.1", SERVER, port);
    }
    assert_eq!(wire.found, []);
    for port in 1..=4 {
        wire.refused("2001:db8:9::1", "2001:db8::1", port);
    }
    assert_eq!(wire.scanners(), ["2001:db8:9::"]);
}

/// It looks once a minute, and goes as soon as it is greeted.
#[test]
fn a_monitoring_host_that_leaves_greetings_unread_is_no_scanner() {
    for (heard, expected) in [(12, 0), (1, 1)] {
        let mut wire = Wire { heard, ..Wire::new() };
        (0..8).for_each(|port| wire.sound("192.0.2.1", SERVER, 21 + port));
        (0..2).for_each(|port| wire.refused("192.0.2.1", SERVER, 3306 + port));
        wire.live(60);
        assert_eq!(wire.scanners().len(), expected, "heard {} bytes", heard - 1);
    }
}

/// Of those a mail server sends to one in four is gone. Somebody who finds nobody else, or the same one over and
/// over, is none.
#[test]
fn whoever_finds_most_hosts_alive_does_not_sweep() {
    for (alive, expected) in [(400, vec![]), (1, vec![ScanKind::Sweep]), (0, vec![ScanKind::Sweep])]
    {
        let mut wire = Wire::new();
        for number in 0..400 {
            let host = |number: u32| format!("198.51.{}.{}", 100 + number / 250, number % 250);
            if number % 4 == 0 {
                // Each is tried again later.
                for earlier in [0, 16, 32, 64] {
                    wire.refused("192.0.2.1", &host(number - number.min(earlier)), 25);
                }
            } else if alive > 0 {
                wire.visit("192.0.2.1", &host(400 + number % alive), 25);
            }
            wire.pass(500);
        }
        let kinds: Vec<ScanKind> = wire.found.iter().map(|scan| scan.kind).collect();
        assert_eq!(kinds, expected, "{alive} hosts are alive");
    }
}

/// The first question, or its answer, is lost on the way: the client asks again, and is answered again.
#[test]
fn a_client_that_asks_again_leaves_nothing_half_open() {
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

/// Ports of this host's that are forwarded to another, 30 ms away. The first answer tells.
#[test]
fn ports_forwarded_to_somewhere_far_are_open() {
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
