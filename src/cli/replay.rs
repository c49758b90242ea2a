//! `tcptracker replay`: what the detector would have done on a capture.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use serde::Serialize;

use super::output::{Table, print, print_json_line, say};
use super::{CliError, Replay};
use crate::capture::frame::probe_in;
use crate::capture::{SavedCapture, SavedError};
use crate::clock::{HumanDuration, Moment};
use crate::config::{DetectionConfig, Effective, Per, Sources};
use crate::detector::{Detector, Scan};
use crate::events::Direction;
use crate::host::Host;
use crate::network::show_network;

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
    /// With `--compare` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    threshold: Option<usize>,
}

/// A detector with one of the thresholds, and what it has found.
struct Trial {
    threshold: usize,
    detector: Detector,
    found: Vec<Scan>,
}

/// What a file held.
#[derive(Default)]
struct Summary {
    packets: u64,
    probes: u64,
    outbound: u64,
    first: Option<Moment>,
    last: Option<Moment>,
}

pub(super) fn run(arguments: &Replay, sources: &Sources) -> Result<(), CliError> {
    let mut rule = Effective::load(sources)?.config.detection;
    rule.ports = arguments.ports.unwrap_or(rule.ports);
    rule.window = arguments.window.unwrap_or(rule.window);
    rule.per = arguments.per.map_or(rule.per, Per::from);
    rule.ipv6_prefix = arguments.ipv6_prefix.unwrap_or(rule.ipv6_prefix);
    let host = Host::with_networks(arguments.local.clone());
    let mut failure = None;
    for file in &arguments.files {
        // One file that cannot be read does not hide what the others hold.
        if let Err(error) = replay(file, arguments, &rule, &host) {
            if let Some(CliError::Saved(earlier)) = failure.replace(error) {
                say(&earlier);
            }
            if matches!(failure, Some(CliError::Output(_))) {
                break;
            }
        }
    }
    failure.map_or(Ok(()), Err)
}

fn replay(
    file: &Path,
    arguments: &Replay,
    rule: &DetectionConfig,
    host: &Host,
) -> Result<(), CliError> {
    let mut capture = SavedCapture::open(file)?;
    let thresholds = arguments.compare.as_ref().map_or_else(|| vec![rule.ports], Clone::clone);
    let mut trials: Vec<Trial> = thresholds
        .into_iter()
        .map(|ports| Trial {
            threshold: ports.get(),
            detector: Detector::new(DetectionConfig { ports, ..rule.clone() }),
            found: Vec::new(),
        })
        .collect();
    let mut summary = Summary::default();
    let damage = read(&mut capture, rule, host, &mut trials, &mut summary).err();

    let name = file.display().to_string();
    if arguments.json {
        print_lines(&name, &trials, arguments.compare.is_some())?;
    } else {
        print(&summary.sentence(&name, rule, &trials))?;
        if arguments.compare.is_some() {
            comparison(&trials).print()?;
        } else if let [trial] = &trials[..] {
            listing(trial).print()?;
        }
    }
    damage.map_or(Ok(()), |error| Err(error.into()))
}

/// Reads the file to its end, or to where it is damaged.
fn read(
    capture: &mut SavedCapture,
    rule: &DetectionConfig,
    host: &Host,
    trials: &mut [Trial],
    summary: &mut Summary,
) -> Result<(), SavedError> {
    let link = capture.link();
    // Counted per pair, the detector does not know how many probes a source has sent in all.
    let mut probes_of: HashMap<IpNet, u64> = HashMap::new();
    while let Some(frame) = capture.next_frame()? {
        summary.packets += 1;
        let moment = Moment::from_nanos(frame.unix_nanos);
        let Some(probe) = probe_in(link, frame.bytes, moment) else { continue };
        if !probe.kind.opens_connection() && !rule.stealth {
            continue;
        }
        summary.see(moment);
        if Detector::direction(host, &probe) == Direction::Outbound {
            summary.outbound += 1;
            continue;
        }
        if rule.per == Per::Pair {
            let Some(trial) = trials.first() else { return Ok(()) };
            *probes_of.entry(trial.detector.unit_of(probe.source, host)).or_default() += 1;
        }
        for trial in &mut *trials {
            let Some(mut scan) = trial.detector.observe(&probe, host) else { continue };
            if scan.continued {
                continue;
            }
            scan.probes = probes_of.get(&scan.source).copied().unwrap_or(scan.probes);
            trial.found.push(scan);
        }
    }
    Ok(())
}

impl Summary {
    fn see(&mut self, moment: Moment) {
        self.probes += 1;
        self.first = Some(self.first.map_or(moment, |first| first.min(moment)));
        self.last = self.last.max(Some(moment));
    }

    fn sentence(&self, file: &str, rule: &DetectionConfig, trials: &[Trial]) -> String {
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
        let found = match trials {
            [trial] => format!(
                "{} scans (more than {} ports within {})",
                trial.found.len(),
                trial.threshold,
                HumanDuration(rule.window.get())
            ),
            _ => format!("{} thresholds compared", trials.len()),
        };
        let Self { packets, probes, .. } = self;
        format!("{file}: {packets} packets, {probes} probes{outbound}{span}: {found}{forgotten}\n")
    }
}

fn print_lines(file: &str, trials: &[Trial], compared: bool) -> Result<(), CliError> {
    for trial in trials {
        for scan in &trial.found {
            print_json_line(&Line {
                file,
                time_ns: scan.moment.as_nanos(),
                source: show_network(&scan.source),
                kind: scan.kind.as_str(),
                ports: scan.ports().iter().map(|port| port.0).collect(),
                probe: scan.probes,
                threshold: compared.then_some(trial.threshold),
            })?;
        }
    }
    Ok(())
}

fn listing(trial: &Trial) -> Table {
    let mut table = Table::new(["TIME", "SOURCE", "KIND", "PROBE", "PORTS"]);
    for scan in &trial.found {
        let ports: Vec<String> = scan.ports().iter().map(ToString::to_string).collect();
        table.row(vec![
            absolute(scan.moment),
            show_network(&scan.source),
            scan.kind.as_str().to_owned(),
            scan.probes.to_string(),
            ports.join(" "),
        ]);
    }
    table
}

/// A row for each source that any threshold would block: by which probe each does.
fn comparison(trials: &[Trial]) -> Table {
    let headings = trials.iter().map(|trial| format!("MORE THAN {}", trial.threshold));
    let mut table = Table::new(std::iter::once("SOURCE".to_owned()).chain(headings));
    let mut sources: BTreeMap<IpNet, Vec<Option<u64>>> = BTreeMap::new();
    for (column, trial) in trials.iter().enumerate() {
        for scan in &trial.found {
            let cells = sources.entry(scan.source).or_insert_with(|| vec![None; trials.len()]);
            // The first report is the one that blocks.
            cells[column].get_or_insert(scan.probes);
        }
    }
    for (source, cells) in &sources {
        let cells = cells.iter().map(|cell| {
            cell.map_or_else(|| "-".to_owned(), |probe| format!("at its probe {probe}"))
        });
        table.row(std::iter::once(show_network(source)).chain(cells).collect());
    }
    let blocked = (0..trials.len())
        .map(|column| sources.values().filter(|cells| cells[column].is_some()).count().to_string());
    table.row(std::iter::once("blocked".to_owned()).chain(blocked).collect());
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
