//! Output on a terminal: table width, colours, progress, and instances that do not answer.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::process::{Child, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use crate::fake_service::FakeService;
use crate::frames::{BROADCAST, syn};
use crate::lab::{ATTACKER, BINARY, Lab, VICTIM};
use crate::recorder::{RecordedFrame, as_pcap};
use crate::saved_blocks::save_blocks;
use crate::service::Start;
use crate::tools::run;

const LONG_REASON: &str =
    "seen-in-the-mail-log, the-web-log and the-log-of-the-name-server, all in one night";

fn max_width(text: &str) -> usize {
    text.lines().map(|line| line.chars().count()).max().unwrap_or(0)
}

#[test]
fn tables_fit_the_terminal_width() {
    let lab = Lab::new();
    let mut service = lab.start();
    let block = |address: &str| {
        let mut command = lab.client(&format!("block {address} --for 90m --reason"));
        run(command.arg(LONG_REASON)).ok();
    };
    block("192.0.2.7");
    block("2001:db8:1234:5678::/64");

    let narrow = lab.on_terminal("list");
    assert!(max_width(&narrow) <= 80, "{narrow}");
    let heading: Vec<&str> = narrow.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(heading, ["ADDRESS", "SINCE", "UNTIL", "OFFENCE", "REASON"], "{narrow}");
    // A long reason is wrapped, not truncated.
    assert!(narrow.lines().count() > 3, "{narrow}");
    for word in LONG_REASON.split(' ') {
        assert!(narrow.contains(word), "{narrow}");
    }
    // The reason column is aligned.
    let column = narrow.lines().next().unwrap().find("REASON").unwrap();
    for line in narrow.lines().skip(1) {
        assert!(line[..column].ends_with(' ') && !line[column..].starts_with(' '), "{narrow}");
    }

    let wide = lab.on_terminal_of(220, "NO_COLOR=1", "list");
    assert_eq!(wide.lines().count(), 3, "{wide}");
    assert!(max_width(&wide) > 80 && max_width(&wide) <= 220, "{wide}");
    // A wide terminal also gets absolute times: "2026-11-23 22:00:00 (in 1h 30m)".
    let until = wide.lines().nth(1).unwrap().split("(in ").next().unwrap();
    assert!(
        until.trim_end().ends_with(|c: char| c.is_ascii_digit()) && until.contains('-'),
        "{wide}"
    );

    let stats = lab.on_terminal("stats");
    let ends: Vec<usize> = stats.lines().map(|line| line.trim_end().len()).collect();
    assert!(ends.iter().all(|end| *end == ends[0]), "numbers are not right-aligned:\n{stats}");
    assert_eq!(service.stop().code(), Some(0));
}

#[test]
fn colours_only_on_terminals_that_want_them() {
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
    // `config` dims default values; only values that were set have the normal style.
    let file = lab.configure("[detection]\nports = 10\n");
    let shown = lab.on_terminal_of(80, "NO_COLOR=", &format!("config --config {}", file.display()));
    let is_set = |line: &&str| !line.starts_with(escape);
    let set: Vec<&str> = shown.lines().filter(is_set).collect();
    assert!(set.len() == 1 && set[0].starts_with("detection.ports = 10 "), "{shown:?}");
}

/// If one of two instances hangs, the reply of the other is shown and the hanging one is named.
#[test]
fn hanging_instance_does_not_delay_the_others() {
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
        "tcptracker: no answer from the service on eth1 for 10 s; check it: \
         systemctl status tcptracker@eth1\n"
    );
    let outcome = lab.cli("unblock 192.0.2.7");
    assert_eq!((outcome.code, outcome.out.as_str()), (Some(1), "unblocked 192.0.2.7 on eth0\n"));
    services[1].signal(Signal::CONT);
}

/// What acts on a terminal, or hides and reorders text there.
const HOSTILE: &str = "x\u{1b}[31m\u{9b}31m\u{202e}\u{200b}\u{2028}\u{e0041}\r\ny";

