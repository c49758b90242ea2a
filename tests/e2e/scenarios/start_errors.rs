//! Start errors: one sentence that says what to do, and no partial changes.

use super::other_iptables_variant::legacy;
use crate::kernel::Rules;
use crate::lab::{ATTACKER, BINARY, Lab, OPEN_PORT, VICTIM};
use crate::service::Start;
use crate::tools::{Outcome, install_copy, install_script};
use crate::users::{SERVICE, with_unit_privileges};

const FAILED: i32 = 1;
const CONFIGURATION: i32 = 78;

/// Asserts that the command failed with exactly this sentence and changed nothing.
#[track_caller]
fn assert_refused(lab: &Lab, outcome: &Outcome, code: i32, sentence: &str) {
    assert_eq!(outcome.code, Some(code), "{outcome:?}");
    assert_eq!(outcome.err, format!("tcptracker: {sentence}\n"));
    assert_eq!(outcome.out, "");
    lab.assert_untouched();
}

#[test]
fn unknown_or_invalid_interface_is_refused() {
    let lab = Lab::new();
    let outcome = lab.run_service(&Start::on("eth7"));
    let sentence = "there is no interface eth7 on this host; there are: eth0, lo";
    assert_refused(&lab, &outcome, FAILED, sentence);

    let outcome = lab.run_service(&Start::on("eth0/x"));
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
    assert!(outcome.err.contains("\"eth0/x\" cannot be the name of a network"), "{outcome:?}");
}

#[test]
fn missing_capabilities_are_reported() {
    let lab = Lab::new();
    // An unprivileged user may not be able to read the build directory.
    let binary = lab.path("tcptracker");
    install_copy(&binary, BINARY);
    let nobody = "setpriv --reuid=nobody --regid=nogroup --clear-groups --inh-caps=-all \
                  --bounding-set=-all";
    let start = Start::on("eth0").through(nobody.split_whitespace()).binary(binary.clone());
    let sentence = "capturing on eth0 needs the capability CAP_NET_RAW; run it as root, or as the \
                    service: systemctl start tcptracker@eth0";
    assert_refused(&lab, &lab.run_service(&start), FAILED, sentence);

    // With CAP_NET_RAW, without CAP_NET_ADMIN.
    let watcher = "setpriv --bounding-set=-net_admin --inh-caps=-net_admin";
    let start = Start::on("eth0").through(watcher.split_whitespace()).binary(binary);
    let outcome = lab.run_service(&start);
    assert_eq!(outcome.code, Some(FAILED), "{outcome:?}");
    assert!(outcome.err.contains("CAP_NET_ADMIN"), "{outcome:?}");
    assert_eq!(outcome.err.lines().count(), 1, "{outcome:?}");
    lab.assert_untouched();
}

