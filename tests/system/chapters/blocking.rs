//! A scanner is blocked, reported and unblocked.

use super::{UNIT, message};
use crate::site::{MACHINE, SCANNER, Site};

/// The maximum exposure level of `systemd-analyze security`, on a scale to 10.
const EXPOSURE: f64 = 2.0;

pub fn enable_and_start(site: &Site) {
    site.machine.sh("systemctl enable --now tcptracker@eth0");
    site.assert_active(UNIT);
    assert_eq!(site.machine.sh("systemctl is-enabled tcptracker@eth0"), "enabled\n");
    assert_eq!(site.property(UNIT, "StatusText"), "watching eth0, enforcing, 0 blocked");
    let table = site.machine.sh(&format!("systemd-analyze security --no-pager {UNIT}"));
    let overall = table.lines().find(|line| line.contains("Overall exposure level")).unwrap();
    let exposure = overall.rsplit(": ").next().unwrap().split(' ').next().unwrap();
    assert!(exposure.parse::<f64>().unwrap() <= EXPOSURE, "{table}");
}

pub fn scanner_is_blocked(site: &mut Site) {
    site.assert_let_in();
    site.scanner.nmap("-sS --top-ports 100", MACHINE);
    site.await_message(message::BLOCKED, &[("TCPTRACKER_SOURCE", &SCANNER.to_string())]);
    site.assert_shut_out();
    assert_eq!(site.blocked("eth0"), [SCANNER.to_string()]);
}

/// Journal, message catalog and metrics.
pub fn block_is_reported(site: &mut Site) {
    let scanner = SCANNER.to_string();
    let of_kind = |kind: &str| {
        let of_source = format!("MESSAGE_ID={kind} TCPTRACKER_SOURCE={scanner}");
        let entries =
            site.machine.sh(&format!("journalctl -u tcptracker@eth0 -o json {of_source}"));
        serde_json::from_str::<serde_json::Value>(entries.lines().next().expect("an entry"))
            .unwrap()
    };
    let blocked = of_kind(message::BLOCKED);
    assert_eq!(blocked["TCPTRACKER_INTERFACE"], "eth0");
    assert_eq!(blocked["TCPTRACKER_SOURCE"], *scanner);
    assert!(blocked["TCPTRACKER_UNTIL"].as_str().unwrap().parse::<u64>().unwrap() > 0);
    assert!(blocked["TCPTRACKER_REASON"].as_str().unwrap().starts_with("vertical scan: ports "));
    assert_eq!(blocked["SYSLOG_IDENTIFIER"], "tcptracker");
    assert_eq!(blocked["_HOSTNAME"], "web1");
    let scan = of_kind(message::SCAN);
    assert_eq!(scan["TCPTRACKER_DESTINATION"], *MACHINE.to_string());
    assert_eq!(scan["TCPTRACKER_KIND"], "vertical");
    assert_eq!(scan["TCPTRACKER_PORTS"].as_str().unwrap().split(',').count(), 4);

    let explained = site.machine.sh("journalctl -u tcptracker@eth0 -x --no-pager");
    assert!(explained.contains(&format!("Subject: Port scan by {scanner}")), "{explained}");
    assert!(explained.contains("Defined-By: tcptracker"), "{explained}");
    // The example of the README.
    let of_source = format!("journalctl -t tcptracker TCPTRACKER_SOURCE={scanner} -g 'scan|block'");
    assert!(site.machine.sh(&of_source).contains(&format!("blocked {scanner} for 1h")));

    let (code, health) = site.machine.network().http_get(8081, "/health");
    assert_eq!(
        (code, health.as_str()),
        (200, r#"{"message":"healthy","statusText":"OK","statusCode":200}"#)
    );
    let (code, metrics) = site.machine.network().http_get(8081, "/metrics");
    assert_eq!(code, 200);
    for line in ["tcptracker_blocked{family=\"ipv4\"} 1", "tcptracker_enforced{family=\"ipv4\"} 1"]
    {
        assert!(metrics.lines().any(|metric| metric == line), "no {line} in {metrics}");
    }
}

pub fn bus_call_unblocks(site: &mut Site) {
    site.mark_journal();
    let bus = "org.tcptracker.Tracker1.eth0 /org/tcptracker/Tracker1/eth0 org.tcptracker.Tracker1";
    let listed = site.machine.sh(&format!("busctl call {bus} List"));
    assert!(listed.starts_with(&format!("a(sttus) 1 \"{SCANNER}\" ")), "{listed}");
    site.machine.sh(&format!("busctl call {bus} Unblock s {SCANNER}"));
    assert_eq!(site.machine.sh(&format!("busctl call {bus} List")), "a(sttus) 0\n");
    let by_root = [("TCPTRACKER_SOURCE", &*SCANNER.to_string()), ("TCPTRACKER_UID", "0")];
    site.await_message(message::UNBLOCKED, &by_root);
    site.assert_let_in();
}
