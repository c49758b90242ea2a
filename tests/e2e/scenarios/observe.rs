//! Observing: everything is reported, nothing is done.

use serde_json::json;

use crate::kernel::Rules;
use crate::lab::{ATTACKER, Lab, OPEN_PORT, VICTIM};
use crate::service::Start;

#[test]
fn an_observer_reports_and_leaves_the_firewall_alone() {
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
    assert_eq!(lab.victim.http_get(8081, "/health").0, 200, "observing is no illness");
    lab.assert_untouched();
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn asking_an_observer_to_block_does_not_make_it_ill() {
    let lab = Lab::new();
    let mut service = Start::on("eth0").flag("--observe").begin(&lab).await_ready();
    let sentence = "this instance only observes; to let it block, set block.enabled = true and start it \
                    without --observe\n";
    let refused = lab.cli("block 10.77.0.1");
    assert_eq!((refused.code, refused.err), (Some(1), format!("tcptracker: {sentence}")));
    assert_eq!(lab.bus.property("State").1, "observing");
    assert_eq!(lab.victim.http_get(8081, "/health").0, 200);
    // Beside one that blocks it is named.
    lab.second_link();
    let mut enforcer = Start::on("eth1").begin(&lab).await_ready();
    let partly = lab.cli("block 10.77.0.1");
    assert_eq!((partly.code, partly.err), (Some(1), format!("tcptracker: eth0: {sentence}")));
    assert_eq!(partly.out, "blocked 10.77.0.1 on eth1 until unblocked\n");
    assert_eq!(enforcer.stop().code(), Some(0));
    assert_eq!(service.stop().code(), Some(0));
}

/// Otherwise nobody would lift the blocks of the dead instance, and its rule would stay for ever.
#[test]
fn an_observer_removes_what_a_dead_enforcer_has_left() {
    let lab = Lab::new();
    // Whatever backend it would have itself.
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
