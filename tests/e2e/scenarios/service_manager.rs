//! Notifications to the service manager: readiness, watchdog, stop.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tcptracker::internals::{Effective, most_bytes};

use crate::frames::{SynTemplate, Tags, Wire, send_syns};
use crate::journal::Journal;
use crate::kernel::Rules;
use crate::lab::{ATTACKER, Lab, OPEN_PORT, VICTIM};
use crate::service::{Service, Start};
use crate::tools::{await_that, run};

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

const LOST: &str = r#"tcptracker_events_lost_total{where="journal"}"#;

/// How long the service may take to stop: two seconds for what does not read, and the rest for the
/// kernel.
const STOP: Duration = Duration::from_secs(5);

fn await_feeds(service: &mut Service, times: usize) {
    let so_far = service.notifications().iter().filter(|notice| *notice == "WATCHDOG=1").count();
    service.await_notifications("WATCHDOG=1", so_far + times);
}

/// A service whose log is long.
fn with_a_long_log() -> Start {
    Start::on("eth0")
        .env("WATCHDOG_USEC", "3000000")
        .env("TCPTRACKER_LOG__RATE", "100000")
        .env("TCPTRACKER_LOG__LEVEL", "debug")
}

/// Asserts that a log that nothing reads costs entries, which are counted, and nothing else.
fn assert_that_only_entries_are_lost(lab: &Lab, service: &mut Service) {
    // More entries than pipe, socket and queue hold.
    send_syns(lab, Tags::None, std::iter::repeat_n(OPEN_PORT, 6000));
    await_that("lost entries are counted", || lab.metric(LOST) > 0);
    await_that("the state says why", || {
        lab.victim.http_get(8081, "/health").1.contains("threads not responding: journal")
    });
    await_feeds(service, 3);
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    await_that("the scanner is blocked", || lab.bus.list().len() == 1);
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
}

#[test]
fn unread_stderr_costs_only_entries() {
    let lab = Lab::new();
    let mut service = with_a_long_log().with_unread_log().begin(&lab).await_ready();
    await_feeds(&mut service, 2);
    assert_that_only_entries_are_lost(&lab, &mut service);
    service.signal(Signal::TERM);
    let status = service.exits_within(STOP).expect("the stop waits for a reader");
    assert_eq!(status.code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn journald_that_does_not_read_costs_only_entries() {
    let lab = Lab::new();
    let journal = Journal::new(&lab);
    let mut service = with_a_long_log().through(journal.wrapper()).begin(&lab).await_ready();
    journal.pause(true);
    assert_that_only_entries_are_lost(&lab, &mut service);

    journal.pause(false);
    journal.next_with("MESSAGE", "enforcing: no problems");

    journal.pause(true);
    send_syns(&lab, Tags::None, std::iter::repeat_n(OPEN_PORT, 6000));
    await_that("the journal is full", || lab.bus.property("State").1 == "degraded");
    service.signal(Signal::TERM);
    let status = service.exits_within(STOP).expect("the stop waits for the journal");
    assert_eq!(status.code(), Some(0));
    lab.assert_untouched();
}

/// A bus that does not read fills its socket, in which a signal then waits without end.
#[test]
fn stopped_bus_costs_only_signals() {
    let lab = Lab::new();
    let mut service = Start::on("eth0")
        .env("WATCHDOG_USEC", "3000000")
        .env("TCPTRACKER_BLOCK__MAX_PER_MINUTE", "100000")
        .begin(&lab)
        .await_ready();
    lab.bus.signal(Signal::STOP);
    let mut template = SynTemplate::new(lab.victim.hardware_address("eth0"));
    let mut wire = Wire::of(&lab.attacker);
    let IpAddr::V4(victim) = VICTIM else { panic!("{VICTIM}") };
    let mut source = u32::from(Ipv4Addr::new(12, 0, 0, 0));
    // Twice as long as 100 signals per second take to fill the socket.
    let begun = Instant::now();
    await_that("the socket is full", || {
        for _ in 0..100 {
            source += 1;
            for port in 1..=4 {
                wire.try_send(template.syn(source.into(), victim, port));
            }
        }
        begun.elapsed() > Duration::from_secs(12)
    });
    await_feeds(&mut service, 3);
    assert!(lab.metric(r#"tcptracker_events_lost_total{where="bus"}"#) > 0);
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    // Behind the scans of the other sources.
    await_that("the scanner is blocked", || {
        !lab.attacker.is_answered((VICTIM, OPEN_PORT).into(), Duration::from_millis(300))
    });
    service.signal(Signal::TERM);
    let status = service.exits_within(STOP).expect("the stop waits for the bus");
    assert_eq!(status.code(), Some(0));
    lab.bus.signal(Signal::CONT);
    lab.assert_untouched();
}

/// A service that cannot start must end even if nothing reads why.
#[test]
fn unread_error_does_not_keep_the_process() {
    let lab = Lab::new();
    let script = "head -c 65536 /dev/zero >&2; exec \"$@\"";
    let start = Start::on("eth7").through(["sh", "-ec", script, "sh"]).with_unread_log();
    let mut service = start.begin(&lab);
    assert_eq!(service.exits_within(STOP).and_then(|status| status.code()), Some(1));
}

/// What protects the host has descriptors in reserve.
#[test]
fn firewall_is_repaired_without_free_descriptors() {
    let lab = Lab::new();
    let mut service = lab.start();
    service.take_free_descriptors();
    for hook in ["INPUT", "FORWARD"] {
        run(lab.victim.command("iptables").args(["-D", hook, "-j", "tcptracker"])).ok();
        service.await_line(&format!("repaired firewall: hook {hook} (ipv4) was missing"));
    }
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line(&format!("WARN blocked {ATTACKER}"));
    let code = service.stop().code();
    assert_eq!(code, Some(0), "{:?}", service.lines_with("failed"));
    lab.assert_untouched();
}

/// The limit that `MemoryMax=` sets, as the kernel shows it.
#[test]
fn configuration_that_needs_more_memory_than_allowed_is_refused() {
    const MIB: u64 = 1 << 20;
    let lab = Lab::new();
    let least = most_bytes(&Effective::default().into_config(), 0).div_ceil(MIB);
    let limited = |limit: u64| {
        let script = format!(
            "mount -t tmpfs tmpfs /sys/fs; group=$(sed -n s/^0:://p /proc/self/cgroup); \
             mkdir -p /sys/fs/cgroup/$group; echo {} >/sys/fs/cgroup/$group/memory.max; exec \"$@\"",
            limit * MIB
        );
        Start::on("eth0").through(["sh".to_owned(), "-ec".to_owned(), script, "sh".to_owned()])
    };
    let refused = lab.run_service(&limited(least - 1));
    assert_eq!(refused.code, Some(78), "{refused:?}");
    let [needs, remedy] = [
        format!("full tables would need {least} MiB of memory (detection.max_sources = 131072, "),
        format!(
            "`systemctl edit tcptracker@eth0` and add the lines [Service] and MemoryMax={least}M\n"
        ),
    ];
    assert!(refused.err.contains(&needs) && refused.err.ends_with(&remedy), "{refused:?}");
    lab.assert_untouched();

    let mut service = limited(least).begin(&lab).await_ready();
    lab.configure("[detection]\nmax_sources = 1000000\n");
    let refused = lab.cli("reload");
    assert_eq!(refused.code, Some(78), "{refused:?}");
    assert!(refused.err.contains("detection.max_sources = 1000000"), "{refused:?}");
    service.await_line("the previous configuration stays in force");
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}
