//! The output of a replay: summary, tables and JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use serde::Serialize;

use crate::cli::CliError;
use crate::cli::output::{counted, print_json_line};
use crate::cli::replay::trials::{Trial, Trials};
use crate::cli::table::Table;
use crate::cli::time::{short, utc_micros};
use crate::config::{DetectionConfig, Preset};
use crate::types::{Attempt, HumanDuration, Moment, Scan, show_network};

/// A scan in the JSON output, one object per line. Its keys are stable.
#[derive(Serialize)]
struct Line<'a> {
    file: &'a str,
    /// The time of the probe that completed the scan, in nanoseconds since the Unix epoch.
    time_ns: u64,
    source: String,
    kind: &'static str,
    ports: Vec<u16>,
    /// The number of that probe among those of its source.
    probe: u64,
    /// Only with `--compare` and thresholds.
    #[serde(skip_serializing_if = "Option::is_none")]
    threshold: Option<usize>,
    /// Only with `--compare` without thresholds.
    #[serde(skip_serializing_if = "Option::is_none")]
    preset: Option<&'static str>,
    /// Only with preset balanced.
    #[serde(flatten)]
    evidence: Option<Evidence>,
}

/// What the balanced preset reports in addition, with one outcome per port.
#[derive(Serialize)]
struct Evidence {
    destination: String,
    rule: String,
    times_ns: Vec<u64>,
    outcomes: Vec<&'static str>,
    /// False if the rule only reports.
    blocks: bool,
}

pub fn print_lines(
    file: &str,
    trials: &[Trial],
    thresholds: bool,
    presets: bool,
) -> Result<(), CliError> {
    for trial in trials {
        for scan in trial.found() {
            let attempts = &scan.attempts;
            let evidence = || Evidence {
                destination: scan.destination.to_string(),
                rule: scan.rule.sentence(scan.threshold, scan.span),
                times_ns: attempts.iter().map(|attempt| attempt.moment.as_nanos()).collect(),
                outcomes: attempts.iter().map(|attempt| attempt.outcome.as_str()).collect(),
                blocks: scan.rule.blocks(),
            };
            print_json_line(&Line {
                file,
                time_ns: scan.moment.as_nanos(),
                source: show_network(&scan.source),
                kind: scan.kind.as_str(),
                ports: scan.ports().iter().map(|port| port.0).collect(),
                probe: scan.probes,
                threshold: thresholds.then_some(trial.threshold()),
                preset: presets.then(|| trial.preset().as_str()),
                evidence: (trial.preset() == Preset::Balanced).then(evidence),
            })?;
        }
    }
    Ok(())
}

/// Returns the summary of a file: what it contains, and what was found in it.
pub fn summary_line(file: &str, rule: &DetectionConfig, trials: &Trials) -> String {
    let summary = trials.summary();
    let contents = trials.contents();
    let (packets, probes) = (counted(contents.packets, "packet"), counted(summary.probes, "probe"));
    let outbound = match summary.outbound {
        0 => String::new(),
        outbound => format!(", {outbound} of them outbound"),
    };
    let span = match (summary.first, summary.last) {
        (Some(first), Some(last)) => {
            format!(" in {} from {}", short(last.since(first)), absolute(first))
        }
        _ => String::new(),
    };
    let evicted = match trials.each().iter().map(Trial::evicted).max().unwrap_or(0) {
        0 => String::new(),
        count => format!("; {} evicted (detection.max_sources)", counted(count, "source")),
    };
    let own = match &summary.guessed {
        None => String::new(),
        Some(own) if own.is_empty() => {
            "; the host's own address is unknown (set it with --local NET)".to_owned()
        }
        Some(own) => {
            let own: Vec<String> = own.iter().map(show_network).collect();
            let own = own.join(", ");
            format!("; assuming that {own} is the host's own address (set it with --local NET)")
        }
    };
    let one_sided = if summary.one_sided {
        "; replies are missing, so four unanswered ports counted within a minute only"
    } else {
        ""
    };
    let without = match contents.without_probe() {
        text if text.is_empty() => text,
        text => format!("; {text}"),
    };
    let found = result(rule, trials.each());
    format!(
        "{file}: {packets}, {probes}{outbound}{span}: {found}{without}{evicted}{own}{one_sided}"
    )
}

