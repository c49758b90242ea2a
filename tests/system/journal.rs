//! The machine's journal: every entry of the present boot, as it is written.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use crate::machine::enter;
use crate::tools::TIMEOUT;

/// An entry's fields.
pub struct Entry(serde_json::Value);

impl Entry {
    /// A field, empty where the entry has none.
    pub fn get(&self, field: &str) -> &str {
        self.0[field].as_str().unwrap_or_default()
    }

    pub fn has(&self, fields: &[(&str, &str)]) -> bool {
        fields.iter().all(|(field, value)| self.get(field) == *value)
    }
}

pub struct Journal {
    reader: Child,
    told: Receiver<Entry>,
    entries: Vec<Entry>,
    /// Before it everything is known.
    forgotten: usize,
}

impl Journal {
    /// Follows it from a machine's boot on.
    pub fn follow(leader: Pid) -> Self {
        let words = enter(leader);
        let mut reader = Command::new(&words[0])
            .args(&words[1..])
            .args(["journalctl", "--boot", "--follow", "--lines=all", "--all", "--output=json"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(reader.stdout.take().unwrap()).lines();
        let (tell, told) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = tell.send(Entry(serde_json::from_str(&line).unwrap()));
            }
        });
        Self { reader, told, entries: Vec::new(), forgotten: 0 }
    }

    /// Waits for an entry, and forgets it and all before it: what is awaited next has to come later.
    #[track_caller]
    pub fn forget_until(&mut self, message: &str) {
        self.forgotten = self.await_that(message, |entry| entry.get("MESSAGE") == message) + 1;
    }

    /// Waits for an entry with these fields.
    #[track_caller]
    pub fn await_entry(&mut self, fields: &[(&str, &str)]) {
        self.await_that(&format!("{fields:?}"), |entry| entry.has(fields));
    }

    /// Waits for an entry of a unit's, its own or systemd's of it, with these words in it.
    #[track_caller]
    pub fn await_words(&mut self, unit: &str, words: &str) {
        self.await_that(&format!("{words:?} by {unit}"), |entry| {
            let of_unit = entry.get("_SYSTEMD_UNIT") == unit || entry.get("UNIT") == unit;
            of_unit && entry.get("MESSAGE").contains(words)
        });
    }

    /// Waits for an entry, and says where it is.
    #[track_caller]
    pub fn await_that(&mut self, what: &str, is_it: impl Fn(&Entry) -> bool) -> usize {
        let deadline = Instant::now() + TIMEOUT;
        let mut at = self.forgotten;
        loop {
            if at == self.entries.len() {
                let remaining = deadline.saturating_duration_since(Instant::now());
                let Ok(entry) = self.told.recv_timeout(remaining) else {
                    let heard =
                        self.entries[self.forgotten..].iter().map(|entry| entry.get("MESSAGE"));
                    panic!(
                        "not in the journal: {what}; but:\n{}",
                        heard.collect::<Vec<_>>().join("\n")
                    );
                };
                self.entries.push(entry);
            }
            if is_it(&self.entries[at]) {
                return at;
            }
            at += 1;
        }
    }
}

impl Drop for Journal {
    /// Ends journalctl, which nsenter has started and waits for. To end nsenter alone would leave the other
    /// to the machine, whose shutdown it would hold up.
    fn drop(&mut self) {
        let nsenter = self.reader.id();
        let children = std::fs::read_to_string(format!("/proc/{nsenter}/task/{nsenter}/children"));
        for child in children.unwrap_or_default().split_whitespace() {
            if let Some(child) = child.parse().ok().and_then(Pid::from_raw) {
                let _ = kill_process(child, Signal::KILL);
            }
        }
        let _ = self.reader.wait();
    }
}
