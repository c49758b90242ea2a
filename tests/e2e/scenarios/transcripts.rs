//! README.md shows commands and their output. The test runs each command, in the README's order,
//! and compares the output, apart from times and counts.
//!
//! `WRITE_TRANSCRIPTS=1` writes the actual output to the README instead.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::frames::{BROADCAST, syn};
use crate::lab::{BINARY, Lab};
use crate::namespace::{ANSWER_TIMEOUT, Namespace};
use crate::recorder::{RecordedFrame, as_pcap};
use crate::tools;

const SHIPPED: &str = include_str!("../../../packaging/tcptracker.toml");

/// Commands whose output depends on the machine.
const NOT_COMPARED: [&str; 1] = ["tcptracker doctor | grep -v ^ok"];

/// A tcptracker command in the README, the output shown for it, and the position of that output.
struct Transcript {
    command: String,
    shown: String,
    at: std::ops::Range<usize>,
}

fn readme() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")
}

fn transcripts(text: &str) -> Vec<Transcript> {
    let mut found: Vec<Transcript> = Vec::new();
    let (mut at, mut in_block, mut open) = (0, false, false);
    for line in text.split_inclusive('\n') {
        let start = at;
        at += line.len();
        if line.starts_with("```") {
            (in_block, open) = (line == "```\n" && !in_block, false);
        } else if in_block {
            let command = line.strip_prefix("$ ").or_else(|| line.strip_prefix("# "));
            if let Some(command) = command {
                let command = command.trim_end().trim_start_matches("sudo ").to_owned();
                open = command.starts_with("tcptracker ");
                if open {
                    found.push(Transcript { command, shown: String::new(), at: at..at });
                }
            } else if let Some(last) = found.last_mut().filter(|_| open) {
                // Empty lines separate commands, and may also be part of an output.
                last.shown.push_str(line);
                last.at.end = start + line.len();
            }
        }
    }
    for transcript in &mut found {
        let length = transcript.shown.trim_end_matches('\n').len();
        let kept = if length == 0 { 0 } else { length + 1 };
        transcript.at.end -= transcript.shown.len() - kept;
        transcript.shown.truncate(kept);
    }
    found
}

/// Replaces times, durations and counts, which differ between runs, and line breaks, which depend
/// on them.
fn normalised(text: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    for word in text.split_whitespace().map(normalised_word) {
        let is_number = |word: &String| word.bytes().all(|byte| byte.is_ascii_digit());
        match words.last_mut() {
            // "146 ms"; "12 packets", which depends on retransmissions.
            Some(last)
                if is_number(last) && (word.starts_with("TIME") || word.starts_with("packet")) =>
            {
                *last = if word.starts_with("TIME") { word } else { "packets".to_owned() };
            }
            // "learned 5", which depends on the machine.
            Some(last) if last == "learned" && is_number(&word) => {}
            // "2026-11-24 00:13:46", "59m 59s".
            Some(last) if last.ends_with("TIME") && word.starts_with("TIME") => {
                *last = last.replacen("TIME", &word, 1);
            }
            _ => words.push(word),
        }
    }
    words.join(" ")
}

fn normalised_word(word: &str) -> String {
    let bare = word.trim_matches(|c| matches!(c, '(' | ')' | ',' | ';' | ':'));
    let mut shape = String::new();
    for character in bare.chars() {
        let character = if character.is_ascii_digit() { '0' } else { character };
        if character != '0' || !shape.ends_with('0') {
            shape.push(character);
        }
    }
    let is_time = matches!(
        shape.as_str(),
        "0s" | "0m"
            | "0h"
            | "0d"
            | "ms"
            | "µs"
            | "s"
            | "0.0"
            | "0-0-0"
            | "0:0:0"
            | "0:0:0.0"
            | "0-0-0T0:0:0Z"
            | "0-0-0T0:0:0.0Z"
    ) || (shape == "0" && bare.len() >= 10);
    if is_time {
        return word.replace(bare, "TIME");
    }
    word.to_owned()
}

/// Runs the commands and prepares what they need.
struct Session<'a> {
    lab: &'a Lab,
    done: Vec<String>,
}

