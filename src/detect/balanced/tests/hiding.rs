//! Scanners that hide, and those between the rules.

use super::*;

/// The scanner forges a reply of the server for each port, before its SYN or after it, of its own connection or
/// of another one. The wire shows from which side a segment comes, or it does not.
#[test]
fn forged_replies_hide_no_scan() {
    for (before, other, sides, refused) in [
        (true, true, false, true),
        (true, true, true, false),
        (true, false, true, false),
        (true, false, false, true),
        (false, false, true, false),
        (false, false, true, true),
        (false, false, false, true),
    ] {
        let mut wire = Wire { sides, ..Wire::of_a_scanner() };
        wire.visit("203.0.113.9", SERVER, 443);
        let router = if sides { 2 } else { 0 };
        for port in 1..=10 {
            let from = wire.next_port + 1;
            let client = if other { "203.0.113.1" } else { "192.0.2.1" };
            let forge = |wire: &mut Wire| {
                wire.send_by(router, (SERVER, port), (client, from), SegmentKind::SynAck, 77);
            };
            if before {
                forge(&mut wire);
            }
            wire.syn("192.0.2.1", SERVER, port);
            if !before {
                forge(&mut wire);
            }
            if refused {
                wire.acknowledged = 8;
                wire.send((SERVER, port), ("192.0.2.1", from), SegmentKind::ResetAck, 0);
                wire.acknowledged = 1;
            }
            wire.pass(100);
        }
        wire.live(5);
        let case = format!("before {before}, other {other}, sides {sides}, refused {refused}");
        assert_eq!(wire.scanners(), ["192.0.2.1"], "{case}");
    }
}

#[test]
fn ports_on_several_own_addresses_are_ports_of_one_host() {
    let own = ["198.51.100.1", "198.51.100.2", "198.51.100.3", "198.51.100.4"];
    for (same, expected) in [(false, 1), (true, 0)] {
        let addresses = own.map(|own| IpNet::from(own.parse::<IpAddr>().unwrap()));
        let mut wire = Wire { host: Host::with_addresses(addresses), ..Wire::of_a_scanner() };
        for (number, address) in (0..).zip(own) {
            (0..3).for_each(|port| {
                let port = if same { 8000 + port } else { 8000 + number * 3 + port };
                wire.refused("192.0.2.1", address, port);
            });
        }
        assert_eq!(wire.scanners().len(), expected, "the same ports: {same}");
        // The detector has to find the record again.
        let Some(scan) = wire.found.pop() else { continue };
        wire.found.clear();
        wire.detector.not_delivered(&scan);
        wire.refused("192.0.2.1", own[0], 7);
        assert_eq!(wire.found.len(), 1);
    }
}

/// The ports are open for the network of the host, which uses them, and a firewall drops the probes of others.
/// If nobody receives replies, the host is down.
#[test]
fn ports_that_are_open_for_others_only_count() {
    for (crafted, host_is_up, expected) in [(true, true, 1), (false, true, 1), (true, false, 0)] {
        let mut wire = Wire::new();
        for port in 1..=6 {
            wire.visit("198.51.100.9", SERVER, port);
        }
        wire.pass(1000);
        wire.crafted = crafted;
        for port in 1..=6 {
            wire.syn("192.0.2.1", SERVER, port);
        }
        wire.crafted = false;
        wire.live(5);
        if host_is_up {
            wire.visit("198.51.100.9", SERVER, 443);
        }
        wire.live(91);
        assert_eq!(wire.scanners().len(), expected, "crafted {crafted}, up {host_is_up}");
    }
}

/// A gateway: few ports of each host, or another port of each host.
#[test]
fn crafted_syns_to_many_hosts_are_a_sweep_on_any_ports() {
    for (ports, hosts, crafted, expected) in
        [(3, 25, true, 1), (1, 48, true, 1), (3, 9, true, 0), (1, 48, false, 0)]
    {
        let mut wire = Wire { crafted, ..Wire::new() };
        for host in 0..hosts {
            for port in 0..ports {
                let port = if ports == 1 { 20 + host } else { [22, 23, 80][port] };
                wire.refused("192.0.2.1", &format!("10.9.0.{host}"), port);
            }
        }
        let scans: Vec<_> = wire.found.iter().filter(|scan| !scan.continued).collect();
        assert_eq!(scans.len(), expected, "{ports} ports of {hosts} hosts: {scans:?}");
        assert!(scans.iter().all(|s| (s.kind, s.rule) == (ScanKind::Sweep, Rule::FailedTargets)));
        let Some(scan) = scans.first().copied().cloned() else { continue };
        wire.detector.not_delivered(&scan);
        wire.found.clear();
        wire.refused("192.0.2.1", "10.9.0.200", 22);
        assert_eq!(wire.found.len(), 1, "a lost scan is repeated");
    }
}

/// A worm guesses hosts by the connections of its system, and reaches none.
#[test]
fn slow_worm_that_reaches_no_host_is_a_sweep() {
    for (pause, reaches, expected) in [(12, false, 1), (120, false, 1), (12, true, 0)] {
        let mut wire = Wire::new();
        for number in 0..60u16 {
            // Somebody else receives replies.
            wire.visit("192.0.2.9", SERVER, 443);
            wire.refused("192.0.2.1", &format!("203.0.113.{number}"), 445);
            if reaches {
                wire.visit("192.0.2.1", "203.0.113.200", 445);
            }
            wire.live(pause);
        }
        assert_eq!(wire.scanners().len(), expected, "one in {pause} s, reaches {reaches}");
    }
}

#[test]
fn slow_ack_scan_is_found_within_an_hour() {
    for (pause, expected) in [(10, 1), (500, 1), (600, 0)] {
        let mut wire = Wire::new();
        for port in 20..40 {
            wire.send((SERVER, port), ("192.0.2.1", 40_125), SegmentKind::Reset, 0);
            wire.live(pause);
        }
        assert_eq!(wire.scanners().len(), expected, "a pause of {pause} s");
    }
}

/// The window lies between the probes, not between the verdicts about them.
#[test]
fn four_silent_ports_within_a_minute_are_a_scan() {
    for (millis, expected) in [(19_800, 1), (20_000, 0)] {
        let mut wire = Wire::of_a_scanner();
        for port in 1..=4 {
            wire.syn("192.0.2.1", SERVER, port);
            wire.pass(millis);
        }
        wire.live(2);
        assert_eq!(wire.scanners().len(), expected, "{millis} ms");
    }
}

/// SYNs of an operating system on up to seven ports are judged after 90 s, on eight ports at once.
#[test]
fn connect_scan_of_many_closed_ports_is_found_at_once() {
    for (ports, at_once, later) in [(3, 0, 0), (4, 0, 1), (7, 0, 1), (8, 1, 1)] {
        let mut wire = Wire::new();
        (1..=ports).for_each(|port| wire.refused("192.0.2.1", SERVER, port));
        assert_eq!(wire.scanners().len(), at_once, "{ports} ports");
        wire.live(89);
        assert_eq!(wire.scanners().len(), at_once, "{ports} ports");
        wire.live(1);
        assert_eq!(wire.scanners().len(), later, "{ports} ports");
    }
}
