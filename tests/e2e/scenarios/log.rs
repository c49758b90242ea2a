//! The log: entries, the rate limit and its summary, and structured fields.

use rustix::process::Signal;

use crate::frames::{Tags, send_syns};
use crate::journal::{Entry, Journal};
use crate::lab::{ATTACKER, Lab, OPEN_PORT, VICTIM};
use crate::service::Start;
use crate::tools::{TIMEOUT, await_that, unix_now};

#[test]
fn connections_above_the_rate_limit_are_summarised() {
    const BURST: u64 = 200;
    const RATE: u64 = 5;
    let lab = Lab::new();
    let start = Start::on("eth0").env("TCPTRACKER_LOG__RATE", &RATE.to_string());
    let mut service = start.begin(&lab).await_ready();
    // A single port is not a scan.
    send_syns(&lab, Tags::None, std::iter::repeat_n(OPEN_PORT, BURST.try_into().unwrap()));

    let (listed, sums) = service.await_until("all connections are in the log", |service| {
        let listed = service.log().iter().filter(|line| line.contains("new inbound connection"));
        let listed = u64::try_from(listed.count()).unwrap();
        let sums: Vec<u64> =
            service.log().iter().filter_map(|line| suppressed_count(line)).collect();
        (listed + sums.iter().sum::<u64>() >= BURST).then_some((listed, sums))
    });
    assert_eq!(listed + sums.iter().sum::<u64>(), BURST);
    assert_eq!(lab.metric("tcptracker_new_connections"), BURST);
    // The burst may span two seconds, or more on a slow machine. In the last one the number of
    // connections may stay below the limit, so that there is no summary.
    let seconds = u64::try_from(sums.len()).unwrap();
    assert!((1..=10).contains(&seconds), "{sums:?}");
    assert!((RATE..=RATE * (seconds + 1)).contains(&listed), "{listed} in {seconds} seconds");
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// Including the connections of the last second before the stop.
#[test]
fn stop_logs_the_final_summary() {
    let lab = Lab::new();
    let start = Start::on("eth0").env("TCPTRACKER_LOG__RATE", "5");
    let mut service = start.begin(&lab).await_ready();
    send_syns(&lab, Tags::None, std::iter::repeat_n(OPEN_PORT, 200));
    await_that("all are seen", || lab.metric("tcptracker_new_connections") == 200);
    assert_eq!(service.stop().code(), Some(0));
    let listed = service.lines_with("new inbound connection").len();
    let sums = service.lines_with(" new connections in ");
    let summed: u64 = sums.iter().filter_map(|line| suppressed_count(line)).sum();
    assert!(summed > 0, "{sums:?}");
    assert_eq!(u64::try_from(listed).unwrap() + summed, 200, "{listed} listed, {sums:?}");
}

/// "suppressed 195 new connections in 1.0s (log.rate)"
fn suppressed_count(line: &str) -> Option<u64> {
    let (before, _) = line.split_once(" new connections in ")?;
    before.rsplit(' ').next()?.parse().ok()
}

#[test]
fn log_connections_false_suppresses_connection_entries() {
    let lab = Lab::new();
    // A shell under a service manager passes JOURNAL_STREAM on; it does not describe this stderr.
    let start =
        Start::on("eth0").env("TCPTRACKER_LOG__CONNECTIONS", "false").env("JOURNAL_STREAM", "8:1");
    let mut service = start.begin(&lab).await_ready();
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line(&format!("WARN blocked {ATTACKER}"));
    assert_eq!(service.stop().code(), Some(0));
    assert_eq!(service.lines_with("connection"), Vec::<String>::new());
}

/// Containers have no journald: their log is the stderr of the service.
#[test]
fn json_format_carries_the_journal_fields() {
    let lab = Lab::new();
    let start = Start::on("eth0").env("TCPTRACKER_LOG__FORMAT", "json");
    let mut service = start.begin(&lab).await_ready();
    lab.attacker.nmap("-sS -p 1-4", VICTIM);
    let line = service.await_line("b39b4bac17384f029bb82ffb3b2b31d1");
    let blocked: serde_json::Value = serde_json::from_str(&line).unwrap();
    let named = |name: &str| blocked[name].as_str().unwrap_or_default();
    assert_eq!(named("TCPTRACKER_INTERFACE"), "eth0", "{blocked}");
    assert_eq!(named("TCPTRACKER_SOURCE"), "10.77.0.1", "{blocked}");
    assert_eq!(named("TCPTRACKER_PORTS"), "1,2,3,4", "{blocked}");
    assert_eq!(named("level"), "WARN", "{blocked}");
    let message = "blocked 10.77.0.1 for 1h (offence 1): vertical scan: ports 1, 2, 3, 4";
    assert_eq!(named("message"), message, "{blocked}");
    let until = blocked["TCPTRACKER_UNTIL"].as_u64().unwrap();
    assert!(until.abs_diff(unix_now() + 3600) <= 30, "{until}");
    let age = humantime::parse_rfc3339(named("timestamp")).unwrap().elapsed().unwrap();
    assert!(age < TIMEOUT, "{blocked}");

    lab.configure("[log]\nconnections = false\n");
    assert_eq!(lab.cli("reload").ok(), "reloaded the configuration of eth0\n");
    assert_eq!(service.stop().code(), Some(0));
    for line in service.lines_with("") {
        let entry: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert!(entry["message"].is_string() && entry["MESSAGE_ID"].is_string(), "{line}");
    }
}

/// The format is chosen at start.
#[test]
fn reload_reports_that_log_format_needs_a_restart() {
    let lab = Lab::new();
    let mut service = lab.start();
    lab.configure("[log]\nformat = \"json\"\n");
    assert_eq!(lab.cli("reload").ok(), "reloaded the configuration of eth0\n");
    let said = service.await_line("configuration reloaded by root (uid 0): ");
    assert!(said.ends_with("; log.format takes effect at the next restart"), "{said}");
    assert_eq!(service.stop().code(), Some(0));
}

/// The most detailed messages are for a search for a fault.
#[test]
fn log_level_debug_shows_the_evidence_of_each_verdict() {
    let lab = Lab::new();
    let mut service = lab.start();
    let evidence = |attacker| {
        format!(
            "DEBUG verdict: vertical scan by {attacker} on {VICTIM}: ports 1, 2, 3, 4; more than 3 ports in 60s"
        )
    };
    send_syns(&lab, Tags::None, 1..=4);
    service.await_line(&format!("WARN blocked {ATTACKER}"));
    assert_eq!(service.lines_with("DEBUG"), Vec::<String>::new());

    lab.configure("[log]\nlevel = \"debug\"\n");
    lab.cli("reload").ok();
    lab.cli(&format!("unblock {ATTACKER}")).ok();
    send_syns(&lab, Tags::None, 1..=4);
    service.await_line(&evidence(ATTACKER));

    lab.configure("[log]\nlevel = \"warn\"\n");
    lab.cli("reload").ok();
    service.clear_log();
    send_syns(&lab, Tags::None, [OPEN_PORT]);
    await_that("the connection is seen", || lab.metric("tcptracker_new_connections") == 9);
    assert_eq!(service.stop().code(), Some(0));
    assert_eq!(service.lines_with("INFO"), Vec::<String>::new());
    lab.assert_untouched();
}

/// Uses journald's native protocol; the test listens on journald's socket.
#[test]
fn journal_entries_have_structured_fields() {
    let lab = Lab::new();
    let journal = Journal::new(&lab);
    let start = Start::on("eth0").through(journal.wrapper());
    let mut service = start.begin(&lab).await_ready();
    let entry = |id: &str| {
        let entry = journal.next_with("MESSAGE_ID", id);
        assert_eq!(entry["TCPTRACKER_INTERFACE"], "eth0", "{entry:?}");
        assert_eq!(entry["SYSLOG_IDENTIFIER"], "tcptracker", "{entry:?}");
        entry
    };
    let fields = |entry: &Entry, expected: &[(&str, &str)]| {
        for (name, value) in expected {
            assert_eq!(entry.get(*name).map(String::as_str), Some(*value), "{name} of {entry:?}");
        }
    };
    let started = entry("fdb7f878f18d45e5ae664097c6d1c558");
    fields(&started, &[("MESSAGE", "watching eth0, enforcing, 0 blocked"), ("PRIORITY", "6")]);

    lab.attacker.nmap("-sS -p 1-4", VICTIM);
    let connection = entry("9840eea37f064008a5e6549aad6c92f2");
    fields(
        &connection,
        &[
            ("TCPTRACKER_SOURCE", "10.77.0.1"),
            ("TCPTRACKER_DESTINATION", "10.77.0.2"),
            ("TCPTRACKER_PORTS", "1"),
        ],
    );
    let scan = entry("5d0741d35f104cf2bc625c85c40f2775");
    fields(
        &scan,
        &[
            ("TCPTRACKER_SOURCE", "10.77.0.1"),
            ("TCPTRACKER_DESTINATION", "10.77.0.2"),
            ("TCPTRACKER_PORTS", "1,2,3,4"),
            ("TCPTRACKER_KIND", "vertical"),
            ("PRIORITY", "4"),
        ],
    );
    assert!(scan["MESSAGE"].starts_with("vertical port scan by 10.77.0.1"), "{scan:?}");
    let blocked = entry("b39b4bac17384f029bb82ffb3b2b31d1");
    let reason = "vertical scan: ports 1, 2, 3, 4";
    fields(
        &blocked,
        &[
            ("TCPTRACKER_SOURCE", "10.77.0.1"),
            ("TCPTRACKER_PORTS", "1,2,3,4"),
            ("TCPTRACKER_REASON", reason),
        ],
    );
    assert_eq!(blocked.get("TCPTRACKER_UID"), None, "the block was automatic");
    let until: u64 = blocked["TCPTRACKER_UNTIL"].parse().unwrap();
    assert!(until.abs_diff(unix_now() + 3600) <= 30, "{until}");

    lab.bus.call("eth0", &["Unblock", "s", "10.77.0.1"]).ok();
    let unblocked = entry("c86162991bca46138eff37cb5bb7453e");
    fields(
        &unblocked,
        &[
            ("TCPTRACKER_SOURCE", "10.77.0.1"),
            ("TCPTRACKER_REASON", "manual"),
            ("TCPTRACKER_UID", "0"),
        ],
    );
    assert_eq!(service.stop().code(), Some(0));
    entry("8e2001616b6740948dd1ffd4217f4596");
    assert_eq!(service.lines_with(""), Vec::<String>::new(), "an entry was also written to stderr");
    lab.assert_untouched();
}

#[test]
fn entries_that_journald_does_not_get_are_counted() {
    const LOST: &str = r#"tcptracker_events_lost_total{where="journal"}"#;
    let lab = Lab::new();
    let journal = Journal::new(&lab);
    let mut service = Start::on("eth0").through(journal.wrapper()).begin(&lab).await_ready();
    send_syns(&lab, Tags::None, [OPEN_PORT; 3]);
    for _ in 0..3 {
        journal.next_with("MESSAGE_ID", "9840eea37f064008a5e6549aad6c92f2");
    }
    assert_eq!(lab.metric(LOST), 0, "all entries were received");
    journal.remove();
    send_syns(&lab, Tags::None, [OPEN_PORT; 50]);
    await_that("all of them are counted", || lab.metric(LOST) == 50);
    assert_eq!(service.stop().code(), Some(0));
}

/// As on a disk that is full.
#[test]
fn entries_that_stderr_does_not_take_are_counted() {
    const LOST: &str = r#"tcptracker_events_lost_total{where="journal"}"#;
    let lab = Lab::new();
    let wrapper = ["sh", "-ec", "exec \"$@\" 2>/dev/full", "sh"];
    let start = Start::on("eth0").through(wrapper).with_unread_log();
    let mut service = start.begin(&lab).await_ready();
    await_that("the first entry is counted", || lab.metric(LOST) >= 1);
    let before = lab.metric(LOST);
    send_syns(&lab, Tags::None, [OPEN_PORT; 50]);
    await_that("all of them are counted", || lab.metric(LOST) == before + 50);
    service.signal(Signal::TERM);
    assert_eq!(service.exits_within(TIMEOUT).and_then(|status| status.code()), Some(0));
}
