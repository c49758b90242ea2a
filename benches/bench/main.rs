//! `make bench`: costs as ratios within one run.
//!
//! Machines are shared and noisy, so no absolute figure is a test. Each figure has a reference from
//! the same run, such as a bare libpcap loop. Needs root for the network namespaces.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    clippy::panic,
    reason = "a benchmark reads clocks, starts programs, and panics when it fails"
)]

mod blocks;
mod detector;
mod lab;
mod learned;
mod live;
mod load;
mod repair;
mod replay;
mod restore;
mod scale;

/// The binary under test.
const TCPTRACKER: &str = env!("CARGO_BIN_EXE_tcptracker");

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // Cargo adds `--bench`.
    let words: Vec<&str> =
        arguments.iter().map(String::as_str).filter(|word| *word != "--bench").collect();
    match words[..] {
        // The parts of the benchmark that run in a namespace.
        ["send", interface, count, rate, sources] => load::send(interface, count, rate, sources),
        ["scan", interface, source, pause] => load::scan(interface, source, pause),
        ["count", interface, filter] => load::count(interface, filter),
        ["record", interface, filter] => load::record(interface, filter),
        ["spin"] => load::spin(),
        ["count-file", file] => replay::count(file),
        ["block-costs"] => blocks::costs(),
        ["set-up", what, count] => blocks::set_up(what, count),
        ["pass", interface, count] => blocks::pass(interface, count),
        _ => table(&words),
    }
}

/// Measures the named parts, or all of them.
fn table(parts: &[&str]) {
    println!("{}\n", machine());
    println!("{:<62} {:>16} {:>10} {:>6}  bar", "what", "tcptracker", "reference", "ratio");
    let measures: [(&str, fn()); 11] = [
        ("detector", detector::run),
        ("replay", replay::run),
        ("flood", live::flood),
        ("memory", live::memory),
        ("learned", learned::run),
        ("idle", live::idle),
        ("scale", scale::run),
        ("restore", restore::run),
        ("block", blocks::add),
        ("bystander", blocks::bystander),
        ("repair", repair::run),
    ];
    for (name, measure) in measures {
        if parts.is_empty() || parts.contains(&name) {
            measure();
        }
    }
}

/// One line of the table.
fn row(what: &str, ours: &str, reference: &str, ratio: Option<f64>, bar: &str) {
    let ratio = ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
    println!("{what:<62} {ours:>16} {reference:>10} {ratio:>6}  {bar}");
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn machine() -> String {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("?");
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
    format!("{count} x {model}, Linux {}", kernel.trim())
}
