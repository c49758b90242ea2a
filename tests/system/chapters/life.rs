//! Reload, restart, stop, crash and hang under systemd.

use std::net::IpAddr;
use std::time::Duration;

use super::{UNIT, message};
use crate::site::{MACHINE, SCANNER, Site};

/// The configuration file for this interface.
const CONFIGURATION: &str = "/etc/tcptracker/eth0.toml";

pub fn reload_applies_a_changed_configuration(site: &mut Site) {
    let before = site.property(UNIT, "MainPID");
    // Without a grace time, the scanner can be blocked again right after the unblock.
    site.machine.write(CONFIGURATION, "[block]\ngrace_after_unblock = \"0s\"\n");
    site.mark_journal();
    site.machine.sh("systemctl reload tcptracker@eth0");
    site.await_message(message::RELOADED, &[]);
    site.assert_active(UNIT);
    assert_eq!(site.property(UNIT, "MainPID"), before);
    site.machine.sh(&format!("tcptracker block {SCANNER} --for 1h; tcptracker unblock {SCANNER}"));
    site.scanner.nmap("-sS --top-ports 100", MACHINE);
    site.await_message(message::BLOCKED, &[("TCPTRACKER_SOURCE", &SCANNER.to_string())]);
}

pub fn reload_refuses_an_invalid_configuration(site: &mut Site) {
    site.machine.write(CONFIGURATION, "[detection]\nwindow = \"soon\"\n");
    site.mark_journal();
    let reload = site.machine.run("systemctl reload tcptracker@eth0");
    assert_ne!(reload.code, Some(0), "{reload:?}");
    let told = format!("{CONFIGURATION}:2: detection.window: expected a length of time");
    site.machine.journal().await_words(UNIT, &told);
    site.assert_active(UNIT);
    site.assert_shut_out();
    // A strict umask of root can make the file unreadable for the service.
    site.machine.write(CONFIGURATION, "");
    site.machine.sh(&format!("chmod 600 {CONFIGURATION}"));
    site.machine.run("systemctl reload tcptracker@eth0");
    let mend = format!("allow all users to read it: chmod a+r {CONFIGURATION}");
    site.machine.journal().await_words(UNIT, &mend);
    let doctor = site.machine.run("tcptracker doctor");
    assert_eq!(doctor.code, Some(1), "{doctor:?}");
    assert!(doctor.out.contains(&format!("chmod a+r {CONFIGURATION}\n")), "{doctor:?}");
    std::fs::remove_file(site.machine.path(CONFIGURATION)).unwrap();
    site.machine.sh("systemctl reload tcptracker@eth0");
}

/// From here on, a system call that the sandbox refuses kills the service, so that the tests notice
/// it.
pub fn make_sandbox_violations_fatal(site: &Site) {
    let drop_in = "/etc/systemd/system/tcptracker@.service.d/strict.conf";
    site.machine.write(drop_in, "[Service]\nSystemCallErrorNumber=kill\n");
    site.machine.sh("systemctl daemon-reload");
}

pub fn restart_keeps_blocks(site: &mut Site) {
    site.mark_journal();
    site.machine.sh("systemctl restart tcptracker@eth0");
    site.await_message(message::RESTORED, &[("MESSAGE", "restored 1 block")]);
    assert_eq!(site.blocked("eth0"), [SCANNER.to_string()]);
    site.assert_shut_out();
}

pub fn stop_removes_everything(site: &Site) {
    site.machine.sh("systemctl stop tcptracker@eth0");
    let firewall = site.firewall();
    assert!(!firewall.contains("tcptracker"), "{firewall}");
    assert_eq!(site.property(UNIT, "Result"), "success", "{}", site.status(UNIT));
    site.assert_let_in();
    site.machine.sh("systemctl start tcptracker@eth0");
    site.assert_shut_out();
}

pub fn restarts_after_sigkill(site: &mut Site) {
    let before = site.property(UNIT, "MainPID");
    site.mark_journal();
    site.machine.sh("systemctl kill --signal=KILL tcptracker@eth0");
    // The kernel keeps enforcing.
    site.assert_shut_out();
    site.machine.journal().await_words(UNIT, "status=9/KILL");
    site.await_start_after("eth0", &before);
    assert_eq!(site.blocked("eth0"), [SCANNER.to_string()]);
    site.assert_shut_out();
}

