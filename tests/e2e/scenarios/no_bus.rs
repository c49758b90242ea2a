//! Hosts without a system bus: containers, small appliances.

use crate::kernel::Rules;
use crate::lab::{ATTACKER, Lab, OPEN_PORT, VICTIM};
use crate::service::Start;

const NOWHERE: &str = "unix:path=/nonexistent/tcptracker-bus";

fn without_bus() -> Start {
    Start::on("eth0").env("DBUS_SYSTEM_BUS_ADDRESS", NOWHERE)
}

#[test]
fn missing_bus_error_names_bus_enabled() {
    let lab = Lab::new();
    let failed = lab.run_service(&without_bus());
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert_eq!(failed.err.lines().count(), 1, "{failed:?}");
    assert!(failed.err.starts_with("tcptracker: cannot reach the system bus ("), "{failed:?}");
    assert!(failed.err.ends_with("or run without it: bus.enabled = false\n"), "{failed:?}");
    lab.assert_untouched();
}

#[test]
fn instance_without_bus_blocks_and_holds_the_lock() {
    let lab = Lab::new();
    let start = without_bus().env("TCPTRACKER_BUS__ENABLED", "false");
    let mut service = start.begin(&lab).await_ready();
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line(&format!("WARN blocked {ATTACKER}"));
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    lab.bystander.assert_reaches(VICTIM, OPEN_PORT);
    assert_eq!(lab.metric(r#"tcptracker_blocks_total{cause="scan"}"#), 1);

    let second = lab.run_service(&start);
    assert_eq!(second.code, Some(1), "{second:?}");
    assert_eq!(
        second.err,
        "tcptracker: another tcptracker is running on eth0; stop it first: systemctl stop tcptracker@eth0\n"
    );
    Rules::of(&lab.victim).assert_enforced_for(&["eth0"]);
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);

    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
    // The lock was released.
    let mut next = start.begin(&lab).await_ready();
    assert_eq!(next.stop().code(), Some(0));
    lab.assert_untouched();
}