/// An instance whose texts come from an attacker.
struct HostileInstance {
    text: String,
}

#[zbus::interface(name = "org.tcptracker.Tracker1")]
impl HostileInstance {
    fn list(&self) -> Vec<(String, u64, u64, u32, String)> {
        vec![(self.text.clone(), 1, 0, 1, self.text.clone())]
    }

    fn why(&self, address: &str) -> HashMap<String, zbus::OwnedVariant> {
        let text = || zbus::Variant::from(format!("{address} {}", self.text)).try_to_owned();
        let keys = ["address", "reason", "kind", "rule"];
        let texts = keys.into_iter().map(|key| (key.to_owned(), text().unwrap()));
        texts.chain([("blocked".to_owned(), true.into())]).collect()
    }

    fn stats(&self) -> HashMap<String, u64> {
        HashMap::from([(self.text.clone(), 1)])
    }

    fn block(&self, address: &str, seconds: u64, reason: &str) -> zbus::fdo::Result<()> {
        Err(zbus::fdo::Error::InvalidArgs(format!("{address} {seconds} {reason} {}", self.text)))
    }

    fn unblock(&self, address: &str) -> zbus::fdo::Result<()> {
        Err(zbus::fdo::Error::AccessDenied(format!("{address} {}", self.text)))
    }
}

#[test]
fn text_from_the_bus_does_not_act_on_the_terminal() {
    let lab = Lab::new();
    let _instance = FakeService::start(&lab.bus, |builder| {
        builder
            .serve_at("/org/tcptracker/Tracker1/eth0", HostileInstance { text: HOSTILE.to_owned() })
            .name("org.tcptracker.Tracker1.eth0")
            .name("org.tcptracker.Tracker1")
    });
    let commands = [
        "list",
        "list --json",
        "stats",
        "stats --json",
        "why 192.0.2.7",
        "why 192.0.2.7 --json",
        "block 192.0.2.7",
        "unblock 192.0.2.7",
    ];
    for command in commands {
        let piped = lab.cli(command);
        let line = format!("NO_COLOR=1 TERM=xterm {BINARY} {command}");
        let shown = run(&mut lab.terminal("cols 80 -onlcr", &line));
        for text in [piped.out, piped.err, shown.out] {
            let acts = |c: char| c.is_control() && c != '\n' && c != '\t';
            let hides = ['\u{202e}', '\u{200b}', '\u{2028}', '\u{e0041}'];
            assert!(!text.contains(acts) && !text.contains(hides), "{command}: {text:?}");
            assert!(text.is_empty() || text.contains("[31m"), "{command}: {text:?}");
        }
    }
}

/// A running command on a pseudo-terminal.
struct OnTerminal {
    child: Child,
    shown: String,
}

impl OnTerminal {
    fn begin(lab: &Lab, words: &str) -> Self {
        // `exec`, so that Ctrl-C reaches the command and not a shell around it.
        let mut command = lab.terminal("cols 80", &format!("exec {BINARY} {words}"));
        command.env("STATE_DIRECTORY", lab.state_directory("eth0")).env("TERM", "xterm");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Self { child: command.spawn().unwrap(), shown: String::new() }
    }

    /// Reads until the output contains these words.
    #[track_caller]
    fn await_words(&mut self, words: &str) {
        let mut buffer = [0; 4096];
        while !self.shown.contains(words) {
            let length = self.child.stdout.as_mut().unwrap().read(&mut buffer).unwrap();
            assert!(length > 0, "no {words:?} in {:?}", self.shown);
            self.shown += &String::from_utf8_lossy(&buffer[..length]);
        }
    }

    /// Reads to the end and returns the whole output.
    fn end(mut self) -> String {
        let mut rest = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut rest).unwrap();
        assert!(self.child.wait().unwrap().success(), "{}{rest}", self.shown);
        self.shown + &rest
    }
}

