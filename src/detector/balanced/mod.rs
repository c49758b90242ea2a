//! Balanced detection: only what failed counts.
//!
//! Pure, as the classic rule: segments and moments in, scans out, in fixed memory. A probe is followed
//! until it is known what became of it; a failure is held against its source, per host and per port.
//! Every number stands in [`numbers`], with its reason.

#![expect(
    clippy::cast_possible_truncation,
    reason = "hashes are cut to the bits that are needed, places fit by construction"
)]

mod crowd;
mod first;
mod hosts;
mod numbers;
mod pending;
mod ports;
mod sight;
mod table;

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::decoys::Decoys;
use super::episodes::{Episodes, Summary};
use super::sources::Key;
use super::{Attempt, Detector, Rule, Scan, ScanKind, Sought, unit_of};
use crate::clock::Moment;
use crate::config::DetectionConfig;
use crate::host::{Host, Listening};
use crate::network::overlap;
use crate::probe::{Outcome, Port, Probe, ProbeKind};
use crowd::Crowds;
use first::{Failure, FirstFailures};
use hosts::RecentHosts;
use numbers::{
    A_MINUTE, AN_HOUR, FOLLOWED, MANY_PORTS, MANY_SOURCES, REPEATED_AFTER, STRAY,
    STRAY_PORTS_BELOW, SWEEP,
};
use pending::{Begun, Due, Flow, Pending, Stage};
use ports::{Broken, Credit, RecentPorts};
use sight::{OpenPorts, Sight};
use table::Table;

/// Sources that sweep, and sources of stray segments, for each that fails on several ports: there are
/// fewer of them.
const SHARE_OF_OTHERS: usize = 16;

/// What is remembered of a source that has failed on several ports of a host.
struct Record {
    ports: RecentPorts,
    credit: Credit,
    failures: u64,
    stealthy: bool,
    latest: Moment,
    reported: Option<Moment>,
}

/// A source and a port it tries on several hosts.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct SweepKey {
    source: IpNet,
    port: Port,
}

/// The detector of the balanced rules.
pub struct Balanced {
    rule: DetectionConfig,
    pending: Pending,
    first_ports: FirstFailures,
    records: Table<Key, Record>,
    first_hosts: FirstFailures,
    sweeps: Table<SweepKey, RecentHosts>,
    strays: Table<Key, Record>,
    crowds: Crowds,
    sight: Sight,
    open: OpenPorts,
    listening: Option<Arc<Listening>>,
    /// What is gone back to where answers are not seen.
    classic: Detector,
    sought: Vec<Sought>,
    episodes: Episodes,
    decoys: Decoys,
    hasher: RandomState,
    latest: Moment,
    evicted: u64,
}

impl Balanced {
    /// A detector that has seen nothing.
    pub fn new(rule: DetectionConfig) -> Self {
        let sources = rule.max_sources.get();
        Self {
            pending: Pending::new(FOLLOWED),
            first_ports: FirstFailures::new(sources * 2),
            records: Table::new(sources),
            first_hosts: FirstFailures::new(sources),
            sweeps: Table::new(sources / SHARE_OF_OTHERS),
            strays: Table::new(sources / SHARE_OF_OTHERS),
            crowds: Crowds::new(),
            sight: Sight::new(),
            open: OpenPorts::new(),
            listening: None,
            classic: Detector::new(rule.clone()),
            sought: Vec::with_capacity(1),
            episodes: Episodes::new(),
            decoys: Decoys::new(),
            hasher: RandomState::new(),
            latest: Moment::default(),
            evicted: 0,
            rule,
        }
    }

    /// Goes by another configuration; false where what is remembered had to be given up.
    pub fn reconfigure(&mut self, rule: DetectionConfig) -> bool {
        let same_sources = |rule: &DetectionConfig| (rule.max_sources, rule.ipv6_prefix);
        let kept = same_sources(&rule) == same_sources(&self.rule);
        if kept {
            self.classic.reconfigure(rule.clone());
            self.rule = rule;
        } else {
            let listening = self.listening.take();
            *self = Self { latest: self.latest, listening, ..Self::new(rule) };
        }
        kept
    }

