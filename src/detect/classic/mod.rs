//! The classic rule: more than so many distinct ports of one source within a window.
//!
//! Pure. Counts every probe, whatever its outcome. Owns what is remembered of each source, in fixed memory. A
//! new source evicts the least recently seen one, and evictions are counted.

pub mod candidates;
pub mod lru;
pub mod sources;
pub mod window;

#[cfg(test)]
mod tests;

use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::{DetectionConfig, Per, Preset};
use crate::detect::classic::sources::{Lookup, Sources};
use crate::detect::decoys::Decoys;
use crate::detect::key::Key;
use crate::detect::ongoing::OngoingScans;
use crate::detect::traps::Traps;
use crate::detect::{BATCH, Detector, Observer, report, unit_of};
use crate::types::{
    Attempt, Decision, Host, Judged, Moment, Pending, Progress, Rule, Scan, ScanKind, Segment,
    SegmentKind, Summary,
};

/// The detector of the preset `classic`.
pub struct ClassicDetector {
    rule: DetectionConfig,
    sources: Sources,
    ongoing: OngoingScans,
    decoys: Decoys,
    traps: Traps,
    /// Reused for each batch.
    lookups: Vec<Lookup>,
    latest: Moment,
}

impl ClassicDetector {
    pub fn new(rule: DetectionConfig) -> Self {
        let sources = Sources::new(rule.max_sources.get(), rule.ports.get(), rule.window.get());
        Self {
            traps: Traps::new(&rule),
            rule,
            sources,
            ongoing: OngoingScans::new(),
            decoys: Decoys::new(),
            lookups: Vec::with_capacity(BATCH),
            latest: Moment::default(),
        }
    }

    /// Looks up the sources of several segments.
    fn look_up(&mut self, segments: &[Segment], host: &Host) {
        let (rule, sources) = (&self.rule, &self.sources);
        self.lookups.clear();
        self.lookups.extend(segments.iter().map(|segment| match segment.source {
            IpAddr::V4(source) if rule.per == Per::Source => sources.lookup_ipv4(source),
            _ => sources.lookup(&key_of(rule, segment, host)),
        }));
        sources.seek(&mut self.lookups);
    }

    /// Considers a segment whose source has been looked up. Returns a scan when the source exceeds the rule
    /// and, while it continues, once per window and each time the number of its ports doubles. What this host itself sends never counts.
    fn consider(&mut self, probe: &Segment, lookup: Lookup, host: &Host) -> Option<Scan> {
        let ordinary = probe.kind == SegmentKind::Syn;
        if !(ordinary || self.rule.stealth && probe.kind.is_probe())
            || host.owns(probe.source)
            || host.is_impossible_source(probe.source)
        {
            return None;
        }
        // A clock that runs backwards, as in a capture file that was merged from several, stands still here.
        let now = self.latest.max(probe.moment);
        self.latest = now;

        let span = self.rule.window.get();
        let (rule, sources) = (&self.rule, &mut self.sources);
        let key = || key_of(rule, probe, host);
        let mut memory = sources.on_probe(&lookup, key, probe, now)?;
        // A source that was silent for a whole window starts over.
        if now.is_past(memory.window().latest(), span) {
            *memory.stealthy() = false;
            memory.set_reported(None);
        }
        let probes = memory.count(1);
        *memory.stealthy() |= !ordinary;
        let reported = memory.reported();
        if reported.is_some() {
            self.ongoing.add_probe(&key(), probe.port, now);
        }
        let tried = memory.window().record(probe.port, now, span);
        if tried.new_port && reported.is_none() {
            let latest = Attempt::at(probe.port, now);
            self.decoys.note(probe.source, latest, memory.window().attempts());
        }
        let has_doubled = reported.is_some() && tried.new_port && memory.effort().add();
        let is_due = reported.is_none_or(|reported| now.is_past(reported, span));
        if !tried.too_many || !(is_due || has_doubled) {
            return None;
        }
        memory.set_reported(Some(now));
        let continued = reported.is_some();
        let attempts: Vec<Attempt> = memory.window().attempts().collect();
        let mut others = Vec::new();
        if !continued {
            others = self.decoys.around(&key().source, &attempts);
            memory.effort().begin(attempts.len(), !others.is_empty());
            self.ongoing.begin(key(), &attempts, probes, now);
        }
        let kind = if *memory.stealthy() { ScanKind::Stealth } else { ScanKind::Vertical };
        Some(Scan {
            source: key().source,
            address: probe.source,
            destination: probe.destination,
            kind,
            attempts,
            moment: probe.moment,
            probes,
            rule: rule_of_ports(rule.per),
            threshold: self.rule.ports.get(),
            span,
            tried: memory.effort().tried(),
            continued,
            decoy: memory.effort().is_decoy(),
            others,
        })
    }
}

