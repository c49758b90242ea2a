//! What a scanner learns before it is blocked: the number of 1,000 closed ports whose answers reach it.
//!
//! The scanner and the service share all cores, as they do when a busy server is scanned.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::lab::{Lab, Service, own_binary};
use crate::{median, row};

/// Scans of each kind. Each has a source of its own.
const RUNS: u8 = 7;

/// A scanner, what it is called in the table, and the most that it may learn: median and maximum.
#[derive(Clone, Copy)]
enum Scanner {
    /// A SYN every so many microseconds.
    Pace(&'static str),
    /// nmap with this kind of scan.
    Nmap(&'static str),
}

const SCANNERS: [(Scanner, u32, u32); 5] = [
    (Scanner::Pace("1000"), 4, 1000),
    (Scanner::Pace("100"), 7, 1000),
    (Scanner::Pace("20"), 20, 1000),
    (Scanner::Nmap("-sS"), 8, 16),
    (Scanner::Nmap("-sT"), 8, 16),
];

pub(crate) fn run() {
    for preset in ["classic", "balanced"] {
        for busy in [false, true] {
            let spinners = busy.then(Spinners::start);
            for (number, (scanner, median, most)) in SCANNERS.into_iter().enumerate() {
                if matches!((scanner, preset), (Scanner::Nmap("-sT"), "balanced")) {
                    continue;
                }
                let times = if busy { 2 } else { 1 };
                learned(preset, scanner, (median * times, most * times), busy, number);
            }
            drop(spinners);
        }
    }
    after_acknowledgement();
}

fn learned(preset: &str, scanner: Scanner, bar: (u32, u32), busy: bool, number: usize) {
    let lab = Lab::new();
    let service = lab.serve_with(preset);
    let before = latency(&service);
    let answers: Vec<f64> = (1..=RUNS)
        .map(|last| {
            let source = format!("10.78.{}.{last}", number + 1);
            lab.add_attacker(&source);
            let counter = lab.count(true, &answers_to(&source));
            scan(&lab, scanner, &source);
            settle();
            counter.end()
        })
        .collect();
    let after = latency(&service);
    let (kind, load) = (name(scanner), if busy { ", every core busy" } else { "" });
    let all: Vec<String> = sorted(&answers).iter().map(|count| format!("{count:.0}")).collect();
    let mean = (after.0 - before.0) / (after.1 - before.1) * 1e6;
    row(
        &format!("learned, {preset}: {kind}{load}"),
        &format!("{:.0}", median(answers)),
        &format!("{mean:.0} us"),
        None,
        &format!("at most {}, worst {}; all: {}", bar.0, bar.1, all.join(" ")),
    );
}

fn name(scanner: Scanner) -> String {
    match scanner {
        Scanner::Pace(pause) => format!("1 SYN per {pause} us"),
        Scanner::Nmap(kind) => format!("nmap {kind} -p 1-1000 --max-retries 0"),
    }
}

fn scan(lab: &Lab, scanner: Scanner, source: &str) {
    match scanner {
        Scanner::Pace(pause) => {
            lab.attack(&["scan", "ve0", source, pause]);
        }
        Scanner::Nmap(kind) => {
            // Once it is blocked, it waits 100 ms for each of the remaining ports.
            let words =
                format!("{kind} -n -Pn -p 1-1000 --max-retries 0 --host-timeout 3s 10.78.0.2");
            let arguments: Vec<&str> = words.split(' ').collect();
            lab.attack_with("nmap", &arguments);
        }
    }
}

/// Answers of the victim to a scanner: RST, or SYN and ACK.
fn answers_to(source: &str) -> String {
    format!("src host 10.78.0.2 and dst host {source} and tcp[13]&6!=0")
}

/// The sum and the number of the service's block latencies.
fn latency(service: &Service) -> (f64, f64) {
    let metric = |what| service.metric(&format!("tcptracker_block_latency_seconds_{what}"));
    (metric("sum"), metric("count"))
}

/// Answers that the victim sent after the kernel had acknowledged the block.
fn after_acknowledgement() {
    let lab = Lab::new();
    let service = lab.serve();
    let (mut late, mut latest) = (Vec::new(), f64::NEG_INFINITY);
    for last in 1..=20 {
        let source = format!("10.78.9.{last}");
        lab.add_attacker(&source);
        let before = latency(&service);
        let recorder = lab.record(&format!("host {source} and tcp[13]&6!=0"));
        scan(&lab, Scanner::Pace("20"), &source);
        settle();
        let after = latency(&service);
        let times = recorder.lines();
        let words: Vec<(f64, &str)> =
            times.iter().map(|line| line.split_once(' ').unwrap()).map(parsed).collect();
        // The fourth port is the one that leads to the block.
        let probes = words.iter().filter(|(_, flags)| *flags == "2").map(|(time, _)| *time);
        let blocked = probes.collect::<Vec<f64>>()[3] + (after.0 - before.0) * 1e6;
        let answers = words.iter().filter(|(_, flags)| *flags != "2").map(|(time, _)| *time);
        let behind: Vec<f64> = answers.map(|time| time - blocked).collect();
        late.push(behind.iter().filter(|behind| **behind > 0.0).count());
        latest = behind.into_iter().fold(latest, f64::max);
    }
    row(
        "learned: answers sent after the acknowledgement, 20 scans",
        &format!("{}", late.iter().sum::<usize>()),
        &format!("{latest:.0} us"),
        None,
        "0; the reference is when the last answer left",
    );
}

fn parsed<'a>((time, flags): (&str, &'a str)) -> (f64, &'a str) {
    (time.parse().unwrap(), flags)
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values
}

/// A busy process per core.
struct Spinners(Vec<Child>);

impl Spinners {
    fn start() -> Self {
        let cores = std::thread::available_parallelism().unwrap().get();
        let spin = || Command::new(own_binary()).arg("spin").stdin(Stdio::null()).spawn().unwrap();
        Self((0..cores).map(|_| spin()).collect())
    }
}

impl Drop for Spinners {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Waits until all sent packets have been processed.
fn settle() {
    std::thread::sleep(Duration::from_millis(300));
}
