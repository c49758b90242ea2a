//! Capture of VLAN-tagged frames and outbound connections.

use std::net::{SocketAddr, TcpStream};

use crate::frames::{BROADCAST, Tags, Wire, send_syns, send_syns_v6, syn};
use crate::lab::{ATTACKER, ATTACKER_V6, Lab, OPEN_PORT, VICTIM, VICTIM_V6};
use crate::tools::TIMEOUT;

#[test]
fn vlan_tagged_scans_are_detected() {
    let tagged = [
        (Tags::Vlan, false, ATTACKER),
        (Tags::QinQ, false, ATTACKER),
        (Tags::Vlan, true, ATTACKER_V6),
        (Tags::QinQ, true, ATTACKER_V6),
    ];
    for (tags, ipv6, attacker) in tagged {
        let lab = Lab::new();
        let mut service = lab.start();
        let send = if ipv6 { send_syns_v6 } else { send_syns };
        send(&lab, tags, 1..=3);
        service.await_lines("new inbound connection", 3);
        assert_eq!(lab.bus.list(), []);

        send(&lab, tags, 4..=4);
        service.await_line(&format!("WARN blocked {attacker} for 1h"));
        assert_eq!(lab.bus.block_of(&attacker).4, "vertical scan: ports 1, 2, 3, 4");
        assert_eq!(service.stop().code(), Some(0));
        lab.assert_untouched();
    }
}

/// Puts a destination options header of 800 bytes before the TCP header of an IPv6 frame.
fn with_long_header(mut frame: Vec<u8>) -> Vec<u8> {
    // Ethernet, and the length and the next header of IPv6.
    let (length, next, payload) = (14 + 4, 14 + 6, 14 + 40);
    let byte = |length: usize| u8::try_from(length).unwrap();
    let mut header = vec![frame[next], byte(800 / 8 - 1)];
    while header.len() < 800 {
        // PadN (RFC 8200, 4.2).
        let padding = byte((800 - header.len() - 2).min(255));
        header.extend([1, padding]);
        header.extend(std::iter::repeat_n(0, padding.into()));
    }
    frame[next] = 60;
    frame[length..length + 2].copy_from_slice(&(800_u16 + 20).to_be_bytes());
    frame.splice(payload..payload, header);
    frame
}

#[test]
fn whole_frames_and_short_ones_lead_to_one_scan_and_none_counts_twice() {
    let lab = Lab::new();
    let mut service = lab.start();
    let mut wire = Wire::of(&lab.attacker);
    for port in 1..=4 {
        let frame = syn(BROADCAST, ATTACKER_V6, VICTIM_V6, port);
        wire.send(&if port % 2 == 0 { with_long_header(frame) } else { frame });
    }
    service.await_line(&format!("WARN blocked {ATTACKER_V6} for 1h"));
    let reason = lab.bus.block_of(&ATTACKER_V6).4;
    // Of frames that arrive at once, one of either kind may be read first.
    let mut ports: Vec<_> =
        reason.split([' ', ',']).filter_map(|word| word.parse::<u16>().ok()).collect();
    ports.sort_unstable();
    assert_eq!(ports, [1, 2, 3, 4], "{reason}");
    assert_eq!(lab.metric("tcptracker_new_connections"), 4);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn outbound_connections_are_counted_and_never_block() {
    let lab = Lab::new();
    let mut service = lab.start();
    let ports = 1..=6u16;
    lab.victim.inside(|| {
        for port in ports.clone() {
            // The attacker refuses the connection.
            let _ = TcpStream::connect_timeout(&SocketAddr::new(ATTACKER, port), TIMEOUT);
        }
    });
    for port in ports {
        let line = service.await_line(&format!("-> {ATTACKER}:{port}"));
        assert!(line.contains(&format!("new outbound connection: {VICTIM}:")), "{line}");
    }
    let outbound = r#"tcptracker_connections_total{direction="outbound",family="ipv4"}"#;
    assert_eq!(lab.metric(outbound), 6);
    assert_eq!(lab.metric("tcptracker_new_connections"), 6);
    assert_eq!(lab.metric(r#"tcptracker_scans_total{kind="vertical"}"#), 0);
    assert_eq!(lab.bus.list(), []);
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);

    // The victim's connections do not count for the attacker, which now tries two ports.
    send_syns(&lab, Tags::None, [1, 2]);
    service.await_line(&format!("-> {VICTIM}:2"));
    assert_eq!(lab.bus.list(), []);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}
