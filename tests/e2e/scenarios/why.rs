//! `Why`: the evidence for one address, and the reason why it is not blocked.

use serde_json::{Value, json};

use crate::lab::{ATTACKER, BINARY, Lab, OPEN_PORT, VICTIM};
use crate::tools::{await_that, run, unix_now};

#[test]
fn why_reports_evidence_block_and_grace() {
    let lab = Lab::new();
    let begun = unix_now();
    let mut service = lab.start();
    lab.attacker.nmap("-sS -p 21-40", VICTIM);
    service.await_line("WARN blocked 10.77.0.1");
    let why = lab.bus.why("10.77.0.1");
    let (_, since, until, ..) = lab.bus.block_of(&ATTACKER);
    for (key, value) in [
        ("address", json!({"type": "s", "data": "10.77.0.1"})),
        ("blocked", json!({"type": "b", "data": true})),
        ("offences", json!({"type": "u", "data": 1})),
        ("reason", json!({"type": "s", "data": "vertical scan: ports 21, 22, 23, 24"})),
        ("kind", json!({"type": "s", "data": "vertical"})),
        ("rule", json!({"type": "s", "data": "more than 3 ports in 60s from one source"})),
        ("threshold", json!({"type": "u", "data": 3})),
        ("window", json!({"type": "t", "data": 60})),
        ("ports", json!({"type": "aq", "data": [21, 22, 23, 24]})),
    ] {
        assert_eq!(why[key], value, "{key}");
    }
    for (key, time) in [("since", since), ("until", until)] {
        // Each reply compares the clocks again, so times may differ by rounding.
        let reported = why[key]["data"].as_u64().unwrap();
        assert!(reported.abs_diff(time) <= 2, "{key}: {reported}, {time}");
        assert_eq!(why[key]["type"], "t");
    }
    assert_eq!(why["times"]["type"], "ad");
    let times: Vec<f64> = serde_json::from_value(why["times"]["data"].clone()).unwrap();
    assert_eq!(times.len(), 4);
    assert!(times.is_sorted(), "{times:?}");
    #[expect(clippy::cast_precision_loss, reason = "seconds of this century")]
    let (earliest, latest) = (begun as f64 - 1.0, unix_now() as f64 + 1.0);
    assert!(times.iter().all(|time| (earliest..latest).contains(time)), "{times:?}");
    for absent in ["exempt", "grace_until", "decoy"] {
        assert_eq!(why[absent], Value::Null);
    }

    // The kernel counts each dropped SYN.
    let dropped = || lab.bus.why("10.77.0.1")["dropped"]["data"].as_u64().unwrap();
    let before = dropped();
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    await_that("the kernel's count is reported", || dropped() > before);
    // The counters of all sources never show fewer packets than the answer for one of them.
    let of_one = dropped();
    let of_all = lab.metric(r#"tcptracker_dropped_packets_total{family="ipv4"}"#);
    assert!(of_all >= of_one, "{of_all} of all sources, {of_one} of one");

    // A manual unblock keeps the offence count.
    lab.bus.call("eth0", &["Unblock", "s", "10.77.0.1"]).ok();
    let why = lab.bus.why("10.77.0.1");
    assert_eq!(why["blocked"]["data"], false);
    assert_eq!(why["offences"]["data"], 1);
    assert!(why["grace_until"]["data"].as_u64().unwrap() > unix_now() + 3000, "{why}");
    assert_eq!(why["ports"], Value::Null);

    lab.bus.call("eth0", &["Block", "sts", "203.0.113.0/24", "0", "the neighbours"]).ok();
    let why = lab.bus.why("203.0.113.9");
    assert_eq!(why["address"]["data"], "203.0.113.0/24");
    assert_eq!(why["until"], json!({"type": "t", "data": 0}));
    assert_eq!(why["dropped"]["data"], 0);
    assert_eq!(why["kind"], Value::Null);
    let why = lab.bus.why("10.77.0.2");
    assert_eq!(why["exempt"]["data"], "10.77.0.2 is an address of this host");
    assert_eq!(why["blocked"]["data"], false);
    let unknown = lab.bus.call("eth0", &["Why", "s", "198.51.100.200"]);
    assert!(unknown.err.contains("nothing is known about 198.51.100.200: "), "{unknown:?}");
    let error = |address: &str| lab.bus.error_of("Why", &format!("string:{address}"));
    assert_eq!(error("198.51.100.200"), "org.tcptracker.Tracker1.Error.NotBlocked");
    assert_eq!(error("198.51.100"), "org.tcptracker.Tracker1.Error.InvalidAddress");
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn why_reports_the_rule_counter_of_the_iptables_backend() {
    let lab = Lab::new();
    lab.configure("[firewall]\nbackend = \"iptables\"\n");
    let mut service = lab.start();
    lab.bus.call("eth0", &["Block", "sts", &ATTACKER.to_string(), "0", "x"]).ok();
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    let dropped = || lab.bus.why("10.77.0.1")["dropped"]["data"].as_u64().unwrap();
    await_that("the rule's count is reported", || dropped() > 0);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// Applies the instructions that `why` prints on a terminal to a file.
#[track_caller]
fn follow_instructions(shown: &str, file: &std::path::Path) {
    let (_, instructions) =
        shown.split_once("Never block it: ").unwrap_or_else(|| panic!("{shown}"));
    let mut parts = instructions.lines();
    let place = parts.next().unwrap();
    let (place, what) = place.strip_prefix("in ").unwrap().split_once(", ").unwrap();
    assert_eq!(place, "/etc/tcptracker/tcptracker.toml", "{shown}");
    let text: Vec<&str> =
        parts.take_while(|line| line.starts_with("  ")).map(|line| &line[2..]).collect();
    let number: usize = what.split(' ').find_map(|word| word.parse().ok()).unwrap();
    let before = std::fs::read_to_string(file).unwrap();
    let mut lines: Vec<&str> = before.lines().collect();
    assert!(what.starts_with("replace line ") && what.ends_with(" with"), "{shown}");
    lines.splice(number - 1..number, text);
    std::fs::write(file, lines.join("\n") + "\n").unwrap();
}

#[test]
fn instructions_of_why_work_in_the_shipped_file() {
    const SHIPPED: &str = include_str!("../../../packaging/tcptracker.toml");
    let lab = Lab::new();
    let mut service = lab.start();
    // Programs in this mount namespace see a different /etc.
    let etc = lab.path("etc");
    std::fs::create_dir_all(etc.join("tcptracker")).unwrap();
    let file = etc.join("tcptracker/tcptracker.toml");
    std::fs::write(&file, SHIPPED).unwrap();
    let with_etc = |command: &str| {
        format!(
            "unshare --mount sh -c 'mount --bind {} /etc; exec {BINARY} {command}'",
            etc.display()
        )
    };
    for address in ["203.0.113.66", "2001:db8::66"] {
        lab.cli(&format!("block {address}")).ok();
        let why = with_etc(&format!("why {address}"));
        let shown = run(&mut lab.terminal("cols 200 -onlcr", &format!("NO_COLOR=1 {why}"))).ok();
        assert!(shown.ends_with("and then:\n  sudo systemctl reload tcptracker@eth0\n"), "{shown}");
        follow_instructions(&shown, &file);
    }
    let config = run(lab.victim.command("sh").args(["-c", &with_etc("config -i eth0")])).ok();
    let networks = r#"exempt.networks = ["203.0.113.66", "2001:db8::66"]"#;
    assert!(config.contains(networks), "{config}");
    assert_eq!(service.stop().code(), Some(0));
}

/// A source that is not blocked can ask why, and what is missing.
#[test]
fn pending_explains_how_far_a_source_is_from_a_block() {
    for (preset, rule, outcome) in [
        ("classic", "more than 3 ports in 60s from one source", "unknown"),
        ("balanced", "more than 3 failed ports of one host in 60s from one source", "refused"),
    ] {
        let lab = Lab::new();
        lab.configure(&format!("[detection]\npreset = \"{preset}\"\n"));
        let mut service = lab.start();
        let pending = |options: &str| lab.cli(&format!("why {options} --pending {ATTACKER}")).ok();
        assert_eq!(pending(""), format!("pending\tno failure of {ATTACKER} counts on eth0\n"));
        lab.attacker.nmap("-sS -p 21,22", VICTIM);
        await_that("both ports are known", || pending("").matches("\nfailure\t").count() == 2);
        let told = pending("");
        let headline = format!("pending\t{ATTACKER} is 2 more ports away from a block on eth0\n");
        assert!(told.starts_with(&headline), "{told}");
        assert!(told.contains(&format!("\nrule\t2 of 4: {rule}\n")), "{told}");
        for port in [21, 22] {
            let failure = told.lines().find(|line| line.contains(&format!("\t{port}\t"))).unwrap();
            assert!(failure.ends_with(&format!("\t{outcome}\tcounts")), "{failure}");
        }
        let json: Value = serde_json::from_str(&pending("--json")).unwrap();
        let [rule, failures] = [&json[0]["rules"][0], &json[0]["failures"]];
        assert_eq!((&rule["count"], &rule["threshold"]), (&json!(2), &json!(3)), "{json}");
        assert_eq!(failures.as_array().unwrap().len(), 2, "{json}");
        assert_eq!(failures[0]["decision"], "counts");
        assert_eq!(service.stop().code(), Some(0));
    }
}
