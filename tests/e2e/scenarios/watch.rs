//! `tcptracker watch`: events as they happen.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};

use serde_json::Value;

use crate::lab::{ATTACKER, Lab, VICTIM};
use crate::scenarios::command_line::assert_documented;
use crate::service::Start;
use crate::tools::TIMEOUT;

/// A running `tcptracker watch`.
struct Watcher {
    child: Child,
    lines: Receiver<String>,
}

impl Watcher {
    fn begin(lab: &Lab, words: &str) -> Self {
        let mut child = lab
            .client(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let both: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for stream in both {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    let _ = sender.send(line);
                }
            });
        }
        Self { child, lines }
    }

    #[track_caller]
    fn next(&self) -> String {
        self.lines.recv_timeout(TIMEOUT).expect("a line")
    }

    #[track_caller]
    fn next_event(&self, event: &str) -> Value {
        loop {
            let line = self.next();
            let value: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"));
            assert_documented(&value);
            if value["event"] == event {
                return value;
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn events_are_printed_across_a_restart() {
    let lab = Lab::new();
    let watcher = Watcher::begin(&lab, "watch --json");
    let waiting = watcher.next();
    assert!(
        waiting.starts_with("tcptracker: waiting for the service: no instance is running; "),
        "{waiting}"
    );
    let mut service = lab.start();
    assert_eq!(watcher.next_event("running")["interface"], "eth0");

    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    let scan = watcher.next_event("scan");
    assert_eq!(scan["address"], ATTACKER.to_string(), "{scan}");
    assert_eq!(scan["ports"].as_array().unwrap().len(), 4, "{scan}");
    let blocked = watcher.next_event("blocked");
    assert_eq!(blocked["address"], ATTACKER.to_string(), "{blocked}");
    assert!(blocked["until"].as_u64() > blocked["time"].as_u64(), "{blocked}");
    lab.cli(&format!("unblock {ATTACKER}")).ok();
    let unblocked = watcher.next_event("unblocked");
    assert_eq!(unblocked["cause"], "manual", "{unblocked}");

    assert_eq!(service.stop().code(), Some(0));
    watcher.next_event("gone");
    let mut service = lab.start();
    watcher.next_event("running");
    lab.cli("block 192.0.2.1").ok();
    let blocked = watcher.next_event("blocked");
    assert_eq!((&blocked["until"], &blocked["reason"]), (&Value::Null, &"manual".into()));
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// A misspelled interface would be waited for without end.
#[test]
fn missing_interface_is_an_error() {
    let lab = Lab::new();
    let outcome = lab.cli("watch -i eth9");
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    let sentence = "tcptracker: there is no interface eth9 on this host; there are: eth0, lo\n";
    assert_eq!(outcome.err, sentence);
    // The interface exists, but no instance runs there yet.
    let waiting = Watcher::begin(&lab, "watch -i eth0").next();
    assert!(waiting.ends_with("start it: systemctl enable --now tcptracker@eth0"), "{waiting}");
}

#[test]
fn lines_name_the_interface_and_can_be_filtered_by_it() {
    let lab = Lab::new();
    lab.second_link();
    let mut services = [
        lab.start(),
        Start::on("eth1").env("TCPTRACKER_METRICS__LISTEN", "off").begin(&lab).await_ready(),
    ];
    let watchers = ["watch", "watch -i eth1"].map(|words| Watcher::begin(&lab, words));
    // Nothing shows when a watcher has subscribed: repeat until both have printed an event.
    let mut printed = [String::new(), String::new()];
    crate::tools::await_that("both watchers have printed an event of eth1", || {
        lab.cli("block 192.0.2.1 -i eth1").ok();
        lab.cli("unblock 192.0.2.1 -i eth1").ok();
        for (watcher, printed) in watchers.iter().zip(&mut printed) {
            printed.extend(watcher.lines.try_iter().map(|line| line + "\n"));
        }
        printed
            .iter()
            .all(|printed| printed.contains("\teth1\tblocked\t192.0.2.1 until unblocked: manual"))
    });
    lab.cli("block 192.0.2.2 -i eth0").ok();
    lab.cli("block 192.0.2.3 -i eth1").ok();
    // The events come from two services, so their order is not fixed.
    let until = |watcher: &Watcher, words: &[&str]| {
        let mut lines: Vec<String> = Vec::new();
        while !words.iter().all(|words| lines.iter().any(|line| line.contains(words))) {
            lines.push(watcher.next());
        }
        lines
    };
    let [on_eth0, on_eth1] = ["\teth0\tblocked\t192.0.2.2 ", "\teth1\tblocked\t192.0.2.3 "];
    until(&watchers[0], &[on_eth0, on_eth1]);
    lab.cli("block 192.0.2.4 -i eth1").ok();
    let printed = until(&watchers[1], &[on_eth1, "192.0.2.4"]);
    assert!(printed.iter().all(|line| line.contains("\teth1\t")), "{printed:?}");
    for service in &mut services {
        assert_eq!(service.stop().code(), Some(0));
    }
}

/// Any local user may emit signals; `watch` accepts only the service's.
#[test]
fn forged_signals_are_ignored() {
    let lab = Lab::new();
    let _service = lab.start();
    let watcher = Watcher::begin(&lab, "watch --json");
    crate::tools::await_that("the watcher has printed an event", || {
        let forged = ["emit", "/org/tcptracker/Tracker1/eth0", "org.tcptracker.Tracker1"];
        let signal = ["Unblocked", "ss", "203.0.113.1", "forged"];
        lab.bus.as_nobody(&[&forged[..], &signal[..]].concat()).ok();
        lab.cli("block 192.0.2.1").ok();
        lab.cli("unblock 192.0.2.1").ok();
        let lines: Vec<String> = watcher.lines.try_iter().collect();
        assert!(lines.iter().all(|line| !line.contains("forged")), "{lines:?}");
        lines.iter().any(|line| line.contains("192.0.2.1"))
    });
}