    /// Considers a segment. Scans it makes known are added to `found`: of its own source, or of one that
    /// has waited for an answer in vain.
    pub fn observe(&mut self, segment: &Probe, host: &Host, found: &mut Vec<Scan>) {
        self.pass_time(segment.moment, host, found);
        let now = self.latest;
        match segment.kind {
            ProbeKind::Syn => {
                if host.owns(segment.source) {
                    return;
                }
                if self.sight.is_one_sided() {
                    self.fall_back(segment, host, found);
                }
                let closed = host.owns(segment.destination)
                    && self.listening.as_ref().is_some_and(|ports| !ports.contains(segment.port))
                    && !self.open.knows(segment.destination, segment.port, now);
                self.pending.begin(segment, now, closed);
            }
            ProbeKind::Fin | ProbeKind::Null | ProbeKind::Xmas | ProbeKind::Fragment => {
                if self.rule.stealth && !host.owns(segment.source) {
                    // Whatever comes of it, nobody honest sends it.
                    self.failed(&Flow::from_client(segment), now, Outcome::Unknown, host, found);
                }
            }
            ProbeKind::Answer => self.on_answer(segment, host, found),
            ProbeKind::Reset | ProbeKind::ResetAck => self.on_reset(segment, host, found),
            ProbeKind::Close => self.on_close(segment, host),
        }
    }

    /// It is `now`, and nothing more has been seen.
    pub fn pass_time(&mut self, now: Moment, host: &Host, found: &mut Vec<Scan>) {
        // A clock that runs backwards, as in a capture file put together from several, stands still.
        self.latest = self.latest.max(now);
        while let Some(due) = self.pending.due(self.latest) {
            match due {
                Due::Settled(begun) => self.came_about(&begun.flow, host),
                Due::Unanswered(begun) => {
                    let Begun { flow, moment, .. } = begun;
                    self.sight.unanswered(flow.client, self.latest);
                    if !self.sight.is_one_sided() {
                        self.failed(&flow, moment, Outcome::Unanswered, host, found);
                    }
                }
            }
        }
    }

    /// Whether anything waits for time to pass.
    pub fn is_waiting(&self) -> bool {
        self.pending.is_waiting()
    }

    /// Whether answers are not seen, or not all, so that the classic rule holds for what seems
    /// unanswered.
    pub fn is_one_sided(&self) -> bool {
        self.sight.is_one_sided()
    }

    /// On these ports this host listens.
    pub fn listens_on(&mut self, ports: Arc<Listening>) {
        self.listening = Some(ports);
    }

    /// Capture has lost packets, answers perhaps: nobody who waits for one is given up.
    pub fn has_lost(&mut self) {
        self.pending.give_nobody_up();
    }

    fn fall_back(&mut self, probe: &Probe, host: &Host, found: &mut Vec<Scan>) {
        let mut sought = std::mem::take(&mut self.sought);
        self.classic.seek(std::slice::from_ref(probe), host, &mut sought);
        if let Some(sought) = sought.first() {
            found.extend(self.classic.observe(probe, sought, host));
        }
        self.sought = sought;
    }

    fn on_answer(&mut self, segment: &Probe, host: &Host, found: &mut Vec<Scan>) {
        let (now, flow) = (self.latest, Flow::from_server(segment));
        let Some(begun) = self.pending.find(&flow) else { return };
        let after = now.since(begun.moment);
        match begun.stage {
            Stage::Begun | Stage::GivenUp => {
                let given_up = begun.stage == Stage::GivenUp;
                begun.stage = Stage::Answered;
                begun.answered_after = u16::try_from(after.as_millis()).unwrap_or(u16::MAX);
                self.sight.answered(now);
                self.open.note(flow.server, flow.port, now);
                if given_up {
                    self.take_back(&flow, host);
                }
                let pair = self.hasher.hash_one((flow.client, flow.server));
                if self.crowds.answered(pair, flow.port, now) {
                    let attempt = answered(flow.port, now);
                    let broken = Broken::new(Rule::ManyPorts, MANY_PORTS);
                    found.push(self.report(
                        &flow,
                        ScanKind::Vertical,
                        &broken,
                        vec![attempt],
                        host,
                    ));
                }
            }
            // The server asks whether it was heard, and nobody has asked it again.
            Stage::Answered if !begun.repeated => {
                let answered_after = u128::from(begun.answered_after);
                if after.as_millis() >= answered_after + REPEATED_AFTER.as_millis() {
                    begun.stage = Stage::Over;
                    let moment = begun.moment;
                    self.failed(&flow, moment, Outcome::HalfOpen, host, found);
                }
            }
            Stage::Answered | Stage::Over => {}
        }
    }