/// The unit's comments name what the service needs.
pub fn limits_are_in_force(site: &Site) {
    for (property, value) in
        [("MemoryMax", "536870912"), ("TasksMax", "64"), ("LimitNOFILE", "512")]
    {
        assert_eq!(site.property(UNIT, property), value, "{property}");
    }
    let pid = site.property(UNIT, "MainPID");
    let count = |directory: &str| -> u32 {
        site.machine.sh(&format!("ls /proc/{pid}/{directory} | wc -l")).trim().parse().unwrap()
    };
    let (threads, descriptors) = (count("task"), count("fd"));
    assert!(threads <= 20 && descriptors <= 60, "{threads} threads, {descriptors} descriptors");
}

/// Uses a shorter watchdog interval than the unit. A journal that does not read must not lead to a restart.
pub fn restarts_after_sigstop(site: &mut Site) {
    let drop_in = "/etc/systemd/system/tcptracker@eth0.service.d/hurry.conf";
    site.machine.write(drop_in, "[Service]\nWatchdogSec=5\nTimeoutAbortSec=1\n");
    site.machine.sh("systemctl daemon-reload && systemctl restart tcptracker@eth0");
    let before = site.property(UNIT, "MainPID");
    // Longer than the interval, with more entries than journald's socket holds.
    site.machine.sh("systemctl kill --signal=STOP systemd-journald");
    for _ in 0..4 {
        site.scanner.nmap("-sS --top-ports 200", MACHINE);
        std::thread::sleep(Duration::from_secs(2));
    }
    site.machine.sh("systemctl kill --signal=CONT systemd-journald");
    assert_eq!(site.property(UNIT, "MainPID"), before, "{}", site.status(UNIT));
    site.mark_journal();
    site.machine.sh("systemctl kill --signal=STOP tcptracker@eth0");
    site.machine.journal().await_words(UNIT, "Watchdog timeout");
    site.await_start_after("eth0", &before);
    assert_ne!(site.property(UNIT, "MainPID"), before);
    assert_eq!(site.blocked("eth0"), [SCANNER.to_string()]);
    site.assert_shut_out();
    std::fs::remove_file(site.machine.path(drop_in)).unwrap();
    site.machine.sh("systemctl daemon-reload && systemctl restart tcptracker@eth0");
}

/// The unit allows only local scrapes; a drop-in from the README allows others.
pub fn metrics_are_local_unless_allowed(site: &Site) {
    site.cable("eth1", 77);
    let (machine, port) = (IpAddr::from([10, 77, 0, 10]), 8081);
    site.machine.write(CONFIGURATION, "[metrics]\nlisten = \"0.0.0.0:8081\"\n");
    site.machine.sh("systemctl restart tcptracker@eth0");
    site.scanner.assert_cannot_reach(machine, port);
    let drop_in = "/etc/systemd/system/tcptracker@eth0.service.d/metrics.conf";
    site.machine.write(drop_in, "[Service]\nIPAddressAllow=10.77.0.0/24\n");
    site.machine.sh("systemctl daemon-reload && systemctl restart tcptracker@eth0");
    site.scanner.assert_reaches(machine, port);
    for file in [CONFIGURATION, drop_in] {
        std::fs::remove_file(site.machine.path(file)).unwrap();
    }
    site.machine.sh("systemctl daemon-reload && systemctl restart tcptracker@eth0");
}

/// Asserts that the sandbox has refused nothing during this boot.
pub fn sandbox_denied_nothing(site: &Site) {
    let entries = site.machine.sh("journalctl --boot --unit 'tcptracker@*' --output cat");
    // Except the errors that `reload_refuses_an_invalid_configuration` provokes.
    let entries = || entries.lines().filter(|line| !line.contains(CONFIGURATION));
    for refusal in ["not permitted", "ermission denied", "EPERM", "SYS", "seccomp"] {
        let found: Vec<_> = entries().filter(|line| line.contains(refusal)).collect();
        assert!(found.is_empty(), "{found:#?}");
    }
}
