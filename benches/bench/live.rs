//! The whole service on a veth: floods, fast scanners, and idle.

use std::time::Duration;

use crate::lab::{Bus, Lab, Service};
use crate::{median, row};

const RATE: f64 = 300_000.0;
const FLOOD: &str = "3000000";
const SYN: &str = "tcp[13]&18=2";

/// The presets, and the permitted nanoseconds per SYN of each.
const PRESETS: [(&str, f64); 2] = [("classic", 600.0), ("balanced", 800.0)];

/// A flood of many sources: lost SYNs, and the CPU time per SYN compared with a bare loop.
pub(crate) fn flood() {
    let lab = Lab::new();
    let send = || {
        let sent = lab.attack(&["send", "ve0", FLOOD, &RATE.to_string(), "100000"]);
        let words: Vec<f64> = sent.split_whitespace().map(|word| word.parse().unwrap()).collect();
        (words[0], words[0] / words[1])
    };
    for (preset, bar) in PRESETS {
        let (mut ours, mut crafted, mut rates) = (vec![], vec![], vec![]);
        let (mut lost, mut lost_bare) = (vec![], vec![]);
        for _ in 0..3 {
            let counter = lab.count(false, SYN);
            let before = counter.cpu();
            let (count, _) = send();
            settle();
            let cpu = counter.cpu() - before;
            let seen = counter.end();
            crafted.push(cpu / seen);
            lost_bare.push(count - seen);

            let service = lab.serve_with(preset);
            let before = service.cpu();
            let (count, rate) = send();
            settle();
            let cpu = service.cpu() - before;
            let seen = service.metric("tcptracker_new_connections");
            ours.push(cpu / seen);
            lost.push(count - seen);
            rates.push(rate);
        }
        let (ours, crafted) = (median(ours), median(crafted));
        row(
            &format!(
                "live, {preset}: CPU per SYN, {:.0} per second, 100,000 sources",
                median(rates)
            ),
            &format!("{ours:.0} ns"),
            &format!("{crafted:.0} ns"),
            Some(ours / crafted),
            &format!("at most {bar} ns, or 3.5 times a bare TPACKET_V3 loop"),
        );
        row(
            &format!("live, {preset}: SYNs lost of 3 M, in three runs"),
            &format!("{lost:?}"),
            &format!("{lost_bare:?}"),
            None,
            "none",
        );
    }
}

/// 10 million forged sources, one probe each.
pub(crate) fn memory() {
    for (preset, _) in PRESETS {
        memory_with(preset);
    }
}

fn memory_with(preset: &str) {
    let lab = Lab::new();
    let service = lab.serve_with(preset);
    let half = |service: &Service| {
        lab.attack(&["send", "ve0", "5000000", "200000", "2000000000"]);
        settle();
        service.resident()
    };
    let (first, second) = (half(&service), half(&service));
    let seen = service.metric("tcptracker_new_connections");
    row(
        &format!("live, {preset}: memory after 5 M and {:.0} M forged sources", seen / 1e6),
        &format!("{second:.1} MiB"),
        &format!("{first:.1} MiB"),
        Some(second / first),
        "below 64 MiB, not growing",
    );
}

/// No traffic.
pub(crate) fn idle() {
    let lab = Lab::new();
    let bus = Bus::new();
    let span = Duration::from_secs(10);
    let interrupts = || {
        let before = timer_interrupts();
        std::thread::sleep(span);
        (timer_interrupts() - before) / span.as_secs_f64()
    };
    let without = interrupts();
    let service = lab.serve_on(&bus);
    settle();
    let (before, woken) = (service.cpu(), service.wakeups());
    let with = interrupts();
    let share = (service.cpu() - before) / span.as_nanos() as f64 * 100.0;
    let wakeups = (service.wakeups() - woken) / span.as_secs_f64();
    let text = format!("{share:.1} %");
    row("idle: CPU over 10 s", &text, "-", None, "not measurable");
    let text = format!("{:.1} MiB", service.resident());
    row("idle: resident memory", &text, "-", None, "at most 14.7 MiB");
    row("idle: wake-ups per second", &format!("{wakeups:.1}"), "-", None, "at most 10");
    let (with, without) = (format!("{with:.0}"), format!("{without:.0}"));
    let what = "idle: timer interrupts per second, with the service and without";
    row(what, &with, &without, None, "no more than its wake-ups");
}

/// Timer interrupts of all processors since the boot.
fn timer_interrupts() -> f64 {
    let text = std::fs::read_to_string("/proc/interrupts").unwrap();
    let line = text.lines().find_map(|line| line.trim().strip_prefix("LOC:")).unwrap();
    line.split_whitespace().map_while(|word| word.parse::<f64>().ok()).sum()
}

/// Waits until all sent packets have been processed.
fn settle() {
    std::thread::sleep(Duration::from_millis(1500));
}
