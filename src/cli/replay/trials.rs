//! Runs detectors with different rules side by side on one capture file.
//!
//! Owns the detectors and what they have found. As in the service, one thread reads and another one
//! detects.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use ipnet::IpNet;

use crate::cli::output::safe;
use crate::cli::replay::guess::own_addresses;
use crate::config::{DetectionConfig, Per, Preset};
use crate::detect::balanced::thresholds::LONGEST_DELAY;
use crate::detect::{self, Detector, Observer, unit_of};
use crate::system::capture::frame::{probe_in, segment_in};
use crate::system::capture::saved::{SavedCapture, SavedError};
use crate::system::progress::Progress;
use crate::types::{Direction, Host, Moment, Scan, Segment};

/// Segments per batch, and batches that may wait for the detecting thread.
const BATCH: usize = 4096;
const BATCHES_AHEAD: usize = 4;

/// Files that take longer than this show their progress.
const SHOW_PROGRESS_AFTER: Duration = Duration::from_millis(500);

/// Packets between two updates of the progress. Each takes at most a microsecond.
const UPDATE_INTERVAL: u64 = 4096;

/// A detector with one preset and threshold, and the scans that it has found.
pub struct Trial {
    preset: Preset,
    threshold: usize,
    detector: Box<dyn Detector>,
    found: Vec<Scan>,
    /// The number of probes of each source, if the detector does not count them: it counts per pair, or
    /// only failures.
    probes_of: Option<HashMap<IpNet, u64>>,
}

impl Trial {
    pub fn preset(&self) -> Preset {
        self.preset
    }

    pub fn threshold(&self) -> usize {
        self.threshold
    }

    pub fn found(&self) -> &[Scan] {
        &self.found
    }

    /// Returns how many sources the detector has evicted to make room for others.
    pub fn evicted(&self) -> u64 {
        self.detector.evicted()
    }
}

/// All detectors for one file.
pub struct Trials {
    host: Host,
    each: Vec<Trial>,
    summary: Summary,
    rule: DetectionConfig,
    /// The time of the latest segment.
    until: Option<Moment>,
    /// Whether any preset needs outcomes.
    outcomes: bool,
}

/// What a file contains.
#[derive(Clone, Default)]
pub struct Summary {
    pub packets: u64,
    pub probes: u64,
    pub outbound: u64,
    pub first: Option<Moment>,
    pub last: Option<Moment>,
    /// The host's own addresses, if they were guessed.
    pub guessed: Option<Vec<IpNet>>,
    /// Whether replies are missing.
    pub one_sided: bool,
}

impl Trials {
    pub fn new(rules: Vec<DetectionConfig>, rule: &DetectionConfig, local: Vec<IpNet>) -> Self {
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

    pub fn each(&self) -> &[Trial] {
        &self.each
    }

    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Reads a file to its end, or up to the damage.
    pub fn read(&mut self, capture: SavedCapture, name: &str) -> Result<(), SavedError> {
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
            let summary = &mut self.summary;
            summary.probes += 1;
            summary.first =
                summary.first.map_or(Some(probe.moment), |first| Some(first.min(probe.moment)));
            summary.last = summary.last.max(Some(probe.moment));
            if self.host.direction_of(probe) == Direction::Outbound {
                summary.outbound += 1;
            }
        }
    }

    /// Lets time pass after the end of the file, so that pending decisions are made.
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

/// Runs on the reading thread: sends probes, and with `outcomes` all other segments that tell what became
/// of them, in batches. Returns the number of packets.
fn read_probes(
    mut capture: SavedCapture,
    name: &str,
    outcomes: bool,
    stealth: bool,
    batches: &SyncSender<Vec<Segment>>,
) -> (u64, Result<(), SavedError>) {
    let link = capture.link();
    let mut progress = Progress::after(SHOW_PROGRESS_AFTER);
    let mut packets: u64 = 0;
    let mut batch = Vec::with_capacity(BATCH);
    let result = loop {
        if packets.is_multiple_of(UPDATE_INTERVAL) {
            progress.show(|| progress_text(name, packets, &capture));
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
            // The detecting thread waits for this one, so it receives the batch.
            let _ = batches.send(std::mem::replace(&mut batch, Vec::with_capacity(BATCH)));
        }
    };
    let _ = batches.send(batch);
    (packets, result)
}

fn progress_text(name: &str, packets: u64, capture: &SavedCapture) -> String {
    let name = safe(name);
    match capture.share_read() {
        Some(share) => format!("{name}: {:.0}% read, {packets} packets", share * 100.0),
        None => format!("{name}: {packets} packets read"),
    }
}
