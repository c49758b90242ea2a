//! `tcptracker doctor`, and its self-test.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};

use crate::lab::{BINARY, Lab};
use crate::tools::{Outcome, await_that, require_prerequisites, run};
use crate::users::Polkit;

fn findings(outcome: &Outcome) -> Vec<Value> {
    serde_json::from_str(&outcome.out).unwrap_or_else(|error| panic!("{error} in {outcome:?}"))
}

#[track_caller]
pub(super) fn finding(outcome: &Outcome, check: &str) -> Value {
    let findings = findings(outcome);
    let found = findings.iter().find(|finding| finding["check"] == check).cloned();
    found.unwrap_or_else(|| panic!("no check {check} in {findings:?}"))
}

#[test]
fn reports_each_check_and_how_to_fix_it() {
    let lab = Lab::new();
    let empty = lab.configure("");
    let examine = |user: &str| {
        let words = format!("doctor --json --config {}", empty.display());
        let mut command =
            if user == "root" { lab.client(&words) } else { lab.client_as_nobody(&words) };
        run(&mut command)
    };
    let outcome = examine("root");
    for check in [
        "configuration",
        "privileges",
        "capture",
        "iptables",
        "ip6tables",
        "kernel sets",
        "bus",
        // The bus answers this check. The lab's bus reads the policy from the source tree.
        "bus policy",
    ] {
        assert_eq!(finding(&outcome, check)["result"], "ok", "{outcome:?}");
    }
    let instance = finding(&outcome, "instance");
    assert_eq!(instance["result"], "warning", "{instance}");
    assert_eq!(instance["remedy"], "systemctl enable --now tcptracker@eth0");
    for finding in findings(&outcome) {
        assert_eq!(finding["remedy"].is_null(), finding["result"] == "ok", "{finding}");
    }
    let failed = findings(&outcome).iter().any(|finding| finding["result"] == "failed");
    assert_eq!(outcome.code, Some(i32::from(failed)), "{outcome:?}");

    let mut service = lab.start();
    let instance = finding(&examine("root"), "instance");
    assert_eq!(
        (&instance["result"], &instance["found"]),
        (&json!("ok"), &json!("eth0: enforcing"))
    );
    // Without privileges, some checks are skipped and reported as unknown.
    let metrics = finding(&examine("root"), "metrics");
    assert_eq!(metrics["found"], "eth0: served on 127.0.0.1:8081", "{metrics}");
    let outcome = examine("nobody");
    assert_eq!(finding(&outcome, "instance")["result"], "ok", "{outcome:?}");
    assert_eq!(finding(&outcome, "privileges")["result"], "unknown", "{outcome:?}");
    assert_eq!(finding(&outcome, "iptables")["remedy"], "sudo tcptracker doctor", "{outcome:?}");
    assert_eq!(service.stop().code(), Some(0));

    lab.configure("[detection]\nports = 0\n");
    let outcome = examine("root");
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    let wrong = finding(&outcome, "configuration");
    assert!(
        wrong["found"].as_str().unwrap().contains("tcptracker.toml:2: detection.ports"),
        "{wrong}"
    );
    lab.assert_untouched();
}

#[test]
fn names_each_missing_prerequisite() {
    let lab = Lab::with_users();
    let empty = lab.configure("");
    let words = format!("doctor --json --config {}", empty.display());
    let assert_failed = |command: &mut Command, checks: &[(&str, &str)]| {
        let outcome = run(command);
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        for (check, remedy) in checks {
            let finding = finding(&outcome, check);
            assert_eq!(finding["result"], "failed", "{finding}");
            assert!(finding["remedy"].as_str().unwrap().contains(remedy), "{finding}");
        }
        for finding in findings(&outcome) {
            assert_eq!(finding["remedy"].is_null(), finding["result"] == "ok", "{finding}");
        }
        outcome
    };
    let empty_path = lab.path("nothing");
    let with_iptables = lab.path("ipset.toml");
    std::fs::write(&with_iptables, "firewall.backend = \"ipset\"\n").unwrap();
    let of_ipset = format!("doctor --json --config {}", with_iptables.display());
    assert_failed(
        lab.victim
            .command("env")
            .arg(format!("PATH={}", empty_path.display()))
            .arg(BINARY)
            .args(of_ipset.split(' ')),
        &[("iptables", "add /usr/sbin to PATH"), ("ip6tables", "add /usr/sbin to PATH")],
    );
    let without_programs = format!(
        "mount -t tmpfs none /usr/sbin; mkdir -p /usr/local/sbin; \
         mount -t tmpfs none /usr/local/sbin; exec {BINARY} "
    );
    assert_failed(
        lab.victim.command("unshare").args([
            "--mount",
            "sh",
            "-c",
            &format!("{without_programs}{of_ipset}"),
        ]),
        &[("iptables", "apt install iptables"), ("ip6tables", "apt install iptables")],
    );
    // Without iptables, the back end "auto" is the table of nf_tables.
    let mut command = lab.victim.command("unshare");
    command.args(["--mount", "sh", "-c", &format!("{without_programs}{words}")]);
    assert_eq!(finding(&run(&mut command), "nf_tables")["result"], "ok");
    // Ordinary users do not have /usr/sbin in their PATH.
    let mut command = lab.client_as_nobody(&words);
    let outcome = run(command.env("PATH", "/usr/bin:/bin"));
    assert_eq!(finding(&outcome, "iptables")["result"], "unknown", "{outcome:?}");
    assert_failed(
        lab.client(&words).env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent"),
        &[("bus", "systemctl start dbus")],
    );
    let mut command = lab.victim.command("setpriv");
    command.args(["--bounding-set=-net_admin", BINARY]).args(words.split(' '));
    let outcome = assert_failed(
        lab.bus.environment(&mut command),
        &[("privileges", "docker run --cap-add NET_ADMIN")],
    );
    assert_eq!(finding(&outcome, "kernel sets")["remedy"], "add them, and check again");

    let polkit =
        |outcome: &Outcome| finding(outcome, "polkit")["found"].as_str().unwrap().to_owned();
    let found = polkit(&run(&mut lab.client(&words)));
    assert!(found.starts_with("not installed: only root and group"), "{found}");
    let _polkit = Polkit::start(&lab);
    let found = polkit(&run(&mut lab.client(&words)));
    assert!(!found.starts_with("not installed"), "{found}");
    lab.assert_untouched();
}

