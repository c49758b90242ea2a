//! `tcptracker replay`: what the detector would have done on a capture.

pub mod guess;
pub mod report;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use ipnet::IpNet;

use crate::cli::CliError;
use crate::cli::arguments::{Compared, Replay};
use crate::cli::output::{on_terminal, print, say};
use crate::cli::replay::guess::own_addresses;
use crate::cli::replay::report::{comparison, listing, print_lines};
use crate::config::{DetectionConfig, Effective, Per, Preset, Sources, Threshold};
use crate::detect::balanced::thresholds::LONGEST_DELAY;
use crate::detect::{self, Detector, Observer, unit_of};
use crate::system::capture::frame::{probe_in, segment_in};
use crate::system::capture::saved::{SavedCapture, SavedError, name_of};
use crate::system::progress::Progress;
use crate::types::clock::Moment;
use crate::types::host::Host;
use crate::types::scan::Scan;
use crate::types::segment::Direction;
use crate::types::segment::Segment;

/// Probes read before they are handed over, and how many times as many may wait.
const BATCH: usize = 4096;
const BATCHES_AHEAD: usize = 4;

/// A file that takes longer is large: somebody wants to know how far it is.
const PATIENCE: Duration = Duration::from_millis(500);

/// How often it is looked whether it is time to say so, in packets: they take a microsecond or less.
const LOOK_AGAIN: u64 = 4096;

/// A detector with one of the presets and thresholds, and what it has found.
pub struct Trial {
    preset: Preset,
    threshold: usize,
    detector: Box<dyn Detector>,
    found: Vec<Scan>,
    /// What the detector does not know: how many probes a source has sent in all, where it counts per
    /// pair or failures.
    probes_of: Option<HashMap<IpNet, u64>>,
}

/// All of them side by side, on one file.
pub struct Trials {
    host: Host,
    each: Vec<Trial>,
    summary: Summary,
    rule: DetectionConfig,
    /// When the latest segment was captured.
    until: Option<Moment>,
    /// Whether some look at outcomes.
    outcomes: bool,
}

/// What a file held.
#[derive(Default)]
struct Summary {
    packets: u64,
    probes: u64,
    outbound: u64,
    first: Option<Moment>,
    last: Option<Moment>,
    /// The host's own addresses, where they had to be guessed.
    guessed: Option<Vec<IpNet>>,
    one_sided: bool,
}