fn result(rule: &DetectionConfig, trials: &[Trial]) -> String {
    let scans = |trial: &Trial| counted(trial.found().len() as u64, "scan");
    match trials {
        [trial] if trial.preset() == Preset::Balanced => {
            format!("{} (preset balanced)", scans(trial))
        }
        [trial] => format!(
            "{} (more than {} ports within {})",
            scans(trial),
            trial.threshold(),
            HumanDuration(rule.window.get())
        ),
        [first, second] if first.preset() != second.preset() => "comparing presets".to_owned(),
        _ => format!("comparing {}", counted(trials.len() as u64, "threshold")),
    }
}

/// Returns a row for each scan, with the file in front if there are several.
pub fn listing(trial: &Trial, of_file: Option<&str>) -> Table {
    let balanced = trial.preset() == Preset::Balanced;
    let mut heading = vec!["TIME", "SOURCE", "KIND", "PROBE", "PORTS"];
    if balanced {
        heading.push("RULE");
    }
    let mut table = Table::new(of_file.map(|_| "FILE").into_iter().chain(heading));
    for scan in trial.found() {
        let port = |attempt: &Attempt| {
            if balanced { evidence(attempt, scan) } else { attempt.port.to_string() }
        };
        let ports: Vec<String> = scan.attempts.iter().map(port).collect();
        let mut row = vec![
            absolute(scan.moment),
            show_network(&scan.source),
            scan.kind.as_str().to_owned(),
            scan.probes.to_string(),
            ports.join(if balanced { ", " } else { " " }),
        ];
        if balanced {
            row.push(scan.rule.sentence(scan.threshold, scan.span));
        }
        table.row(of_file.map(ToOwned::to_owned).into_iter().chain(row).collect());
    }
    table
}

/// Returns a port, its outcome, and the time since the first attempt.
fn evidence(attempt: &Attempt, scan: &Scan) -> String {
    let first = scan.attempts.iter().map(|attempt| attempt.moment).min().unwrap_or(scan.moment);
    let after = attempt.moment.since(first).as_secs_f64();
    format!("{} +{after:.3}s", attempt.describe())
}

/// Returns a row for each source that any trial blocks, with the probe at which each trial blocks it.
pub fn comparison(trials: &[Trial], presets: bool, of_file: Option<&str>) -> Table {
    let headings = trials.iter().map(|trial| {
        if presets {
            trial.preset().as_str().to_uppercase()
        } else {
            format!("MORE THAN {}", trial.threshold())
        }
    });
    let first = of_file.map(|_| "FILE").into_iter().chain(["SOURCE"]).map(ToOwned::to_owned);
    let mut table = Table::new(first.chain(headings));
    let begin = |source: String| of_file.map(ToOwned::to_owned).into_iter().chain([source]);
    let mut sources: BTreeMap<IpNet, Vec<Option<String>>> = BTreeMap::new();
    for (column, trial) in trials.iter().enumerate() {
        for scan in trial.found().iter().filter(|scan| scan.rule.blocks()) {
            let cells = sources.entry(scan.source).or_insert_with(|| vec![None; trials.len()]);
            let mut cell = format!("at probe {}", scan.probes);
            if presets {
                cell += &format!(": {}", scan.rule.sentence(scan.threshold, scan.span));
            }
            // The first scan is the one that blocks.
            cells[column].get_or_insert(cell);
        }
    }
    for (source, cells) in &sources {
        let cells = cells.iter().map(|cell| cell.clone().unwrap_or_else(|| "-".to_owned()));
        table.row(begin(show_network(source)).chain(cells).collect());
    }
    let blocked = (0..trials.len())
        .map(|column| sources.values().filter(|cells| cells[column].is_some()).count().to_string());
    table.row(begin("blocked".to_owned()).chain(blocked).collect());
    table
}

fn absolute(moment: Moment) -> String {
    utc_micros(Duration::from_nanos(moment.as_nanos()))
}