/// The unit's user cannot create the lock file of iptables-legacy; the shipped tmpfiles.d entry
/// does.
#[test]
fn missing_iptables_lock_is_reported() {
    let lab = Lab::with_users();
    let binary = lab.path("tcptracker");
    install_copy(&binary, BINARY);
    lab.chown_state(SERVICE);
    let path = legacy(&lab);
    let after_boot = |make_files: &str| {
        let script = format!("mount -t tmpfs -o mode=755 tmpfs /run; {make_files}; exec \"$@\"");
        let boot = ["sh", "-ec", &script, "sh"].map(str::to_owned);
        let unit = boot.into_iter().chain(with_unit_privileges());
        Start::on("eth0").env("PATH", &path).binary(binary.clone()).through(unit)
    };
    let mut service = after_boot("true").begin(&lab);
    service.await_line(
        "tcptracker: cannot open the lock of iptables-legacy, /run/xtables.lock: permission denied; \
         create it for user tcptracker: systemd-tmpfiles --create tcptracker.conf",
    );
    assert_eq!(service.await_end().code(), Some(FAILED));
    lab.assert_untouched();

    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/tcptracker.tmpfiles");
    let mut service =
        after_boot(&format!("systemd-tmpfiles --create {shipped}")).begin(&lab).await_ready();
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn invalid_configuration_is_reported_with_its_line() {
    let lab = Lab::new();
    let file = lab.path("tcptracker.toml").display().to_string();
    for (text, problem) in [
        (
            "[detection]\nports = 5\nwindows = \"60s\"\n",
            ":3: unknown key detection.windows; did you mean detection.window? \
             (`tcptracker config` lists all keys)",
        ),
        (
            "[detection]\n\nports = \"three\"\n",
            ":3: detection.ports: expected a whole number from 1 to 64, found \"three\"",
        ),
        (
            "[block]\ndurations = [\"soon\"]",
            ":2: block.durations: expected a list of lengths of time of at least \"1s\", or \
             \"forever\", such as [\"1h\", \"1d\", \"forever\"], found \"soon\"",
        ),
    ] {
        lab.configure(text);
        let outcome = lab.run_service(&Start::on("eth0"));
        assert_refused(&lab, &outcome, CONFIGURATION, &format!("{file}{problem}"));
        let shown = lab.cli(&format!("config --config {file}"));
        assert_refused(&lab, &shown, CONFIGURATION, &format!("{file}{problem}"));
    }

    lab.configure("[detection\n");
    let outcome = lab.run_service(&Start::on("eth0"));
    assert_eq!(outcome.code, Some(CONFIGURATION), "{outcome:?}");
    assert!(outcome.err.starts_with(&format!("tcptracker: {file}:1: ")), "{outcome:?}");

    lab.configure("");
    let start = Start::on("eth0").env("TCPTRACKER_LOG__RATE", "0");
    let sentence = "environment TCPTRACKER_LOG__RATE: log.rate: expected a whole number from 1 to \
                    100000, found 0";
    assert_refused(&lab, &lab.run_service(&start), CONFIGURATION, sentence);
}

/// Flags override the environment, and the environment overrides the file.
#[test]
fn later_configuration_layer_wins() {
    let lab = Lab::new();
    lab.configure("[detection]\nports = 5\n[log]\nrate = 7\n[block]\nenabled = true\n");
    let mut service = Start::on("eth0")
        .env("TCPTRACKER_DETECTION__PORTS", "2")
        .env("TCPTRACKER_BLOCK__ENABLED", "true")
        .flag("--observe")
        .begin(&lab)
        .await_ready();
    assert_eq!(lab.bus.property("State").1, "observing", "flag over environment");
    lab.attacker.nmap("-sS -p 1-3", VICTIM);
    service.await_line("ports 1, 2, 3, more than 2 within 60s");
    assert_eq!(service.stop().code(), Some(0));

    let file = lab.path("tcptracker.toml");
    let mut config = lab.client(&format!("config --config {}", file.display()));
    let shown = crate::tools::run(config.env("TCPTRACKER_DETECTION__PORTS", "2")).ok();
    let line = |key: &str| {
        let found = shown.lines().find(|line| line.starts_with(key));
        let (setting, origin) = found.and_then(|line| line.split_once('#')).unwrap();
        (setting.trim().to_owned(), origin.trim().to_owned())
    };
    let pair = |setting: &str, origin: &str| (setting.to_owned(), origin.to_owned());
    assert_eq!(
        line("detection.ports "),
        pair("detection.ports = 2", "environment TCPTRACKER_DETECTION__PORTS")
    );
    assert_eq!(line("log.rate "), pair("log.rate = 7", &format!("{}:4", file.display())));
    assert_eq!(line("detection.window "), pair("detection.window = \"60s\"", "default"));
}

/// The state is `starting` until rules and blocks are in force, however long a program takes.
#[test]
fn state_is_starting_until_blocks_are_in_force() {
    let lab = Lab::new();
    let (shim, hangs) = (lab.path("shim"), lab.path("hangs"));
    std::fs::create_dir(&shim).unwrap();
    let script = format!(
        "#!/bin/sh\nwhile [ -e {} ]; do sleep 0.1; done\nexec /usr/sbin/iptables-nft-save \"$@\"\n",
        hangs.display()
    );
    install_script(&shim.join("iptables-nft-save"), &script);
    std::fs::write(&hangs, "").unwrap();
    let path = format!("{}:{}", shim.display(), std::env::var("PATH").unwrap());
    let mut service = Start::on("eth0").env("PATH", &path).begin(&lab);
    // After an attempt that has failed.
    service.await_line(
        "starting: blocks are not in force yet; cannot look after the firewall rules: ",
    );
    assert_eq!(lab.bus.property("State").1, "starting");
    let (code, body) = lab.victim.http_get(8081, "/health");
    assert!(code == 503 && body.contains("blocks are not in force yet"), "{code} {body}");
    assert_eq!(lab.metric(r#"tcptracker_state{state="starting"}"#), 1);
    assert_eq!(lab.metric(r#"tcptracker_state{state="enforcing"}"#), 0);
    assert!(!service.notifications().contains(&"READY=1".to_owned()));
    // The set takes blocks meanwhile.
    lab.cli(&format!("block {ATTACKER}")).ok();

    std::fs::remove_file(&hangs).unwrap();
    service.await_notification("READY=1");
    Rules::of(&lab.victim).assert_enforced_for(&["eth0"]);
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    assert_eq!(lab.bus.property("State").1, "enforcing");
    assert_eq!(lab.victim.http_get(8081, "/health").0, 200);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}