    fn on_reset(&mut self, segment: &Probe, host: &Host, found: &mut Vec<Scan>) {
        let now = self.latest;
        let flow = Flow::from_client(segment);
        if let Some(begun) = self.pending.find(&flow) {
            let (stage, moment) = (begun.stage, begun.moment);
            // Nothing was sent but the SYN, which counts as one.
            let silent = segment.sequence == begun.sequence.wrapping_add(1);
            if stage == Stage::Answered {
                begun.stage = Stage::Over;
                match segment.kind {
                    ProbeKind::Reset if silent => {
                        self.failed(&flow, moment, Outcome::HalfOpen, host, found);
                    }
                    ProbeKind::ResetAck if silent => {
                        self.failed(&flow, moment, Outcome::Answered, host, found);
                    }
                    _ => self.came_about(&flow, host),
                }
            }
            return;
        }
        let flow = Flow::from_server(segment);
        if let Some(begun) = self.pending.find(&flow) {
            let (stage, moment) = (begun.stage, begun.moment);
            begun.stage = Stage::Over;
            match stage {
                Stage::Begun => {
                    self.sight.answered(now);
                    self.failed(&flow, moment, Outcome::Refused, host, found);
                }
                Stage::Answered => self.came_about(&flow, host),
                Stage::GivenUp | Stage::Over => {}
            }
        } else if segment.kind == ProbeKind::Reset
            && flow.port.0 < STRAY_PORTS_BELOW
            && self.rule.stealth
            && !host.owns(flow.client)
        {
            self.strayed(&flow, host, found);
        }
    }

    fn on_close(&mut self, segment: &Probe, host: &Host) {
        let flow = Flow::from_client(segment);
        if let Some(begun) = self.pending.find(&flow) {
            match std::mem::replace(&mut begun.stage, Stage::Over) {
                Stage::Answered => self.came_about(&flow, host),
                Stage::Begun | Stage::GivenUp => self.sight.unseen(flow.client, self.latest),
                Stage::Over => {}
            }
            return;
        }
        let flow = Flow::from_server(segment);
        if let Some(begun) = self.pending.find(&flow)
            && begun.stage == Stage::Answered
        {
            // It closes only what a program has taken from it.
            begun.stage = Stage::Over;
            self.came_about(&flow, host);
        }
    }

    /// A connection has come about.
    fn came_about(&mut self, flow: &Flow, host: &Host) {
        let now = self.latest;
        let source = unit_of(&self.rule, flow.client, host);
        if let Some(record) = self.records.look(&Key { source, destination: Some(flow.server) }) {
            record.credit.earn(now);
        }
        if let Some(sweep) = self.sweeps.look(&SweepKey { source, port: flow.port }) {
            sweep.earn(now);
        }
    }

    /// What was taken for a failure was answered after all.
    fn take_back(&mut self, flow: &Flow, host: &Host) {
        let source = unit_of(&self.rule, flow.client, host);
        let key = Key { source, destination: Some(flow.server) };
        self.first_ports.take_back(self.records.hash(&key), flow.port.0.into());
        if let Some(record) = self.records.look(&key) {
            record.ports.take_back(flow.port);
        }
        let key = SweepKey { source, port: flow.port };
        let server = self.hasher.hash_one(flow.server) as u32;
        self.first_hosts.take_back(self.sweeps.hash(&key), server);
        if let Some(sweep) = self.sweeps.look(&key) {
            sweep.take_back(server);
        }
    }

    /// A probe has failed, or has only looked whether a port is open.
    fn failed(
        &mut self,
        flow: &Flow,
        moment: Moment,
        outcome: Outcome,
        host: &Host,
        found: &mut Vec<Scan>,
    ) {
        let now = self.latest;
        let silent = matches!(outcome, Outcome::Refused | Outcome::Unanswered);
        if silent && self.open.knows(flow.server, flow.port, now) {
            return;
        }
        let source = unit_of(&self.rule, flow.client, host);
        let key = Key { source, destination: Some(flow.server) };
        self.failed_at_port(flow, key, Attempt { port: flow.port, moment, outcome }, host, found);
        if outcome != Outcome::Answered {
            self.failed_at_host(flow, source, outcome, host, found);
        }
    }