/// Listing the rules of iptables-legacy creates an empty table, which is harmless.
#[test]
fn only_legacy_tables_with_rules_are_reported() {
    let lab = Lab::new();
    let legacy = |arguments: &str| {
        run(lab.victim.command("iptables-legacy").args(arguments.split(' '))).ok()
    };
    let one_firewall = || finding(&lab.cli("doctor --json"), "one firewall");
    legacy("-S");
    assert_eq!(one_firewall()["result"], "ok", "{}", one_firewall());
    legacy("-A INPUT -p udp --dport 9 -j DROP");
    let found = one_firewall();
    assert_eq!(found["result"], "warning", "{found}");
    assert!(found["found"].as_str().unwrap().contains("iptables-legacy has 1 rule as well (ipv4)"));
    assert!(found["remedy"].as_str().unwrap().contains("iptables-legacy-save"), "{found}");
    legacy("-F INPUT");
}

#[test]
fn self_test_succeeds_and_leaves_nothing_behind() {
    let lab = Lab::new();
    let before = lab.victim.ip("-brief link");
    let outcome = lab.cli("doctor --self-test --json");
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let findings = findings(&outcome);
    let steps: Vec<&str> = findings.iter().map(|step| step["check"].as_str().unwrap()).collect();
    assert_eq!(
        steps,
        [
            "namespaces",
            "start",
            "connect",
            "detection",
            "drop",
            "release",
            "expiry",
            "speed",
            "stop"
        ]
    );
    assert!(findings.iter().all(|step| step["result"] == "ok"), "{findings:?}");
    let speed = findings.iter().find(|step| step["check"] == "speed").unwrap();
    let words: Vec<&str> = speed["found"].as_str().unwrap().split(' ').collect();
    let learned: u32 = words[2].parse().unwrap();
    let micros: u32 =
        words[words.iter().position(|word| *word == "µs").unwrap() - 1].parse().unwrap();
    assert!((3..300).contains(&learned) && micros > 0, "{words:?}");
    assert_eq!(lab.victim.ip("-brief link"), before);
    lab.assert_untouched();

    let outcome = run(&mut lab.client_as_nobody("doctor --self-test"));
    let sentence = "tcptracker: the self-test creates namespaces; run it as root: \
                    sudo tcptracker doctor --self-test\n";
    assert_eq!((outcome.code, outcome.err.as_str()), (Some(1), sentence));
}

/// Ctrl-C sends SIGINT to the whole foreground process group of a terminal.
#[test]
fn interrupted_self_test_leaves_nothing_behind() {
    require_prerequisites();
    let mut child = Command::new(BINARY)
        .args(["doctor", "--self-test"])
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let started = lines.find(|line| line.as_ref().unwrap().starts_with("ok\tstart\t"));
    assert!(started.is_some());
    let inside = format!("/proc/{}/ns/pid_for_children", child.id());
    let inside = std::fs::read_link(inside).unwrap();
    kill_process_group(Pid::from_child(&child), Signal::INT).unwrap();
    assert!(!child.wait().unwrap().success());
    await_that("no process runs in the namespace", || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let mut namespaces =
            processes.filter_map(|entry| std::fs::read_link(entry.path().join("ns/pid")).ok());
        !namespaces.any(|namespace| namespace == inside)
    });
}
