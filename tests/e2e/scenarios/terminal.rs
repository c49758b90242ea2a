//! What a person sees: tables that fit, colours where they are wanted, and nobody who holds up others.

use rustix::process::Signal;
use serde_json::Value;

use crate::lab::Lab;
use crate::service::Start;

const LONG_REASON: &str =
    "seen-in-the-mail-log, the-web-log and the-log-of-the-name-server, all in one night";

fn widest(text: &str) -> usize {
    text.lines().map(|line| line.chars().count()).max().unwrap_or(0)
}

#[test]
fn tables_fit_the_terminal() {
    let lab = Lab::new();
    let mut service = lab.start();
    let block = |address: &str| {
        let mut command = lab.client(&format!("block {address} --for 90m --reason"));
        crate::tools::run(command.arg(LONG_REASON)).ok();
    };
    block("192.0.2.7");
    block("2001:db8:1234:5678::/64");

    let narrow = lab.on_terminal("list");
    assert!(widest(&narrow) <= 80, "{narrow}");
    let heading: Vec<&str> = narrow.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(heading, ["ADDRESS", "SINCE", "UNTIL", "OFFENCE", "REASON"], "{narrow}");
    // Nothing is cut off: the reason goes on below.
    assert!(narrow.lines().count() > 3, "{narrow}");
    for word in LONG_REASON.split(' ') {
        assert!(narrow.contains(word), "{narrow}");
    }
    // Columns stand below each other.
    let column = narrow.lines().next().unwrap().find("REASON").unwrap();
    for line in narrow.lines().skip(1) {
        assert!(line[..column].ends_with(' ') && !line[column..].starts_with(' '), "{narrow}");
    }

    let wide = lab.on_terminal_of(220, "NO_COLOR=1", "list");
    assert_eq!(wide.lines().count(), 3, "{wide}");
    assert!(widest(&wide) > 80 && widest(&wide) <= 220, "{wide}");
    // Where there is room, times of the clock as well: "2026-11-23 22:00:00 (in 1h 30m)".
    let until = wide.lines().nth(1).unwrap().split("(in ").next().unwrap();
    assert!(
        until.trim_end().ends_with(|c: char| c.is_ascii_digit()) && until.contains('-'),
        "{wide}"
    );

    let stats = lab.on_terminal("stats");
    let ends: Vec<usize> = stats.lines().map(|line| line.trim_end().len()).collect();
    assert!(ends.iter().all(|end| *end == ends[0]), "numbers end below each other:\n{stats}");
    assert_eq!(service.stop().code(), Some(0));
}

#[test]
fn colours_are_for_terminals_and_only_where_they_are_wanted() {
    let lab = Lab::new();
    let _service = lab.start();
    lab.cli("block 192.0.2.7").ok();
    let escape = '\u{1b}';
    assert!(lab.on_terminal_of(80, "NO_COLOR=", "list").contains(escape));
    for plain in ["NO_COLOR=1", "TERM=dumb"] {
        let text = lab.on_terminal_of(80, plain, "list");
        assert!(!text.contains(escape), "{text:?}");
    }
    assert!(!lab.cli("list").ok().contains(escape));
}

/// One of two instances hangs: what the other says is shown, and who has not answered is named.
#[test]
fn who_does_not_answer_holds_up_nobody() {
    let lab = Lab::new();
    lab.second_link();
    let services = [
        lab.start(),
        Start::on("eth1").env("TCPTRACKER_METRICS__LISTEN", "off").begin(&lab).await_ready(),
    ];
    lab.cli("block 192.0.2.7").ok();
    services[1].signal(Signal::STOP);
    let outcome = lab.cli("list --json");
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    let rows: Vec<Value> = serde_json::from_str(&outcome.out).unwrap();
    assert_eq!(rows.len(), 1, "{outcome:?}");
    assert_eq!((&rows[0]["interface"], &rows[0]["address"]), (&"eth0".into(), &"192.0.2.7".into()));
    assert_eq!(
        outcome.err,
        "tcptracker: the service on eth1 has not answered for 10s; look at it: \
         systemctl status tcptracker@eth1\n"
    );
    let outcome = lab.cli("unblock 192.0.2.7");
    assert_eq!((outcome.code, outcome.out.as_str()), (Some(1), "unblocked 192.0.2.7 on eth0\n"));
    services[1].signal(Signal::CONT);
}