    fn failed_at_port(
        &mut self,
        flow: &Flow,
        key: Key,
        attempt: Attempt,
        host: &Host,
        found: &mut Vec<Scan>,
    ) {
        let now = self.latest;
        let stealthy = attempt.outcome == Outcome::Unknown;
        if self.records.get(&key).is_none() {
            let failure = Failure {
                at: attempt.port.0.into(),
                outcome: attempt.outcome,
                stealthy,
                moment: attempt.moment,
            };
            let Some(first) = self.first_ports.note(self.records.hash(&key), failure) else {
                self.in_a_crowd(flow, attempt, host, found);
                return;
            };
            let mut record = Record::new(first.moment);
            let port = Port(u16::try_from(first.at).unwrap_or(0));
            record.ports.add(Attempt { port, moment: first.moment, outcome: first.outcome });
            record.failures = 1;
            record.stealthy = first.stealthy;
            if let (_, Some(gone)) = self.records.insert(key, record) {
                self.evicted += u64::from(!now.is_past(gone.latest, A_MINUTE.within));
            }
        }
        let Some(record) = self.records.look(&key) else { return };
        // A source silent for an hour begins anew.
        if now.is_past(record.latest, AN_HOUR.within) {
            (record.stealthy, record.reported) = (false, None);
        }
        record.latest = now;
        record.failures += 1;
        record.stealthy |= stealthy;
        let known = record.ports.attempts().iter().any(|known| known.port == attempt.port);
        let forgivable = matches!(attempt.outcome, Outcome::Refused | Outcome::Unanswered);
        if !known && forgivable && record.credit.forgives(now) {
            return;
        }
        let is_new = record.ports.add(attempt);
        let reported = record.reported;
        if reported.is_some() {
            self.episodes.go_on(&key, attempt.port, now);
        } else if is_new {
            self.decoys.note(flow.client, attempt, record.ports.attempts().iter().copied());
        }
        let broken = record.ports.broken(now);
        let quiet = reported.is_some_and(|reported| !now.is_past(reported, A_MINUTE.within));
        let Some(broken) = broken.filter(|_| !quiet) else {
            if reported.is_none() {
                self.in_a_crowd(flow, attempt, host, found);
            }
            return;
        };
        record.reported = Some(now);
        let attempts = record.ports.evidence(&broken, now);
        let (failures, stealthy) = (record.failures, record.stealthy);
        let mut others = Vec::new();
        if reported.is_none() {
            others = self.decoys.around(&key.source, &attempts);
            self.episodes.begin(key, &attempts, failures, now);
        }
        let kind = if stealthy { ScanKind::Stealth } else { ScanKind::Vertical };
        let scan = self.report(flow, kind, &broken, attempts, host);
        found.push(Scan { probes: failures, continued: reported.is_some(), others, ..scan });
    }

    fn failed_at_host(
        &mut self,
        flow: &Flow,
        source: IpNet,
        outcome: Outcome,
        host: &Host,
        found: &mut Vec<Scan>,
    ) {
        let now = self.latest;
        let key = SweepKey { source, port: flow.port };
        let server = self.hasher.hash_one(flow.server) as u32;
        if self.sweeps.get(&key).is_none() {
            let failure = Failure { at: server, outcome, stealthy: false, moment: now };
            let Some(first) = self.first_hosts.note(self.sweeps.hash(&key), failure) else {
                return;
            };
            let mut sweep = RecentHosts::new(first.moment);
            sweep.add(first.at, first.moment);
            self.sweeps.insert(key, sweep);
        }
        let Some(sweep) = self.sweeps.look(&key) else { return };
        let too_many = sweep.add(server, now);
        let reported = sweep.reported;
        if !too_many || reported.is_some_and(|reported| !now.is_past(reported, SWEEP.within)) {
            return;
        }
        sweep.reported = Some(now);
        // The first and the last of them stand for all.
        let first = Attempt { port: flow.port, moment: sweep.first(), outcome };
        let attempts = vec![first];
        let broken = Broken::new(Rule::FailedHosts, SWEEP);
        let scan = self.report(flow, ScanKind::Sweep, &broken, attempts, host);
        found.push(Scan {
            probes: SWEEP.more_than as u64 + 1,
            continued: reported.is_some(),
            ..scan
        });
    }

