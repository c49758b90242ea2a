//! The machine's journal: follows the entries of the current boot.

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
    /// Returns a field, or an empty string if the entry does not have it.
    pub fn get(&self, field: &str) -> &str {
        self.0[field].as_str().unwrap_or_default()
    }

    pub fn has(&self, fields: &[(&str, &str)]) -> bool {
        fields.iter().all(|(field, value)| self.get(field) == *value)
    }
}

pub struct Journal {
    reader: Child,
    received: Receiver<Entry>,
    entries: Vec<Entry>,
    /// Entries before this index have been seen.
    seen: usize,
}

impl Journal {
    /// Follows the journal from the machine's boot.
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
        let (sender, received) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = sender.send(Entry(serde_json::from_str(&line).unwrap()));
            }
        });
        Self { reader, received, entries: Vec::new(), seen: 0 }
    }

    /// Waits for an entry; the next wait considers only later entries.
    #[track_caller]
    pub fn skip_past(&mut self, message: &str) {
        self.seen = self.await_that(message, |entry| entry.get("MESSAGE") == message) + 1;
    }

    /// Waits for an entry with these fields.
    #[track_caller]
    pub fn await_entry(&mut self, fields: &[(&str, &str)]) {
        self.await_that(&format!("{fields:?}"), |entry| entry.has(fields));
    }

    /// Waits for an entry that contains these words, by the unit or by systemd about the unit.
    #[track_caller]
    pub fn await_words(&mut self, unit: &str, words: &str) {
        self.await_that(&format!("{words:?} by {unit}"), |entry| {
            let of_unit = entry.get("_SYSTEMD_UNIT") == unit || entry.get("UNIT") == unit;
            of_unit && entry.get("MESSAGE").contains(words)
        });
    }

    /// Waits for an entry and returns its index.
    #[track_caller]
    pub fn await_that(&mut self, what: &str, matches: impl Fn(&Entry) -> bool) -> usize {
        let deadline = Instant::now() + TIMEOUT;
        let mut at = self.seen;
        loop {
            if at == self.entries.len() {
                let remaining = deadline.saturating_duration_since(Instant::now());
                let Ok(entry) = self.received.recv_timeout(remaining) else {
                    let messages =
                        self.entries[self.seen..].iter().map(|entry| entry.get("MESSAGE"));
                    panic!(
                        "not in the journal: {what}; but:\n{}",
                        messages.collect::<Vec<_>>().join("\n")
                    );
                };
                self.entries.push(entry);
            }
            if matches(&self.entries[at]) {
                return at;
            }
            at += 1;
        }
    }
}

impl Drop for Journal {
    /// Ends journalctl, the child of nsenter. If only nsenter ended, journalctl would keep running
    /// and delay the machine's shutdown.
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