/// A time of day without a date would be read as today's.
#[test]
fn block_that_ends_on_another_day_shows_the_date() {
    let lab = Lab::new();
    let mut service = lab.start();
    let mut terminal = OnTerminal::begin(&lab, "watch");
    terminal.await_words("watching eth0; press Ctrl-C to stop");
    lab.cli("block 192.0.2.1 --for 10d").ok();
    terminal.await_words(": manual");
    let (_, until) = terminal.shown.split_once("192.0.2.1 until ").unwrap();
    let date: Vec<&str> = until.split([' ', ':', '-']).take(6).collect();
    assert!(date.iter().all(|number| number.parse::<u32>().is_ok()), "{until:?}");
    assert_eq!(service.stop().code(), Some(0));
    terminal.child.stdin.as_ref().unwrap().write_all(b"\x03").unwrap();
    terminal.child.wait().unwrap();
}

/// A SYN to port 80.
fn probe(unix_nanos: u64) -> RecordedFrame {
    RecordedFrame { unix_nanos, frame: syn(BROADCAST, ATTACKER, VICTIM, 80) }
}

/// The control sequence that clears the current line.
const CLEAR: &str = "\r\u{1b}[K";

#[test]
fn large_capture_shows_progress() {
    let lab = Lab::new();
    let empty = lab.configure("");
    let pipe = lab.path("night.pcap");
    run(std::process::Command::new("mkfifo").arg(&pipe)).ok();
    let replay = |what: &str| format!("replay --config {} {what}", empty.display());
    let mut terminal = OnTerminal::begin(&lab, &replay(&pipe.display().to_string()));
    let mut feed = std::fs::File::create(&pipe).unwrap();
    let (stop_feeding, is_shown) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        // Feeds packets until the progress is shown, however fast the replay reads.
        scope.spawn(move || {
            let file = as_pcap(&(0..1000).map(probe).collect::<Vec<_>>());
            let (header, packets) = file.split_at(24);
            feed.write_all(header).unwrap();
            while is_shown.try_recv().is_err() {
                feed.write_all(packets).unwrap();
            }
        });
        terminal.await_words(" packets read");
        stop_feeding.send(()).unwrap();
    });
    let shown = terminal.end();
    let (before, after) = shown.rsplit_once(CLEAR).unwrap();
    assert!(before.contains(&format!("{CLEAR}{}: ", pipe.display())), "{before:?}");
    // The summary is on a line of its own.
    assert!(after.starts_with(&format!("{}: ", pipe.display())), "{after:?}");
    assert!(after.contains("0 scans (more than 3 ports within 60s)"), "{after:?}");

    // A small file shows no progress.
    let file = lab.path("small.pcap");
    std::fs::write(&file, as_pcap(&[probe(0)])).unwrap();
    let shown = OnTerminal::begin(&lab, &replay(&file.display().to_string())).end();
    assert!(
        shown.starts_with(&format!("{}: 1 packet, 1 probe in 0.0 ms", file.display())),
        "{shown:?}"
    );
}

#[test]
fn restore_of_many_blocks_shows_progress() {
    let lab = Lab::new();
    save_blocks(&lab, 25_000, "one of many");
    let configuration = lab.path("tcptracker.toml");
    let words = format!("run -i eth0 --config {}", configuration.display());
    let mut terminal = OnTerminal::begin(&lab, &words);
    terminal.await_words("restored 25000 blocks");
    terminal.await_words("watching eth0, enforcing, 25000 blocked");
    // Ctrl-C.
    terminal.child.stdin.as_ref().unwrap().write_all(b"\x03").unwrap();
    let shown = terminal.end();
    let progress = "restoring blocks: ";
    assert!(shown.contains(&format!("{CLEAR}{progress}0 of 25000")), "{shown:?}");
    let last = shown.rfind(progress).unwrap();
    assert!(shown[last..].contains(CLEAR), "the progress line was not cleared: {shown:?}");

    let mut service = lab.start();
    let told = service.await_notifications(&format!("STATUS={progress}"), 3);
    assert!(told[2].ends_with("20000 of 25000"), "{told:?}");
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}
