//! The whole service on a veth: floods, fast scanners, and idle.

use std::time::Duration;

use crate::lab::{Bus, Lab, Service};
use crate::{median, row};

const RATE: f64 = 300_000.0;
const FLOOD: &str = "3000000";
const SYN: &str = "tcp[13]&18=2";

/// The presets, and the permitted cost of each as a multiple of `classic`.
const PRESETS: [(&str, u32); 2] = [("classic", 1), ("balanced", 2)];

/// A flood of many sources: lost SYNs, and the CPU time per SYN compared with a bare loop.
pub(crate) fn flood() {
    let lab = Lab::new();
    let send = || {
        let sent = lab.attack(&["send", "ve0", FLOOD, &RATE.to_string(), "100000"]);
        let words: Vec<f64> = sent.split_whitespace().map(|word| word.parse().unwrap()).collect();
        (words[0], words[0] / words[1])
    };
    for (preset, times) in PRESETS {
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
            &format!("at most {} times a crafted loop", 5 * times),
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
    let service = lab.serve_on(&bus);
    settle();
    let before = service.cpu();
    let span = Duration::from_secs(10);
    std::thread::sleep(span);
    let share = (service.cpu() - before) / span.as_nanos() as f64 * 100.0;
    let text = format!("{share:.1} %");
    row("idle: CPU over 10 s", &text, "-", None, "not measurable");
    let text = format!("{:.1} MiB", service.resident());
    row("idle: resident memory", &text, "-", None, "below 15 MiB");
}

/// Waits until all sent packets have been processed.
fn settle() {
    std::thread::sleep(Duration::from_millis(1500));
}
