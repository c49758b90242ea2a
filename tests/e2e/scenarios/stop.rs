//! Stops at a bad moment: the service removes its own rules and sets and nothing else.

use std::time::{Duration, Instant};

use crate::kernel::Rules;
use crate::lab::{ATTACKER, Lab, OPEN_PORT, VICTIM};
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

/// A stop that cannot remove a rule has emptied its sets, so that the rule drops nothing, and names
/// the commands that remove it.
#[test]
fn rule_that_cannot_be_removed_drops_nothing_and_is_named() {
    for hangs in [false, true] {
        let lab = Lab::new();
        let (shim, broken) = (lab.path("shim"), lab.path("broken"));
        std::fs::create_dir(&shim).unwrap();
        let fault = if hangs { "exec sleep 60" } else { "echo out of order >&2; exit 4" };
        for program in ["iptables-nft-restore", "ip6tables-nft-restore"] {
            let script = format!(
                "#!/bin/sh\n[ ! -e {} ] || {{ {fault}; }}\nexec /usr/sbin/{program} \"$@\"\n",
                broken.display()
            );
            install_script(&shim.join(program), &script);
        }
        let path = format!("{}:{}", shim.display(), std::env::var("PATH").unwrap());
        let mut service = Start::on("eth0").env("PATH", &path).begin(&lab).await_ready();
        lab.cli(&format!("block {ATTACKER}")).ok();
        lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
        std::fs::write(&broken, "").unwrap();

        let begun = Instant::now();
        assert_eq!(service.stop().code(), Some(1));
        assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
        lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
        let said = service.lines_with("cannot remove the firewall rules").pop().unwrap();
        let (_, commands) = said.split_once("remove them: ").expect("the commands are named");
        let commands = commands.split("; existing").next().unwrap();
        // As a person would type them.
        let words = format!(
            "{commands}; ipset destroy tcptracker-eth0-v4; ipset destroy tcptracker-eth0-v6"
        );
        run(lab.victim.command("sh").args(["-ec", &words])).ok();
        lab.assert_untouched();
    }
}

/// The chain is tcptracker's, so that what another program has left in it is removed at the start.
#[test]
fn foreign_rules_in_the_chain_are_removed_at_the_start() {
    for kind in ["hash:ip", "hash:net", "list:set"] {
        let lab = Lab::new();
        let script = format!(
            "ipset create tcptracker-eth0-v4 {kind}; iptables -N tcptracker; \
             iptables -A tcptracker -m set --match-set tcptracker-eth0-v4 src -j DROP; \
             iptables -A tcptracker -s 10.77.0.3 -j DROP; ip6tables -N tcptracker; \
             ip6tables -A tcptracker -j RETURN"
        );
        run(lab.victim.command("sh").args(["-ec", &script])).ok();
        let mut service = lab.start();
        Rules::of(&lab.victim).assert_enforced_for(&["eth0"]);
        lab.cli(&format!("block {ATTACKER}")).ok();
        lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
        lab.bystander.assert_reaches(VICTIM, OPEN_PORT);
        assert_eq!(service.stop().code(), Some(0), "{kind}");
        lab.assert_untouched();
    }
}

/// A rule elsewhere belongs to another program. It is named with the command that removes it.
#[test]
fn foreign_rule_that_keeps_a_foreign_set_is_named_at_the_start() {
    let lab = Lab::new();
    let script = "ipset create tcptracker-eth0-v4 hash:ip; \
                  iptables -A INPUT -m set --match-set tcptracker-eth0-v4 src -j ACCEPT";
    run(lab.victim.command("sh").args(["-ec", script])).ok();
    let mut service = Start::on("eth0").begin(&lab);
    service.await_line(
        "cannot remove kernel set tcptracker-eth0-v4: rules of other programs use it; remove them: \
         iptables-nft -D INPUT -m set --match-set tcptracker-eth0-v4 src -j ACCEPT",
    );
    assert_eq!(service.await_end().code(), Some(1));
    assert!(!service.notifications().contains(&"READY=1".to_owned()));
    let remedy = "iptables -D INPUT -m set --match-set tcptracker-eth0-v4 src -j ACCEPT";
    run(lab.victim.command("sh").args(["-ec", remedy])).ok();
    assert_eq!(lab.start().stop().code(), Some(0));
    lab.assert_untouched();
}
