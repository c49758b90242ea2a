//! What a replay has found, for people and for programs.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use serde::Serialize;

use crate::cli::CliError;
use crate::cli::output::print_json_line;
use crate::cli::replay::{Summary, Trial};
use crate::cli::table::Table;
use crate::config::{DetectionConfig, Preset};
use crate::types::clock::{HumanDuration, Moment};
use crate::types::network::show_network;
use crate::types::scan::{Attempt, Scan};

/// A scan, as a program reads it: one object a line. The keys stay as they are.
#[derive(Serialize)]
struct Line<'a> {
    file: &'a str,
    /// The capture's own time of the probe that fired, in nanoseconds since the Unix epoch.
    time_ns: u64,
    source: String,
    kind: &'static str,
    ports: Vec<u16>,
    /// The number of the firing probe among the source's own.
    probe: u64,
    /// With `--compare` and thresholds only.
    #[serde(skip_serializing_if = "Option::is_none")]
    threshold: Option<usize>,
    /// With `--compare` and no thresholds only.
    #[serde(skip_serializing_if = "Option::is_none")]
    preset: Option<&'static str>,
    /// Where outcomes count.
    #[serde(flatten)]
    evidence: Option<Evidence>,
}

/// What became of the ports, each.
#[derive(Serialize)]
struct Evidence {
    destination: String,
    rule: String,
    times_ns: Vec<u64>,
    outcomes: Vec<&'static str>,
    /// False where the rule only reports.
    blocks: bool,
}

pub fn print_lines(
    file: &str,
    trials: &[Trial],
    thresholds: bool,
    presets: bool,
) -> Result<(), CliError> {
    for trial in trials {
        for scan in &trial.found {
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
                threshold: thresholds.then_some(trial.threshold),
                preset: presets.then(|| trial.preset.as_str()),
                evidence: (trial.preset == Preset::Balanced).then(evidence),
            })?;
        }
    }
    Ok(())
}

impl Summary {
    pub fn sentence(&self, file: &str, rule: &DetectionConfig, trials: &[Trial]) -> String {
        let span = match (self.first, self.last) {
            (Some(first), Some(last)) => {
                let length = Duration::from_secs(last.since(first).as_secs());
                format!(" in {} from {}", HumanDuration(length), absolute(first))
            }
            _ => String::new(),
        };
        let outbound = match self.outbound {
            0 => String::new(),
            outbound => format!(", {outbound} of them outbound"),
        };
        let forgotten: u64 = trials.iter().map(|trial| trial.detector.evicted()).max().unwrap_or(0);
        let forgotten = match forgotten {
            0 => String::new(),
            count => {
                format!("; {count} sources forgotten for want of room (detection.max_sources)")
            }
        };
        let scans = |trial: &Trial| match trial.found.len() {
            1 => "1 scan".to_owned(),
            count => format!("{count} scans"),
        };
        let found = match trials {
            [trial] if trial.preset == Preset::Balanced => {
                format!("{} (balanced: what failed counts)", scans(trial))
            }
            [trial] => format!(
                "{} (more than {} ports within {})",
                scans(trial),
                trial.threshold,
                HumanDuration(rule.window.get())
            ),
            [first, second] if first.preset != second.preset => "presets compared".to_owned(),
            _ => format!("{} thresholds compared", trials.len()),
        };
        let own = match &self.guessed {
            None => String::new(),
            Some(own) if own.is_empty() => {
                "; no address seems to be the host's own (--local NET names them)".to_owned()
            }
            Some(own) => {
                let own: Vec<String> = own.iter().map(show_network).collect();
                format!(
                    "; {} is taken for the host's own (--local NET names others)",
                    own.join(", ")
                )
            }
        };
        let one_sided = if self.one_sided {
            "; answers are not seen, or not all: what seems unanswered was judged by the classic rule"
        } else {
            ""
        };
        let Self { packets, probes, .. } = self;
        format!(
            "{file}: {packets} packets, {probes} probes{outbound}{span}: \
             {found}{forgotten}{own}{one_sided}"
        )
    }
}

/// A row for each scan, of one of several files or of one alone.
pub fn listing(trial: &Trial, of_file: Option<&str>) -> Table {
    let balanced = trial.preset == Preset::Balanced;
    let mut heading = vec!["TIME", "SOURCE", "KIND", "PROBE", "PORTS"];
    if balanced {
        heading.push("RULE");
    }
    let mut table = Table::new(of_file.map(|_| "FILE").into_iter().chain(heading));
    for scan in &trial.found {
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

/// A port, what became of it, and how long before the scan was recognised.
fn evidence(attempt: &Attempt, scan: &Scan) -> String {
    let ago = scan.moment.since(attempt.moment).as_secs_f64();
    format!("{} -{ago:.3}s", attempt.describe())
}

/// A row for each source that any trial would block: by which probe each does.
pub fn comparison(trials: &[Trial], presets: bool, of_file: Option<&str>) -> Table {
    let headings = trials.iter().map(|trial| {
        if presets {
            trial.preset.as_str().to_uppercase()
        } else {
            format!("MORE THAN {}", trial.threshold)
        }
    });
    let first = of_file.map(|_| "FILE").into_iter().chain(["SOURCE"]).map(ToOwned::to_owned);
    let mut table = Table::new(first.chain(headings));
    let begin = |source: String| of_file.map(ToOwned::to_owned).into_iter().chain([source]);
    let mut sources: BTreeMap<IpNet, Vec<Option<String>>> = BTreeMap::new();
    for (column, trial) in trials.iter().enumerate() {
        for scan in trial.found.iter().filter(|scan| scan.rule.blocks()) {
            let cells = sources.entry(scan.source).or_insert_with(|| vec![None; trials.len()]);
            let mut cell = format!("at its probe {}", scan.probes);
            if presets {
                cell += &format!(": {}", scan.rule.sentence(scan.threshold, scan.span));
            }
            // The first report is the one that blocks.
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

/// UTC, RFC 3339, to the microsecond.
fn absolute(moment: Moment) -> String {
    /// 9999-12-31T23:59:59Z, the last second that can be written.
    const LAST: Duration = Duration::from_secs(253_402_300_799);
    let since_epoch = Duration::from_nanos(moment.as_nanos()).min(LAST);
    let time = SystemTime::UNIX_EPOCH.checked_add(since_epoch);
    time.map_or_else(
        || moment.as_nanos().to_string(),
        |time| humantime::format_rfc3339_micros(time).to_string(),
    )
}