impl Session<'_> {
    fn scan(by: &Namespace, ports: &[u16]) {
        for &port in ports {
            let to = SocketAddr::new("203.0.113.10".parse().unwrap(), port);
            let _ = by.inside(|| TcpStream::connect_timeout(&to, ANSWER_TIMEOUT));
        }
    }

    fn is_blocked(&self, address: &str) -> bool {
        self.lab.bus.list().iter().any(|block| block.0 == address)
    }

    fn run(&mut self, command: &str) -> String {
        if self.done.is_empty() {
            Self::scan(&self.lab.attacker, &[554, 8080, 22, 1025]);
            tools::await_that("the scanner is blocked", || self.is_blocked("203.0.113.66"));
        }
        if command.contains("--pending") {
            Self::scan(&self.lab.bystander, &[21, 22]);
        }
        let output = match command {
            "tcptracker watch" => self.watch(),
            _ => self.run_on_terminal(command),
        };
        self.done.push(command.to_owned());
        output
    }

    fn shell(&self, command: &str) -> std::process::Command {
        let command = command.replacen("tcptracker", BINARY, 1);
        let directory = self.lab.path("");
        let mut line = format!("cd {}; {command}", directory.display());
        if command.contains(" why ") {
            // `why` names a line of the shipped configuration file.
            let etc = directory.join("etc/tcptracker");
            std::fs::create_dir_all(&etc).unwrap();
            std::fs::write(etc.join("tcptracker.toml"), SHIPPED).unwrap();
            line = format!("unshare --mount sh -c 'mount --bind etc /etc; {command}'");
            line = format!("cd {}; {line}", directory.display());
        }
        let mut shell = self.lab.terminal("cols 80 -onlcr", &line);
        shell.env("NO_COLOR", "1").env("TZ", "UTC");
        shell
    }

    fn run_on_terminal(&self, command: &str) -> String {
        tools::run(&mut self.shell(command)).out
    }

    /// Runs `watch` while a second scanner is blocked and unblocked.
    fn watch(&self) -> String {
        let mut child = self
            .shell("tcptracker watch")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut printed = lines.next().unwrap().unwrap() + "\n";
        // Other ports than the first scanner's, which would make both look like decoys.
        Self::scan(&self.lab.bystander, &[21, 3306, 5432, 6379]);
        let mut unblocked = false;
        for line in lines.map_while(Result::ok) {
            printed.push_str(&(line + "\n"));
            if !unblocked && printed.contains("  blocked  ") {
                unblocked = true;
                self.lab.cli("unblock 203.0.113.8").ok();
            }
            if printed.contains("  unblocked  ") {
                break;
            }
        }
        let _ = child.kill();
        let _ = child.wait();
        printed
    }
}

/// Writes a capture with a scanner, a mail client, and outbound connections of the host.
fn write_night_capture(lab: &Lab) {
    let night: u64 = 1_795_300_000_000_000_000;
    let frame = |at: u64, from: &str, to: &str, port: u16| {
        let [from, to]: [IpAddr; 2] = [from.parse().unwrap(), to.parse().unwrap()];
        let unix_nanos = night + at * 1_000_000;
        RecordedFrame { unix_nanos, frame: syn(BROADCAST, from, to, port) }
    };
    let host = "203.0.113.10";
    let scan = (0..40).map(|n| frame(10 * n, "203.0.113.66", host, 20 + u16::try_from(n).unwrap()));
    let mail = [25, 465, 587, 143, 993].into_iter().zip(0..);
    let mail = mail.map(|(port, n)| frame(26_000 + 900 * n, "198.51.100.7", host, port));
    let own = (0..20).map(|n| frame(60_000 + 4_000 * n, host, "192.0.2.80", 443));
    let night: Vec<RecordedFrame> = scan.chain(mail).chain(own).collect();
    std::fs::write(lab.path("night.pcap"), as_pcap(&night)).unwrap();
}

#[test]
fn readme_transcripts_match_the_output() {
    let lab = Lab::new();
    for (host, address) in [(&lab.victim, 10), (&lab.attacker, 66), (&lab.bystander, 8)] {
        host.ip(&format!("addr add 203.0.113.{address}/24 dev eth0"));
    }
    write_night_capture(&lab);
    std::fs::write(
        lab.path("office.toml"),
        "[detection]\nports = 10\n\n[exempt]\nnetworks = [\"10.0.0.0/8\"]\n",
    )
    .unwrap();
    std::fs::write(lab.path("wrong.toml"), "[detection]\nport = 3\nwindow = \"soon\"\n").unwrap();
    let mut service = lab.start();

    let text = std::fs::read_to_string(readme()).unwrap();
    let transcripts = transcripts(&text);
    let mut session = Session { lab: &lab, done: Vec::new() };
    let (mut written, mut end) = (String::new(), 0);
    let write = std::env::var_os("WRITE_TRANSCRIPTS").is_some();
    for transcript in &transcripts {
        let printed = session.run(&transcript.command);
        let compared = !NOT_COMPARED.contains(&transcript.command.as_str());
        if !write && compared {
            assert_eq!(
                normalised(&printed),
                normalised(&transcript.shown),
                "README.md shows for `{}`:\n{}\nbut the command prints:\n{printed}",
                transcript.command,
                transcript.shown
            );
        }
        written.push_str(&text[end..transcript.at.start]);
        written.push_str(if compared { &printed } else { &transcript.shown });
        end = transcript.at.end;
    }
    written.push_str(&text[end..]);
    if write {
        std::fs::write(readme(), written).unwrap();
    }
    for command in [
        "run", "list", "stats", "why", "watch", "block", "unblock", "reload", "replay", "config",
        "doctor",
    ] {
        let shown = session.done.iter().any(|done| done.split(' ').nth(1) == Some(command));
        assert!(shown, "README.md does not show tcptracker {command}");
    }
    assert_eq!(service.stop().code(), Some(0));
}