    /// A segment that belongs to no connection was refused.
    fn strayed(&mut self, flow: &Flow, host: &Host, found: &mut Vec<Scan>) {
        let now = self.latest;
        let source = unit_of(&self.rule, flow.client, host);
        let key = Key { source, destination: Some(flow.server) };
        if self.strays.get(&key).is_none() {
            self.strays.insert(key, Record::new(now));
        }
        let Some(record) = self.strays.look(&key) else { return };
        record.failures += 1;
        record.ports.add(Attempt { port: flow.port, moment: now, outcome: Outcome::Refused });
        let too_many = record.ports.within(STRAY.within, now).0 > STRAY.more_than;
        let reported = record.reported;
        if !too_many || reported.is_some_and(|reported| !now.is_past(reported, STRAY.within)) {
            return;
        }
        record.reported = Some(now);
        let failures = record.failures;
        let broken = Broken::new(Rule::StrayPorts, STRAY);
        let attempts = record.ports.evidence(&broken, now);
        let scan = self.report(flow, ScanKind::Stealth, &broken, attempts, host);
        found.push(Scan { probes: failures, continued: reported.is_some(), ..scan });
    }

    /// A failure of somebody who has not been reported.
    fn in_a_crowd(&mut self, flow: &Flow, attempt: Attempt, host: &Host, found: &mut Vec<Scan>) {
        if attempt.outcome == Outcome::Answered {
            return;
        }
        let (server, client) =
            (self.hasher.hash_one(flow.server), self.hasher.hash_one(flow.client));
        if self.crowds.failed(server, client, flow.port, self.latest) {
            let broken = Broken::new(Rule::ManySources, MANY_SOURCES);
            found.push(self.report(flow, ScanKind::Distributed, &broken, vec![attempt], host));
        }
    }

    fn report(
        &self,
        flow: &Flow,
        kind: ScanKind,
        broken: &Broken,
        attempts: Vec<Attempt>,
        host: &Host,
    ) -> Scan {
        Scan {
            source: unit_of(&self.rule, flow.client, host),
            address: flow.client,
            destination: flow.server,
            kind,
            attempts,
            moment: self.latest,
            probes: 1,
            rule: broken.rule,
            threshold: broken.threshold,
            span: broken.span,
            continued: false,
            others: Vec::new(),
        }
    }

    /// Reported scans that have fallen silent by `now`, or have gone on for a minute, in sum.
    pub fn sum_up(&mut self, now: Moment) -> (Vec<Summary>, u64) {
        let (mut summaries, untold) = self.episodes.sum_up(now);
        let (of_classic, more) = self.classic.sum_up(now);
        summaries.extend(of_classic);
        (summaries, untold + more)
    }

    /// Forgets everything about the sources in a network: it has been let in again.
    pub fn forget(&mut self, network: IpNet) {
        let within = |source: &IpNet| overlap(source, &network);
        self.records.remove_where(|key| within(&key.source));
        self.strays.remove_where(|key| within(&key.source));
        self.sweeps.remove_where(|key| within(&key.source));
        self.episodes.forget(network);
        self.classic.forget(network);
    }

    /// A scan could not be handed on: its source's next failure makes it one again.
    pub fn not_delivered(&mut self, scan: &Scan) {
        let key = Key { source: scan.source, destination: Some(scan.destination) };
        for record in [self.records.look(&key), self.strays.look(&key)].into_iter().flatten() {
            record.reported = None;
        }
        let port = scan.attempts.first().map_or(Port(0), |attempt| attempt.port);
        if let Some(sweep) = self.sweeps.look(&SweepKey { source: scan.source, port }) {
            sweep.reported = None;
        }
        self.classic.not_delivered(scan);
    }

    /// Sources remembered at the moment.
    pub fn sources(&self) -> usize {
        self.records.len() + self.classic.sources()
    }

    /// Sources, and connections, that had to go for others while what was known of them was of use.
    pub fn evicted(&self) -> u64 {
        self.evicted + self.pending.evicted() + self.classic.evicted()
    }

    /// The network an address is counted and blocked as.
    pub fn unit_of(&self, address: IpAddr, host: &Host) -> IpNet {
        unit_of(&self.rule, address, host)
    }
}

impl Record {
    fn new(now: Moment) -> Self {
        Self {
            ports: RecentPorts::new(),
            credit: Credit::default(),
            failures: 0,
            stealthy: false,
            latest: now,
            reported: None,
        }
    }
}

fn answered(port: Port, moment: Moment) -> Attempt {
    Attempt { port, moment, outcome: Outcome::Answered }
}

#[cfg(test)]
mod tests;
