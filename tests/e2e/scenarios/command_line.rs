//! Commands against a running service.

use std::net::IpAddr;
use std::process::Stdio;

use serde_json::{Value, json};
use tcptracker::internals::COUNTERS;

use crate::fake_systemd::{FakeUnit, fake_systemd};
use crate::frames::{BROADCAST, syn};
use crate::lab::{ATTACKER, ATTACKER_ON_ETH1, Lab, OPEN_PORT, VICTIM};
use crate::recorder::{RecordedFrame, as_pcap};
use crate::service::Start;
use crate::tools::{Outcome, run, unix_now};

#[track_caller]
fn assert_failed(outcome: &Outcome, code: i32, sentence: &str) {
    assert_eq!(outcome.code, Some(code), "{outcome:?}");
    assert_eq!(outcome.err, format!("tcptracker: {sentence}\n"));
    assert_eq!(outcome.out, "");
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

#[test]
fn block_list_and_unblock_work() {
    let lab = Lab::new();
    let mut service = lab.start();
    assert_eq!(lab.cli("list").ok(), "");
    assert_eq!(json_of(&lab.cli("list --json").ok()), json!([]));
    assert_eq!(lab.cli("unblock --all").ok(), "nothing is blocked\n");

    let before = unix_now();
    let made = lab.cli("block 10.77.0.1 --for 90m --reason nosy").ok();
    let after = unix_now();
    assert_eq!(made, "blocked 10.77.0.1 on eth0 for 90m\n");
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    let made = lab.cli("block 2001:db8::/32").ok();
    assert_eq!(made, "blocked 2001:db8::/32 on eth0 until unblocked\n");
    service.await_line("WARN blocked 10.77.0.1 by root (uid 0) for 90m: nosy");

    let listed = json_of(&lab.cli("list --json").ok());
    let since = listed[0]["since"].as_u64().unwrap();
    // The service compares the clocks for each reply, so times may differ by 1 s.
    assert!((before - 1..=after + 1).contains(&since), "{listed}, made from {before} to {after}");
    assert_eq!(
        listed[0],
        json!({
            "interface": "eth0", "address": "10.77.0.1", "since": since, "until": since + 5400,
            "offences": 0, "reason": "nosy",
        })
    );
    assert_eq!(listed[1]["until"], Value::Null, "{listed}");
    assert_eq!(listed[1]["reason"], "manual", "{listed}");
    // A pipe gets tab-separated lines, a terminal gets a table.
    let plain = lab.cli("list").ok();
    let rows: Vec<Vec<&str>> = plain.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!((rows.len(), rows[0].len()), (2, 5), "{plain}");
    assert_eq!((rows[0][0], rows[0][4], rows[1][2]), ("10.77.0.1", "nosy", "unblocked"));
    let table = lab.on_terminal("list");
    let heading: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(heading, ["ADDRESS", "SINCE", "UNTIL", "OFFENCE", "REASON"], "{table}");

    assert_eq!(lab.cli("unblock 10.77.0.1").ok(), "unblocked 10.77.0.1 on eth0\n");
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
    lab.cli("block 198.51.100.7 -i eth0").ok();
    assert_eq!(
        lab.cli("unblock --all").ok(),
        "unblocked 198.51.100.7 on eth0\nunblocked 2001:db8::/32 on eth0\n"
    );
    assert_eq!(lab.bus.list(), []);

    let stats = json_of(&lab.cli("stats --json").ok());
    assert_eq!((&stats["eth0"]["blocks"], &stats["eth0"]["unblocks"]), (&json!(3), &json!(3)));
    assert!(lab.cli("stats").ok().contains("blocks\t3\n"));

    // Unblocking an address unblocks the network that contains it. Unblocking a network unblocks
    // all addresses in it.
    for network in ["198.51.100.0/24", "203.0.113.9", "203.0.113.10"] {
        lab.cli(&format!("block {network}")).ok();
    }
    assert_eq!(
        lab.cli("unblock 198.51.100.9").ok(),
        "unblocked 198.51.100.0/24 (contains 198.51.100.9) on eth0\n"
    );
    assert_eq!(
        lab.cli("unblock 203.0.113.0/24").ok(),
        "unblocked 203.0.113.9 on eth0\nunblocked 203.0.113.10 on eth0\n"
    );
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn several_addresses_are_tried_independently() {
    let lab = Lab::new();
    let mut service = lab.start();
    // The second address is exempt, the others are blocked.
    let outcome = lab.cli("ban 192.0.2.1 10.77.0.2 192.0.2.2 --for forever");
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert_eq!(
        outcome.out,
        "blocked 192.0.2.1 on eth0 until unblocked\nblocked 192.0.2.2 on eth0 until unblocked\n"
    );
    assert!(outcome.err.starts_with("tcptracker: 10.77.0.2 is never blocked: "), "{outcome:?}");
    assert_eq!(outcome.err.lines().count(), 1, "{outcome:?}");
    // The first network contains the second address, so that one is unblocked, too.
    let outcome = lab.cli("-i eth0 unban 192.0.2.0/31 192.0.2.1 192.0.2.9 192.0.2.2");
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert_eq!(outcome.out, "unblocked 192.0.2.1 on eth0\nunblocked 192.0.2.2 on eth0\n");
    let sentence = "tcptracker: 192.0.2.9 is not blocked; `tcptracker list` shows what is\n";
    assert_eq!(outcome.err, sentence);
    assert_eq!(lab.bus.list(), []);
    assert_eq!(service.stop().code(), Some(0));
}

#[test]
fn errors_name_the_cause_and_the_remedy() {
    let lab = Lab::new();
    let start_it = "systemctl enable --now tcptracker@";
    // The only interface besides loopback is eth0.
    let nothing_runs = format!("no instance is running; start one: {start_it}eth0");
    for command in ["list", "stats", "block 192.0.2.1", "unblock --all"] {
        assert_failed(&lab.cli(command), 1, &nothing_runs);
    }
    let nowhere = "there is no interface eth9 on this host; there are: eth0, lo";
    assert_failed(&lab.cli("list -i eth9"), 1, nowhere);
    // systemd decodes "-" in an instance name as "/".
    lab.victim.ip("link add wg-0 type veth peer name wg-1");
    let escaped = "no instance is running on wg-0; \
                   start it: systemctl enable --now \"tcptracker@$(systemd-escape wg-0)\"";
    assert_failed(&lab.cli("list -i wg-0"), 1, escaped);
    // With several interfaces, the default route decides.
    let none_of_them =
        format!("no instance is running; start one: {start_it}INTERFACE, with INTERFACE one of: ");
    assert_failed(&lab.cli("list"), 1, &(none_of_them + "eth0, lo, wg-0, wg-1"));
    lab.victim.ip("route add default via 10.77.0.1");
    assert_failed(&lab.cli("list"), 1, &nothing_runs);
    lab.victim.ip("route del default");
    let mut service = lab.start();
    let elsewhere = format!("no instance is running on lo; start it: {start_it}lo");
    assert_failed(&lab.cli("list -i lo"), 1, &elsewhere);
    let nowhere = "there is no interface eth9 on this host; tcptracker is running on: eth0";
    assert_failed(&lab.cli("list -i eth9"), 1, nowhere);
    let sentence = "192.0.2.9 is not blocked; `tcptracker list` shows what is";
    assert_failed(&lab.cli("unblock 192.0.2.9"), 1, sentence);
    let sentence = "10.77.0.2 is never blocked: 10.77.0.2 is an address of this host";
    assert_failed(&lab.cli("block 10.77.0.2"), 1, sentence);

    for usage in [
        "blok 192.0.2.1",
        "block",
        "block 192.0.2.300",
        "block 192.0.2.1 --for soon",
        "block 192.0.2.1 --for 0s",
        "block 192.0.2.1 --for 5",
        "status",
        "unblock",
        "unblock 192.0.2.1 --all",
        "run",
    ] {
        let outcome = lab.cli(usage);
        assert_eq!((outcome.code, outcome.out.as_str()), (Some(2), ""), "{usage}: {outcome:?}");
        let names_help = outcome.err.contains("--help");
        assert!(names_help && outcome.err.starts_with("error: "), "{usage}: {outcome:?}");
    }
    let outcome = lab.cli("");
    assert_eq!((outcome.code, outcome.out.as_str()), (Some(2), ""), "{outcome:?}");
    assert!(outcome.err.contains("Usage: tcptracker <COMMAND>"), "{outcome:?}");
    assert_eq!(lab.bus.list(), []);
    assert_eq!(service.stop().code(), Some(0));

    let outcome = run(lab.client("list").env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent"));
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.err.starts_with("tcptracker: cannot reach the system bus: "), "{outcome:?}");
}

#[test]
fn failed_units_are_named_with_their_cause() {
    let lab = Lab::new();
    let unit = FakeUnit {
        name: "tcptracker@eth0.service",
        active: "failed",
        sub: "failed",
        result: "exit-code",
        exit_status: 78,
        status: "/etc/tcptracker/eth0.toml:5: unknown key blok.x",
    };
    let restarting = FakeUnit {
        name: r"tcptracker@wg\x2d0.service",
        active: "activating",
        sub: "auto-restart",
        status: "",
        exit_status: 1,
        ..unit.clone()
    };
    let killed = FakeUnit { name: "tcptracker@eth1.service", result: "watchdog", ..unit.clone() };
    let running = FakeUnit { name: "tcptracker@eth2.service", active: "active", ..unit.clone() };
    let _systemd = fake_systemd(&lab.bus, vec![unit, restarting, killed, running]);
    let eth0 = "the instance on eth0 has failed: /etc/tcptracker/eth0.toml:5: unknown key blok.x; \
                see: journalctl -u tcptracker@eth0; then: systemctl restart tcptracker@eth0";
    let wg0 = "\"tcptracker@$(systemd-escape wg-0)\"";
    let eth1 = "the instance on eth1 has failed: systemd reports \"watchdog\"; \
                see: journalctl -u tcptracker@eth1; then: systemctl restart tcptracker@eth1";
    assert_failed(
        &lab.cli("list"),
        1,
        &format!(
            "{eth0}\ntcptracker: the instance on wg-0 does not start: exit status 1; see: journalctl -u {wg0}\n\
             tcptracker: {eth1}"
        ),
    );
    assert_failed(&lab.cli("list -i eth0"), 1, eth0);
    let doctor = json_of(&lab.cli("doctor --json").out);
    let instances = doctor.as_array().unwrap().iter().filter(|one| one["check"] == "instance");
    let instances: Vec<&Value> = instances.collect();
    assert_eq!(instances.len(), 3, "{doctor}");
    assert_eq!(
        instances[2]["found"],
        "the instance on eth1 has failed: systemd reports \"watchdog\""
    );
}

#[test]
fn unprivileged_users_get_a_permission_error() {
    let lab = Lab::new();
    let _service = lab.start();
    run(&mut lab.client_as_nobody("list")).ok();
    run(&mut lab.client_as_nobody("stats")).ok();
    let sentence = "permission denied: only root and members of group tcptracker may do this, as \
                    polkit is not running; use sudo, or add yourself to group tcptracker and log in \
                    again: sudo gpasswd -a $USER tcptracker";
    for change in ["block 192.0.2.1", "unblock 192.0.2.1", "reload"] {
        assert_failed(&run(&mut lab.client_as_nobody(change)), 1, sentence);
    }
}

#[test]
fn commands_apply_to_all_instances() {
    let lab = Lab::new();
    lab.second_link();
    let mut services = [
        lab.start(),
        Start::on("eth1").env("TCPTRACKER_METRICS__LISTEN", "off").begin(&lab).await_ready(),
    ];
    assert_eq!(
        lab.cli("block 192.0.2.1").ok(),
        "blocked 192.0.2.1 on eth0 until unblocked\nblocked 192.0.2.1 on eth1 until unblocked\n"
    );
    assert_eq!(lab.cli("unblock 192.0.2.1 -i eth1").ok(), "unblocked 192.0.2.1 on eth1\n");
    assert_eq!(lab.cli("list").ok().lines().count(), 1);
    assert!(lab.cli("list").ok().starts_with("eth0\t192.0.2.1\t"));
    assert_eq!(lab.cli("list -i eth1").ok(), "");
    // Piped columns of several instances have their names in the first line.
    let stats = lab.cli("stats").ok();
    assert!(stats.starts_with("interface\teth0\teth1\nblocked\t1\t0\n"), "{stats}");
    assert!(lab.cli("stats -i eth0").ok().starts_with("blocked\t1\n"));
    // The command succeeds if at least one instance had the block.
    assert_eq!(lab.cli("unblock 192.0.2.1").ok(), "unblocked 192.0.2.1 on eth0\n");
    for service in &mut services {
        assert_eq!(service.stop().code(), Some(0));
    }
    lab.assert_untouched();
}

/// Asserts that tcptracker(1) documents every key of a JSON output.
#[track_caller]
pub fn assert_documented(output: &Value) {
    const MANUAL: &str = include_str!("../../docs/manual.tail.roff");
    let (_, json) = MANUAL.split_once("\n.SH JSON\n").unwrap();
    // Remove font changes.
    let json = json.replace("\\fB", " ").replace("\\fR", " ");
    let is_there = |key: &str| {
        let mut words = json.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        // The manual's list of counters is generated from this one.
        words.any(|word| word == key) || COUNTERS.iter().any(|(name, _)| *name == key)
    };
    match output {
        Value::Array(items) => items.iter().for_each(assert_documented),
        Value::Object(values) => {
            for (key, value) in values {
                assert!(is_there(key), "{key} is not in tcptracker(1)");
                assert_documented(value);
            }
        }
        _ => {}
    }
}

#[test]
fn every_json_key_is_in_the_manual() {
    let lab = Lab::new();
    let mut service = lab.start();
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line("WARN blocked 10.77.0.1");
    for command in ["list --json", "why 10.77.0.1 --json", "why 10.77.0.2 --json"] {
        assert_documented(&json_of(&lab.cli(command).ok()));
    }
    let stats = json_of(&lab.cli("stats --json").ok());
    assert_documented(&stats["eth0"]);
    let empty = lab.path("tcptracker.toml");
    let config = format!("config --json --config {}", empty.display());
    json_of(&lab.cli(&config).ok()).as_array().unwrap().iter().for_each(|setting| {
        // The keys inside a value are configuration keys.
        assert!(setting["value"] != Value::Null, "{setting}");
        assert_documented(setting);
    });
    let doctor = format!("doctor --json --config {}", empty.display());
    assert_documented(&json_of(&lab.cli(&doctor).out));

    // Five unanswered probes, and one probe of another source much later.
    let probe = |second: u64, from: IpAddr, port: u16| RecordedFrame {
        unix_nanos: second * 1_000_000_000,
        frame: syn(BROADCAST, from, VICTIM, port),
    };
    let scan = (1..=5).map(|port| probe(u64::from(port), ATTACKER, port));
    let frames: Vec<RecordedFrame> = scan.chain([probe(30, ATTACKER_ON_ETH1, 80)]).collect();
    let file = lab.path("capture.pcap");
    std::fs::write(&file, as_pcap(&frames)).unwrap();
    for option in ["--preset classic", "--preset balanced", "--compare=3,4", "--compare"] {
        let (option, empty, file) = (option, empty.display(), file.display());
        let printed = lab.cli(&format!("replay {file} --json --config {empty} {option}")).ok();
        assert!(!printed.is_empty(), "{option}");
        printed.lines().for_each(|line| assert_documented(&json_of(line)));
    }
    assert_eq!(service.stop().code(), Some(0));
}

/// File names and configuration keys may come from another user.
#[test]
fn errors_contain_no_escape_sequences() {
    let lab = Lab::new();
    let file = lab.path("a\u{1b}[31m\u{202e}.toml");
    std::fs::write(&file, "['ev\u{200b}il']\n").unwrap();
    for command in ["config --config", "replay"] {
        let outcome = run(lab.client(command).arg(&file));
        assert!(outcome.err.contains("a\\u{1b}[31m\\u{202e}.toml"), "{outcome:?}");
        let printed = outcome.err + &outcome.out;
        assert!(!printed.contains(['\u{1b}', '\u{202e}', '\u{200b}']), "{printed:?}");
    }
}

/// For example `tcptracker config | head -1`.
#[test]
fn closed_pipe_is_not_an_error() {
    let lab = Lab::new();
    let _service = lab.start();
    for command in ["config", "config --json", "list --json", "stats"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = lab.client(command).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{command}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{command}");
    }
}
