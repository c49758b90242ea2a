//! Observe mode: scans are reported and nothing is blocked.

use serde_json::json;

use crate::kernel::Rules;
use crate::lab::{ATTACKER, Lab, OPEN_PORT, VICTIM};
use crate::service::Start;

#[test]
fn observer_reports_scans_and_does_not_touch_the_firewall() {
    let lab = Lab::new();
    let mut service = Start::on("eth0").flag("--observe").begin(&lab).await_ready();
    lab.assert_untouched();
    assert_eq!(lab.bus.property("State"), ("s".to_owned(), json!("observing")));
    assert_eq!(lab.bus.property("Backend"), ("s".to_owned(), json!("none")));

    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line(&format!("vertical port scan by {ATTACKER} on {VICTIM}"));
    service
        .await_line(&format!("did not block {ATTACKER}: observing only (block.enabled = false)"));
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
    assert_eq!(lab.bus.list(), []);
    assert_eq!(lab.metric(r#"tcptracker_scans_total{kind="vertical"}"#), 1);
    assert_eq!(lab.metric(r#"tcptracker_blocks_total{cause="scan"}"#), 0);
    assert_eq!(lab.metric(r#"tcptracker_state{state="observing"}"#), 1);
    assert_eq!(lab.victim.http_get(8081, "/health").0, 200, "observing is not degraded");
    lab.assert_untouched();
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn block_request_fails_and_state_stays_observing() {
    let lab = Lab::new();
    let mut service = Start::on("eth0").flag("--observe").begin(&lab).await_ready();
    let sentence = "cannot block: this instance only observes; set block.enabled = true and start it \
                    without --observe\n";
    let refused = lab.cli("block 10.77.0.1");
    assert_eq!((refused.code, refused.err), (Some(1), format!("tcptracker: {sentence}")));
    assert_eq!(lab.bus.property("State").1, "observing");
    assert_eq!(lab.victim.http_get(8081, "/health").0, 200);
    // With several instances the error names the interface.
    lab.second_link();
    let mut enforcer = Start::on("eth1").begin(&lab).await_ready();
    let partly = lab.cli("block 10.77.0.1");
    assert_eq!((partly.code, partly.err), (Some(1), format!("tcptracker: eth0: {sentence}")));
    assert_eq!(partly.out, "blocked 10.77.0.1 on eth1 until unblocked\n");
    assert_eq!(enforcer.stop().code(), Some(0));
    assert_eq!(service.stop().code(), Some(0));
}

/// Otherwise the rule of the dead instance would stay forever.
#[test]
fn observer_removes_rules_of_a_crashed_enforcer() {
    let lab = Lab::new();
    // Whichever backend is configured for the observer.
    for backend in ["ipset", "iptables"] {
        let mut enforcer = lab.start();
        lab.bus.call("eth0", &["Block", "sts", "10.77.0.1", "0", "left behind"]).ok();
        enforcer.crash();
        Rules::of(&lab.victim).assert_enforced_for(&["eth0"]);
        lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);

        let observer = Start::on("eth0").flag("--observe");
        let observer = observer.env("TCPTRACKER_FIREWALL__BACKEND", backend);
        let mut observer = observer.begin(&lab).await_ready();
        lab.assert_untouched();
        lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
        assert_eq!(observer.stop().code(), Some(0));
    }
}
