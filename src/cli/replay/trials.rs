//! Runs detectors with different rules side by side on one capture file.
//!
//! Owns the detectors and what they have found. As in the service, one thread reads ([`reader`]) and
//! another one detects.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread;

use ipnet::IpNet;

use crate::cli::replay::guess::own_addresses;
use crate::cli::replay::reader::{self, BATCHES_AHEAD, Contents, Wanted};
use crate::config::{DetectionConfig, Per, Preset};
use crate::detect::balanced::thresholds::LONGEST_DELAY;
use crate::detect::{self, Detector, Observer, unit_of};
use crate::system::capture::saved::{SavedCapture, SavedError};
use crate::types::{Direction, Host, Moment, Pending, Scan, Segment};

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
    contents: Contents,
    watched: Option<Watched>,
    /// The time of the latest segment.
    until: Option<Moment>,
    /// Whether any preset needs outcomes.
    outcomes: bool,
}

/// A source whose way to a block is explained.
struct Watched {
    source: IpNet,
    /// Its state when it was nearest to a block.
    nearest: Pending,
}

/// What a file contains.
#[derive(Clone, Default)]
pub struct Summary {
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
            contents: Contents::default(),
            watched: None,
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

    /// Has the first detector explain how close a source comes to a block.
    pub fn watch(&mut self, source: IpNet) {
        self.watched = Some(Watched { source, nearest: Pending::default() });
    }

    /// Returns the source that was watched, and its state when it was nearest to a block.
    pub fn watched(&self) -> Option<(IpNet, &Pending)> {
        self.watched.as_ref().map(|watched| (watched.source, &watched.nearest))
    }

    /// Returns what was in the file apart from segments.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Reads a file to its end, or up to the damage.
    pub fn read(&mut self, capture: SavedCapture, name: &str) -> Result<(), SavedError> {
        let (batches_in, batches) = sync_channel(BATCHES_AHEAD);
        let wanted = Wanted { outcomes: self.outcomes, stealth: self.rule.stealth };
        thread::scope(|scope| {
            let reader = scope.spawn(move || reader::read(capture, name, wanted, &batches_in));
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
                Ok((contents, result)) => {
                    self.contents = contents;
                    result
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    fn consider(&mut self, segments: &[Segment]) {
        self.until = self.until.max(segments.iter().map(|segment| segment.moment).max());
        let source = self.watched.as_ref().map(|watched| watched.source);
        let is_watched = |segment: &Segment| {
            source.is_some_and(|source| {
                source.contains(&segment.source) || source.contains(&segment.destination)
            })
        };
        for part in segments.split_inclusive(is_watched) {
            self.detect(|detector, host, tally| detector.observe(part, host, tally));
            self.explain(part.last().map(|segment| segment.moment));
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
        let late = until + LONGEST_DELAY;
        self.detect(|detector, host, tally| detector.pass_time(late, host, tally));
        self.explain(Some(until));
    }

    /// Keeps the state of the watched source if it is nearer to a block than before.
    fn explain(&mut self, now: Option<Moment>) {
        let (Some(watched), Some(trial), Some(now)) =
            (&mut self.watched, self.each.first_mut(), now)
        else {
            return;
        };
        let pending = trial.detector.explain(watched.source, now, &self.host);
        let rank = |pending: &Pending| pending.missing().unwrap_or(usize::MAX);
        if rank(&pending) <= rank(&watched.nearest) && pending != Pending::default() {
            watched.nearest = pending;
        }
    }

    fn detect(&mut self, step: impl Fn(&mut dyn Detector, &Host, &mut Tally<'_>)) {
        for trial in &mut self.each {
            let Trial { detector, found, probes_of, .. } = trial;
            let mut tally = Tally { host: &self.host, rule: &self.rule, probes_of, found };
            step(detector.as_mut(), &self.host, &mut tally);
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
