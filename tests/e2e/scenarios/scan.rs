//! Scans of every common type, from the first probe to the unblock.

use std::net::IpAddr;

use crate::kernel::{Rules, remaining};
use crate::lab::{ATTACKER, ATTACKER_V6, Lab, OPEN_PORT, VICTIM, VICTIM_V6};
use crate::service::Service;
use crate::tools::unix_now;

/// Follows one scan through bus, kernel, metrics and log.
#[test]
fn fourth_port_blocks_and_unblock_ends_the_block() {
    let lab = Lab::new();
    let mut service = lab.start();
    Rules::of(&lab.victim).assert_enforced_for(&["eth0"]);

    // Repeated connections to 3 ports are not a scan.
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

    // D-Bus.
    let (_, since, until, offences, reason) = lab.bus.block_of(&ATTACKER);
    assert!((before..=after + 1).contains(&since), "{before} <= {since} <= {after}");
    assert_eq!((until, offences), (since + 3600, 1));
    // Ports are listed in the order of their last probe.
    assert_eq!(reason, format!("vertical scan: ports 22, 80, {OPEN_PORT}, 443"));
    assert_eq!(lab.bus.list().len(), 1);
    let as_text = lab.bus.call("eth0", &["List"]).ok();
    assert!(as_text.starts_with(&format!(r#"a(sttus) 1 "{ATTACKER}" {since} {until} 1 "#)));

    // The kernel: the timeout runs down.
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
    service.await_line(&format!("unblocked {ATTACKER}: by root (uid 0)"));

    // During the grace time the next scan is reported and not blocked.
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line(&format!("did not block {ATTACKER}: unblocked manually"));
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);

    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
    assert_eq!(service.lines_with(&format!("WARN blocked {ATTACKER}")).len(), 1);
    assert_eq!(service.lines_with(&format!("INFO unblocked {ATTACKER}")).len(), 1);
}

#[test]
fn connect_scan_is_blocked() {
    let lab = Lab::new();
    let service = lab.start();
    lab.attacker.nmap("-sT -p 1-20", VICTIM);
    assert_blocked(&lab, service, "vertical", [ATTACKER, VICTIM]);
}

#[test]
fn ipv6_scan_is_blocked() {
    let lab = Lab::new();
    let service = lab.start();
    lab.attacker.nmap("-sS -p 1-20", VICTIM_V6);
    // The block of the IPv6 address does not affect the attacker's IPv4 address.
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
    assert_blocked(&lab, service, "vertical", [ATTACKER_V6, VICTIM_V6]);
}

/// FIN, NULL and Xmas scans open no connections.
#[test]
fn stealth_scans_are_blocked() {
    for scan in ["-sF", "-sN", "-sX"] {
        let lab = Lab::new();
        let service = lab.start();
        lab.attacker.nmap(&format!("{scan} -p 1-20"), VICTIM);
        assert_blocked(&lab, service, "stealth", [ATTACKER, VICTIM]);
    }
}

/// Asserts that the scan was reported once and blocked, that the bystander is not affected, and
/// that the stop removes everything.
pub(super) fn assert_blocked(
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
