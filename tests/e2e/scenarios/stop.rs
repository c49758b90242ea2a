//! Stops at a bad moment: the service removes its own rules and sets and nothing else.

use crate::kernel::Rules;
use crate::lab::{ATTACKER, Lab, VICTIM};
use crate::service::Start;
use crate::tools::{install_script, run, sh};

/// As `systemctl stop` right after `systemctl start`, or an early Ctrl-C.
#[test]
fn stop_during_start_leaves_nothing() {
    let programs = [
        "iptables-nft-save",
        "iptables-nft-restore",
        "ip6tables-nft-save",
        "ip6tables-nft-restore",
    ];
    for program in programs {
        let lab = Lab::new();
        // The wrapper sends SIGTERM to its caller when the caller runs this program.
        let shim = lab.path("shim");
        std::fs::create_dir(&shim).unwrap();
        let real = sh(&format!("which {program}"));
        let script = format!("#!/bin/sh\nkill -TERM $PPID\nexec {} \"$@\"\n", real.trim());
        let program = shim.join(program);
        install_script(&program, &script);
        let path = format!("{}:{}", shim.display(), std::env::var("PATH").unwrap());

        let mut service = Start::on("eth0").env("PATH", &path).begin(&lab);
        assert_eq!(service.await_end().code(), Some(0), "at {}", program.display());
        lab.assert_untouched();
    }
}

/// The service recovers when the interface goes down and up, or is removed and added again.
#[test]
fn recovers_when_the_interface_returns() {
    let lab = Lab::new();
    let mut service = lab.start();
    lab.victim.ip("link set eth0 down");
    service.await_line("degraded: eth0 is down; bring it up: ip link set eth0 up");
    assert_eq!(lab.victim.http_get(8081, "/health").0, 503);
    lab.victim.ip("link set eth0 up");
    service.await_line("enforcing: no problems");

    lab.victim.ip("link del eth0");
    service.await_line("degraded: interface eth0 is gone; waiting for it to come back");
    service.await_notification("STATUS=watching eth0, degraded: interface eth0 is gone");
    assert_eq!(lab.bus.property("State").1, "degraded");

    lab.reattach_eth0();
    service.await_lines("enforcing: no problems", 2);
    lab.attacker.nmap("-sS -p 1-4", VICTIM);
    service.await_line(&format!("WARN blocked {ATTACKER} for 1h"));
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// An interface may come up long after boot, or never; that is not a failure of the service.
#[test]
fn starts_while_the_interface_is_down() {
    let lab = Lab::new();
    lab.victim.ip("link set eth0 down");
    let mut service = lab.start();
    let why = "degraded: eth0 is down; bring it up: ip link set eth0 up";
    service.await_line(why);
    service.await_notification(&format!("STATUS=watching eth0, {why}"));
    assert_eq!(lab.bus.property("State").1, "degraded");
    // Manual blocks work while the interface is down.
    lab.cli("block 192.0.2.7").ok();

    lab.victim.ip("link set eth0 up");
    service.await_line("enforcing: no problems");
    lab.attacker.nmap("-sS -p 1-4", VICTIM);
    service.await_line(&format!("WARN blocked {ATTACKER} for 1h"));
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// The kernel keeps a set that a foreign rule refers to. The service removes the rest and reports
/// the set.
#[test]
fn undeletable_set_is_reported_and_the_rest_is_removed() {
    let lab = Lab::new();
    let mut service = lab.start();
    let foreign_rule = "-A INPUT -m set --match-set tcptracker-eth0-v4 src -j ACCEPT";
    run(lab.victim.command("iptables").args(foreign_rule.split(' '))).ok();

    assert_eq!(service.stop().code(), Some(1));
    assert!(!service.lines_with("tcptracker-eth0-v4").is_empty(), "the set is not named");
    let rules = Rules::of(&lab.victim);
    assert_eq!(rules.ipv6, lab.rules_before.ipv6);
    assert_eq!(rules.chain("tcptracker"), [Vec::<&str>::new(), Vec::new()]);
    assert!(!rules.sets.contains("tcptracker-eth0-v6"), "{}", rules.sets);
}

/// Closing the terminal sends SIGHUP. Without a terminal, SIGHUP reloads the configuration.
#[test]
fn closing_the_terminal_stops_the_service() {
    let lab = Lab::new();
    let mut service = Start::on("eth0").on_terminal().begin(&lab).await_ready();
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line(&format!("WARN blocked {ATTACKER}"));
    assert_eq!(service.end_by(rustix::process::Signal::HUP).code(), Some(0));
    lab.assert_untouched();
}
