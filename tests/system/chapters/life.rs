//! Reloaded, restarted, stopped, killed, hung: the service manager's part.

use std::net::IpAddr;

use super::{UNIT, message};
use crate::site::{MACHINE, SCANNER, Site};

/// Of the administrator's for this interface alone.
const CONFIGURATION: &str = "/etc/tcptracker/eth0.toml";

pub fn a_changed_configuration_is_taken_over(site: &mut Site) {
    let before = site.property(UNIT, "MainPID");
    // So far an address that was unblocked by hand is left alone.
    site.machine.write(CONFIGURATION, "[block]\ngrace_after_unblock = \"0s\"\n");
    site.forget();
    site.machine.sh("systemctl reload tcptracker@eth0");
    site.await_message(message::RELOADED, &[]);
    site.assert_active(UNIT);
    assert_eq!(site.property(UNIT, "MainPID"), before);
    site.machine.sh(&format!("tcptracker block {SCANNER} --for 1h; tcptracker unblock {SCANNER}"));
    site.scanner.nmap("-sS --top-ports 100", MACHINE);
    site.await_message(message::BLOCKED, &[("TCPTRACKER_SOURCE", &SCANNER.to_string())]);
}

pub fn a_wrong_one_is_not(site: &mut Site) {
    site.machine.write(CONFIGURATION, "[detection]\nwindow = \"soon\"\n");
    site.forget();
    let reload = site.machine.run("systemctl reload tcptracker@eth0");
    assert_ne!(reload.code, Some(0), "{reload:?}");
    let told = format!("{CONFIGURATION}:2: detection.window: expected a length of time");
    site.machine.journal().await_words(UNIT, &told);
    site.assert_active(UNIT);
    site.assert_shut_out();
    // As root's umask may have it.
    site.machine.write(CONFIGURATION, "");
    site.machine.sh(&format!("chmod 600 {CONFIGURATION}"));
    site.machine.run("systemctl reload tcptracker@eth0");
    let mend = format!("let everybody read it: chmod a+r {CONFIGURATION}");
    site.machine.journal().await_words(UNIT, &mend);
    let doctor = site.machine.run("tcptracker doctor");
    assert_eq!(doctor.code, Some(1), "{doctor:?}");
    assert!(doctor.out.contains(&format!("chmod a+r {CONFIGURATION}\n")), "{doctor:?}");
    std::fs::remove_file(site.machine.path(CONFIGURATION)).unwrap();
    site.machine.sh("systemctl reload tcptracker@eth0");
}

/// Whatever the sandbox would only have refused kills from now on, and shows.
pub fn the_sandbox_may_kill_from_now_on(site: &Site) {
    let drop_in = "/etc/systemd/system/tcptracker@.service.d/strict.conf";
    site.machine.write(drop_in, "[Service]\nSystemCallErrorNumber=kill\n");
    site.machine.sh("systemctl daemon-reload");
}

pub fn a_restart_keeps_blocks(site: &mut Site) {
    site.forget();
    site.machine.sh("systemctl restart tcptracker@eth0");
    let told = "restored 1 block; 0 more had ended meanwhile";
    site.await_message(message::RESTORED, &[("MESSAGE", told)]);
    assert_eq!(site.blocked("eth0"), [SCANNER.to_string()]);
    site.assert_shut_out();
}

pub fn a_stop_takes_everything_down(site: &Site) {
    site.machine.sh("systemctl stop tcptracker@eth0");
    let firewall = site.firewall();
    assert!(!firewall.contains("tcptracker"), "{firewall}");
    assert_eq!(site.property(UNIT, "Result"), "success", "{}", site.status(UNIT));
    site.assert_let_in();
    site.machine.sh("systemctl start tcptracker@eth0");
    site.assert_shut_out();
}

pub fn killed_it_comes_back(site: &mut Site) {
    let before = site.property(UNIT, "MainPID");
    site.forget();
    site.machine.sh("systemctl kill --signal=KILL tcptracker@eth0");
    // The kernel goes on without it.
    site.assert_shut_out();
    site.machine.journal().await_words(UNIT, "status=9/KILL");
    site.await_start_after("eth0", &before);
    assert_eq!(site.blocked("eth0"), [SCANNER.to_string()]);
    site.assert_shut_out();
}

/// By the watchdog, which is in more of a hurry here.
pub fn stopped_dead_it_is_started_anew(site: &mut Site) {
    let drop_in = "/etc/systemd/system/tcptracker@eth0.service.d/hurry.conf";
    site.machine.write(drop_in, "[Service]\nWatchdogSec=5\nTimeoutAbortSec=1\n");
    site.machine.sh("systemctl daemon-reload && systemctl restart tcptracker@eth0");
    let before = site.property(UNIT, "MainPID");
    site.forget();
    site.machine.sh("systemctl kill --signal=STOP tcptracker@eth0");
    site.machine.journal().await_words(UNIT, "Watchdog timeout");
    site.await_start_after("eth0", &before);
    assert_ne!(site.property(UNIT, "MainPID"), before);
    assert_eq!(site.blocked("eth0"), [SCANNER.to_string()]);
    site.assert_shut_out();
    std::fs::remove_file(site.machine.path(drop_in)).unwrap();
    site.machine.sh("systemctl daemon-reload && systemctl restart tcptracker@eth0");
}

/// Metrics are this host's own affair until it is said, as the README has it, who else may ask.
pub fn metrics_are_for_whom_they_are_meant(site: &Site) {
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

/// Of the present boot: nothing that the sandbox has refused, or killed for.
pub fn nothing_was_denied(site: &Site) {
    let told = site.machine.sh("journalctl --boot --unit 'tcptracker@*' --output cat");
    // But for what `a_wrong_one_is_not` has provoked.
    let told = || told.lines().filter(|line| !line.contains(CONFIGURATION));
    for refusal in ["not permitted", "ermission denied", "EPERM", "SYS", "seccomp"] {
        let found: Vec<_> = told().filter(|line| line.contains(refusal)).collect();
        assert!(found.is_empty(), "{found:#?}");
    }
}