pub fn run(arguments: &Replay, sources: &Sources) -> Result<(), CliError> {
    let mut rule = Effective::load(sources)?.config.detection;
    rule.preset = arguments.preset.map_or(rule.preset, Preset::from);
    rule.ports = arguments.ports.unwrap_or(rule.ports);
    rule.window = arguments.window.unwrap_or(rule.window);
    rule.per = arguments.per.map_or(rule.per, Per::from);
    rule.ipv6_prefix = arguments.ipv6_prefix.unwrap_or(rule.ipv6_prefix);
    let first = match &arguments.compare {
        Some(Compared::File(file)) => Some(file),
        _ => None,
    };
    let mut failure = None;
    let files: Vec<&PathBuf> = first.into_iter().chain(&arguments.files).collect();
    if files.is_empty() {
        return Err(CliError::NoFile);
    }
    let several = files.len() > 1;
    for file in files {
        // One file that cannot be read does not hide what the others hold.
        if let Err(error) = replay(file, several, arguments, &rule) {
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
    several: bool,
    arguments: &Replay,
    rule: &DetectionConfig,
) -> Result<(), CliError> {
    let capture = SavedCapture::open(file)?;
    let rule_of = |preset, ports| DetectionConfig { preset, ports, ..rule.clone() };
    let thresholds =
        |list: &[Threshold]| list.iter().map(|ports| rule_of(Preset::Classic, *ports)).collect();
    let (rules, presets): (Vec<_>, bool) = match &arguments.compare {
        Some(Compared::Thresholds(list)) => (thresholds(list), false),
        Some(_) => {
            ([Preset::Classic, Preset::Balanced].map(|p| rule_of(p, rule.ports)).to_vec(), true)
        }
        None => (vec![rule.clone()], false),
    };
    let compared = arguments.compare.is_some();
    let mut trials = Trials::new(rules, rule, arguments.local.clone());
    let damage = trials.read(capture, &name_of(file)).err();

    let path = file.display().to_string();
    if arguments.json {
        print_lines(&path, &trials.each, compared && !presets, presets)?;
    } else {
        let summary = trials.summary.sentence(&name_of(file), rule, &trials.each);
        // For programs the output is rows and nothing else, which say of which file they are.
        if on_terminal() {
            print(&(summary + "\n"))?;
        } else {
            say(&summary);
        }
        let of_file = (several && !on_terminal()).then_some(path.as_str());
        if compared {
            comparison(&trials.each, presets, of_file).print()?;
        } else if let [trial] = &trials.each[..] {
            listing(trial, of_file).print()?;
        }
    }
    damage.map_or(Ok(()), |error| Err(error.into()))
}

impl Trials {
    fn new(rules: Vec<DetectionConfig>, rule: &DetectionConfig, local: Vec<IpNet>) -> Self {
        let outcomes = rules.iter().any(|rule| rule.preset == Preset::Balanced);
        let trial = |rule: DetectionConfig| Trial {
            preset: rule.preset,
            threshold: rule.ports.get(),
            probes_of: (rule.preset == Preset::Balanced || rule.per == Per::Pair)
                .then(HashMap::new),
            detector: detect::new(rule),
            found: Vec::new(),
        };
        let guess = outcomes && local.is_empty();
        Self {
            host: Host::with_networks(local),
            each: rules.into_iter().map(trial).collect(),
            summary: Summary { guessed: guess.then(Vec::new), ..Summary::default() },
            rule: rule.clone(),
            until: None,
            outcomes,
        }
    }

    /// Reads a file to its end, or to where it is damaged; as in the service, in another thread than the
    /// one that detects.
    fn read(&mut self, capture: SavedCapture, name: &str) -> Result<(), SavedError> {
        let (batches_in, batches) = sync_channel(BATCHES_AHEAD);
        let (outcomes, stealth) = (self.outcomes, self.rule.stealth);
        thread::scope(|scope| {
            let reader =
                scope.spawn(move || read_probes(capture, name, outcomes, stealth, &batches_in));
            for (number, batch) in batches.iter().enumerate() {
                if number == 0
                    && let Some(guessed) = &mut self.summary.guessed
                {
                    *guessed = own_addresses(&batch);
                    self.host = Host::with_networks(guessed.clone());
                }
                self.consider(&batch);
            }
            self.finish();
            match reader.join() {
                Ok((packets, result)) => {
                    self.summary.packets = packets;
                    result
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    fn consider(&mut self, segments: &[Segment]) {
        self.until = self.until.max(segments.iter().map(|segment| segment.moment).max());
        for trial in &mut self.each {
            let Trial { detector, found, probes_of, .. } = trial;
            let mut tally = Tally { host: &self.host, rule: &self.rule, probes_of, found };
            detector.observe(segments, &self.host, &mut tally);
            self.summary.one_sided |= detector.was_one_sided();
        }
        for probe in segments.iter().filter(|segment| segment.kind.is_probe()) {
            self.summary.see(probe.moment);
            if self.host.direction_of(probe) == Direction::Outbound {
                self.summary.outbound += 1;
            }
        }
    }

    /// The service would not have stopped where the file does.
    fn finish(&mut self) {
        let Some(until) = self.until else { return };
        for trial in &mut self.each {
            let Trial { detector, found, probes_of, .. } = trial;
            let mut tally = Tally { host: &self.host, rule: &self.rule, probes_of, found };
            detector.pass_time(until + LONGEST_DELAY, &self.host, &mut tally);
            self.summary.one_sided |= detector.was_one_sided();
        }
    }
}

/// Keeps what the detector of a trial finds.
struct Tally<'a> {
    host: &'a Host,
    rule: &'a DetectionConfig,
    probes_of: &'a mut Option<HashMap<IpNet, u64>>,
    found: &'a mut Vec<Scan>,
}

impl Observer for Tally<'_> {
    fn segments(&mut self, segments: &[Segment]) {
        let Some(counts) = self.probes_of else { return };
        for probe in segments.iter().filter(|segment| segment.kind.is_probe()) {
            if self.host.direction_of(probe) != Direction::Outbound {
                *counts.entry(unit_of(self.rule, probe.source, self.host)).or_default() += 1;
            }
        }
    }

    /// Keeps a scan that is new, with the number of the probe among all probes of the source.
    fn scan(&mut self, scan: Arc<Scan>) -> bool {
        if !scan.continued {
            let number = self.probes_of.as_ref().and_then(|counts| counts.get(&scan.source));
            let probes = number.copied().unwrap_or(scan.probes);
            self.found.push(Scan { probes, ..Arc::unwrap_or_clone(scan) });
        }
        true
    }
}

/// The reading thread: how many packets there were, and whether that was all. The probes go out in
/// batches, with what tells of their outcomes or without.
fn read_probes(
    mut capture: SavedCapture,
    name: &str,
    outcomes: bool,
    stealth: bool,
    batches: &SyncSender<Vec<Segment>>,
) -> (u64, Result<(), SavedError>) {
    let link = capture.link();
    let mut progress = Progress::after(PATIENCE);
    let mut packets: u64 = 0;
    let mut batch = Vec::with_capacity(BATCH);
    let result = loop {
        if packets.is_multiple_of(LOOK_AGAIN) {
            progress.show(|| how_far(name, packets, &capture));
        }
        let frame = match capture.next_frame() {
            Ok(Some(frame)) => frame,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        packets += 1;
        let moment = Moment::from_nanos(frame.unix_nanos);
        let probe = if outcomes {
            segment_in(link, frame.bytes, moment)
        } else {
            probe_in(link, frame.bytes, moment)
        };
        batch.extend(probe.filter(|probe| probe.kind.is_ordinary() || stealth));
        if batch.len() == BATCH {
            // Nobody takes them only if the detecting thread is gone, and it waits for this one.
            let _ = batches.send(std::mem::replace(&mut batch, Vec::with_capacity(BATCH)));
        }
    };
    let _ = batches.send(batch);
    (packets, result)
}

fn how_far(name: &str, packets: u64, capture: &SavedCapture) -> String {
    match capture.share_read() {
        Some(share) => format!("{name}: {:.0}% read, {packets} packets", share * 100.0),
        None => format!("{name}: {packets} packets read"),
    }
}

impl Summary {
    fn see(&mut self, moment: Moment) {
        self.probes += 1;
        self.first = Some(self.first.map_or(moment, |first| first.min(moment)));
        self.last = self.last.max(Some(moment));
    }
}
