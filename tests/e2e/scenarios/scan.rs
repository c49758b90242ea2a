//! A scan from its first probe to the release, by every common way of scanning.

use std::net::IpAddr;

use crate::kernel::{Rules, remaining};
use crate::lab::{ATTACKER, ATTACKER_V6, Lab, OPEN_PORT, VICTIM, VICTIM_V6};
use crate::service::Service;
use crate::tools::unix_now;

/// The story a user is told of one scanner, by all who tell it.
#[test]
fn the_fourth_port_blocks_and_unblocking_lets_in_again() {
    let lab = Lab::new();
    let mut service = lab.start();
    Rules::of(&lab.victim).assert_enforced_for(&["eth0"]);

    // Three ports, over and over: everybody may do that.
    for round in 1..=2 {
        for port in [OPEN_PORT, 22, 80] {
            lab.attacker.nmap(&format!("-sS -p {port}"), VICTIM);
            service.await_lines(&format!("-> {VICTIM}:{port}"), round);
        }
    }
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
    assert_eq!(lab.bus.list(), []);
    assert_eq!(service.lines_with("port scan by"), Vec::<String>::new());

    let before = unix_now();
    lab.attacker.nmap("-sS -p 443", VICTIM);
    service.await_line(&format!("blocked {ATTACKER} for 1h (offence 1)"));
    let after = unix_now();
    let remaining_at_first = remaining(&lab.victim, "tcptracker-eth0-v4", "10.77.0.1");
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    lab.bystander.assert_reaches(VICTIM, OPEN_PORT);

    // The bus.
    let (_, since, until, offences, reason) = lab.bus.block_of(&ATTACKER);
    assert!((before..=after + 1).contains(&since), "{before} <= {since} <= {after}");
    assert_eq!((until, offences), (since + 3600, 1));
    // The least recently tried first.
    assert_eq!(reason, format!("vertical scan: ports 22, 80, {OPEN_PORT}, 443"));
    assert_eq!(lab.bus.list().len(), 1);
    let as_text = lab.bus.call("eth0", &["List"]).ok();
    assert!(as_text.starts_with(&format!(r#"a(sttus) 1 "{ATTACKER}" {since} {until} 1 "#)));

    // The kernel: its own clock runs.
    let remaining_now = remaining(&lab.victim, "tcptracker-eth0-v4", "10.77.0.1");
    assert!(remaining_at_first <= 3600 && remaining_now >= 3500, "{remaining_now}");
    assert!(remaining_now < remaining_at_first, "{remaining_now} of {remaining_at_first}");

    // Metrics and log.
    assert_eq!(lab.metric(r#"tcptracker_scans_total{kind="vertical"}"#), 1);
    assert_eq!(lab.metric(r#"tcptracker_blocks_total{cause="scan"}"#), 1);
    assert_eq!(lab.metric(r#"tcptracker_blocked{family="ipv4"}"#), 1);
    assert_eq!(lab.metric(r#"tcptracker_enforced{family="ipv4"}"#), 1);
    assert_eq!(lab.metric("tcptracker_block_latency_seconds_count"), 1);
    let scans = service.lines_with("port scan by");
    let told = format!(
        "vertical port scan by {ATTACKER} on {VICTIM}: ports 22, 80, {OPEN_PORT}, 443, \
         more than 3 within 60s"
    );
    assert!(matches!(&scans[..], [one] if one.contains(&told)), "{scans:?}");

    assert_eq!(lab.bus.call("eth0", &["Unblock", "s", "10.77.0.1"]).ok(), "");
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
    assert_eq!(lab.bus.list(), []);
    assert_eq!(lab.metric(r#"tcptracker_unblocks_total{cause="manual"}"#), 1);
    assert_eq!(lab.metric(r#"tcptracker_blocked{family="ipv4"}"#), 0);
    service.await_line(&format!("unblocked {ATTACKER}: by uid 0"));

    // Unblocked by hand it stays so: its next scan is seen and forgiven.
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line(&format!("did not block {ATTACKER}: unblocked by hand"));
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);

    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
    assert_eq!(service.lines_with(&format!("WARN blocked {ATTACKER}")).len(), 1);
    assert_eq!(service.lines_with(&format!("INFO unblocked {ATTACKER}")).len(), 1);
}

#[test]
fn a_connect_scan_is_caught() {
    let lab = Lab::new();
    let service = lab.start();
    lab.attacker.nmap("-sT -p 1-20", VICTIM);
    assert_caught(&lab, service, "vertical", [ATTACKER, VICTIM]);
}

#[test]
fn a_scan_over_ipv6_is_caught() {
    let lab = Lab::new();
    let service = lab.start();
    lab.attacker.nmap("-sS -p 1-20", VICTIM_V6);
    // The attacker's IPv4 address is another one, of which nothing is known.
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
    assert_caught(&lab, service, "vertical", [ATTACKER_V6, VICTIM_V6]);
}

/// FIN, NULL and XMAS scans open no connection and are none.
#[test]
fn stealth_scans_are_caught() {
    for scan in ["-sF", "-sN", "-sX"] {
        let lab = Lab::new();
        let service = lab.start();
        lab.attacker.nmap(&format!("{scan} -p 1-20"), VICTIM);
        assert_caught(&lab, service, "stealth", [ATTACKER, VICTIM]);
    }
}

/// The story in short: seen once, blocked, shut out, nobody else harmed, gone with the service.
pub(super) fn assert_caught(
    lab: &Lab,
    mut service: Service,
    kind: &str,
    [attacker, victim]: [IpAddr; 2],
) {
    service.await_line(&format!("WARN blocked {attacker} for 1h (offence 1): {kind} scan: "));
    lab.attacker.assert_cannot_reach(victim, OPEN_PORT);
    lab.bystander.assert_reaches(victim, OPEN_PORT);
    let (_, since, until, ..) = lab.bus.block_of(&attacker);
    assert_eq!(until - since, 3600);
    assert_eq!(lab.metric(&format!("tcptracker_scans_total{{kind=\"{kind}\"}}")), 1);
    let scan = format!("{kind} port scan by {attacker} on {victim}: ports ");
    assert_eq!(service.lines_with(&scan).len(), 1);

    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}