impl Detector for ClassicDetector {
    fn preset(&self) -> Preset {
        Preset::Classic
    }

    fn observe(&mut self, segments: &[Segment], host: &Host, observer: &mut dyn Observer) {
        for batch in segments.chunks(BATCH) {
            self.look_up(batch, host);
            let mut passed = 0;
            for (at, segment) in batch.iter().enumerate() {
                let trapped = self.traps.consider(segment, &self.rule, host);
                let counted = self.consider(segment, self.lookups[at], host);
                for scan in trapped.into_iter().chain(counted) {
                    observer.segments(&batch[passed..=at]);
                    passed = at + 1;
                    report(self, scan, observer);
                }
            }
            observer.segments(&batch[passed..]);
        }
    }

    fn reconfigure(&mut self, rule: DetectionConfig) -> bool {
        let identity = |rule: &DetectionConfig| (rule.per, rule.max_sources, rule.ipv6_prefix);
        let kept = identity(&rule) == identity(&self.rule);
        if kept {
            self.sources.set_rule(rule.ports.get(), rule.window.get());
            self.traps.reconfigure(&rule);
            self.rule = rule;
        } else {
            let evicted = self.sources.evicted();
            *self = Self { latest: self.latest, ..Self::new(rule) };
            self.sources.set_evicted(evicted);
        }
        kept
    }

    fn sum_up(&mut self, now: Moment) -> (Vec<Summary>, u64) {
        self.ongoing.sum_up(now)
    }

    fn forget(&mut self, network: IpNet) {
        self.sources.forget(network);
        self.ongoing.forget(network);
        self.traps.forget(network);
    }

    fn not_delivered(&mut self, scan: &Scan) {
        self.traps.not_delivered(scan);
        let destination = (self.rule.per == Per::Pair).then_some(scan.destination);
        let key = Key { source: scan.source, destination };
        match self.sources.get(&key) {
            Some(mut memory) if scan.continued => memory.effort().retry(),
            Some(mut memory) => memory.set_reported(None),
            None => {}
        }
    }

    fn explain(&mut self, source: IpNet, now: Moment, host: &Host) -> Pending {
        let mut pending = Pending::default();
        let source = unit_of(&self.rule, source.addr(), host);
        // Per pair, the hosts that a source has tried are unknown, except this one.
        let destinations: Vec<Option<IpAddr>> = match self.rule.per {
            Per::Source => vec![None],
            Per::Pair => host.own().iter().copied().map(Some).collect(),
        };
        let span = self.rule.window.get();
        for host in destinations {
            let mut attempts = self.sources.attempts(&Key { source, destination: host });
            attempts.retain(|attempt| !now.is_past(attempt.moment, span));
            if attempts.is_empty() {
                continue;
            }
            let (rule, count) = (rule_of_ports(self.rule.per), attempts.len());
            let threshold = self.rule.ports.get();
            pending.progress.push(Progress { rule, host, count, threshold, span });
            let (source, decision) = (source.addr(), Decision::Counts);
            let judged = |attempt| Judged { source, host, attempt, decision };
            pending.failures.extend(attempts.into_iter().map(judged));
        }
        pending
    }

    fn sources(&self) -> usize {
        self.sources.len()
    }

    fn evicted(&self) -> u64 {
        self.sources.evicted()
    }
}

fn rule_of_ports(per: Per) -> Rule {
    match per {
        Per::Source => Rule::Ports,
        Per::Pair => Rule::PortsOfHost,
    }
}

#[inline]
fn key_of(rule: &DetectionConfig, probe: &Segment, host: &Host) -> Key {
    let source = unit_of(rule, probe.source, host);
    Key { source, destination: (rule.per == Per::Pair).then_some(probe.destination) }
}
