//! Stops that come at a bad moment: nothing of the service may stay behind, nothing of others go.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use crate::kernel::Rules;
use crate::lab::{ATTACKER, Lab, VICTIM};
use crate::service::Start;
use crate::tools::{run, sh};

/// `systemctl stop` just after `systemctl start`, or Ctrl-C at once.
#[test]
fn a_stop_during_the_start_leaves_nothing() {
    for moment in ["-N tcptracker", "-A tcptracker", "-I INPUT", "-I FORWARD"] {
        let lab = Lab::new();
        // An iptables that asks its caller to stop at exactly this moment.
        let shim = lab.path("shim");
        std::fs::create_dir(&shim).unwrap();
        let program = shim.join("iptables");
        let real = sh("which iptables");
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in *'{moment}'*) kill -TERM $PPID;; esac\nexec {} \"$@\"\n",
            real.trim()
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:{}", shim.display(), std::env::var("PATH").unwrap());

        let mut service = Start::on("eth0").env("PATH", &path).begin(&lab);
        assert_eq!(service.await_end().code(), Some(0), "at {moment}");
        lab.assert_untouched();
    }
}

#[test]
fn an_interface_that_goes_away_is_named() {
    let lab = Lab::new();
    let mut service = lab.start();
    lab.victim.ip("link del eth0");
    assert_eq!(service.await_end().code(), Some(1));
    service.await_line("tcptracker: ");
    let told = service.lines_with("tcptracker: ");
    assert!(told[0].contains("interface eth0 disappeared while it was watched"), "{told:?}");
    lab.assert_untouched();
}

/// A set another rule refers to cannot go. That is no reason to leave the rest, or to be silent.
#[test]
fn what_cannot_be_taken_down_is_told_and_the_rest_goes() {
    let lab = Lab::new();
    let mut service = lab.start();
    let others_rule = "-A INPUT -m set --match-set tcptracker-eth0-v4 src -j ACCEPT";
    run(lab.victim.command("iptables").args(others_rule.split(' '))).ok();

    assert_eq!(service.stop().code(), Some(1));
    assert!(!service.lines_with("tcptracker-eth0-v4").is_empty(), "the set is not named");
    let rules = Rules::of(&lab.victim);
    assert_eq!(rules.ipv6, lab.rules_before.ipv6);
    assert_eq!(rules.chain("tcptracker"), [Vec::<&str>::new(), Vec::new()]);
    assert!(!rules.sets.contains("tcptracker-eth0-v6"), "{}", rules.sets);
}

#[test]
fn a_hangup_ends_it_in_order() {
    let lab = Lab::new();
    let mut service = lab.start();
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line(&format!("INFO blocked {ATTACKER}"));
    assert_eq!(service.end_by(rustix::process::Signal::HUP).code(), Some(0));
    lab.assert_untouched();
}
