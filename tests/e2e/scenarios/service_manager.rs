//! Notifications to the service manager: readiness, watchdog, stop.

use std::time::Duration;

use rustix::process::Signal;

use crate::frames::{Tags, send_syns};
use crate::kernel::Rules;
use crate::lab::{ATTACKER, Lab, OPEN_PORT, VICTIM};
use crate::service::{Service, Start};
use crate::tools::await_that;

#[test]
fn ready_is_sent_when_everything_works_and_stopping_at_the_stop() {
    for signal in [Signal::TERM, Signal::INT] {
        let lab = Lab::new();
        let mut service = Start::on("eth0").begin(&lab);
        service.await_notification("READY=1");
        // Everything works immediately after READY=1.
        lab.attacker.nmap("-sS -p 1-10", VICTIM);
        assert!(lab.bus.has("org.tcptracker.Tracker1.eth0"));
        Rules::of(&lab.victim).assert_enforced_for(&["eth0"]);
        assert_eq!(lab.victim.http_get(8081, "/health").0, 200);
        service.await_line(&format!("WARN blocked {ATTACKER}"));
        assert_eq!(
            service.await_notification("STATUS="),
            "STATUS=watching eth0, enforcing, 0 blocked"
        );
        service.await_notification("STATUS=watching eth0, enforcing, 1 blocked");

        assert_eq!(service.end_by(signal).code(), Some(0));
        service.await_notification("STOPPING=1");
        let name = if signal == Signal::TERM { "SIGTERM" } else { "SIGINT" };
        service.await_line(&format!("stopped by {name}"));
        lab.assert_untouched();
    }
}

/// A failed start must not send READY=1. `systemctl status` shows the error.
#[test]
fn failed_start_sends_only_its_error() {
    let lab = Lab::new();
    let mut service =
        Start::on("eth0").env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus").begin(&lab);
    assert_eq!(service.await_end().code(), Some(1));
    let notifications = service.notifications();
    assert_eq!(notifications.len(), 1, "{notifications:?}");
    assert!(
        notifications[0].starts_with("STATUS=cannot reach the system bus"),
        "{notifications:?}"
    );
}

/// A log without a reader blocks the journal thread. The other threads continue, and the service
/// stops feeding the watchdog.
#[test]
fn watchdog_is_not_fed_while_a_thread_hangs() {
    let lab = Lab::new();
    let mut service = Start::on("eth0")
        .env("WATCHDOG_USEC", "3000000")
        .env("TCPTRACKER_LOG__RATE", "100000")
        .env("TCPTRACKER_LOG__LEVEL", "debug")
        .with_unread_log()
        .begin(&lab)
        .await_ready();
    let await_feeds = |service: &mut Service, times: usize| {
        let so_far =
            service.notifications().iter().filter(|notice| *notice == "WATCHDOG=1").count();
        service.await_notifications("WATCHDOG=1", so_far + times);
    };
    await_feeds(&mut service, 3);

    // More lines than the pipe holds, and fewer than the journal queue holds.
    send_syns(&lab, Tags::None, std::iter::repeat_n(OPEN_PORT, 2000));
    assert!(
        service.stops_notifying("WATCHDOG=1", Duration::from_secs(4)),
        "the watchdog was fed although a thread hung"
    );
    // Capture, detector, firewall and bus do not wait for the journal.
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    await_that("the scanner is blocked", || lab.bus.list().len() == 1);
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    assert_eq!(lab.metric(r#"tcptracker_blocks_total{cause="scan"}"#), 1);

    service.read_log();
    service.await_line("threads not responding: journal");
    await_feeds(&mut service, 2);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}
