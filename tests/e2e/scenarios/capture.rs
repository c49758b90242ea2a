//! Capture of VLAN-tagged frames and outbound connections.

use std::net::{SocketAddr, TcpStream};

use crate::frames::{Tags, send_syns, send_syns_v6};
use crate::lab::{ATTACKER, ATTACKER_V6, Lab, OPEN_PORT, VICTIM};
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
