//! What is held against whom: a failure, against its source, per host and per port.
//!
//! Pure. Owns applying the rules and what is reported of them; the numbers are [`super::numbers`]'s.

#![expect(clippy::cast_possible_truncation, reason = "hashes are cut to the bits that are needed")]

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::detect::balanced::connections::Flow;
use crate::detect::balanced::first_failure::Failure;
use crate::detect::balanced::handshake::whose;
use crate::detect::balanced::hash::Hashes;
use crate::detect::balanced::hosts::RecentHosts;
use crate::detect::balanced::ports::{Broken, RecentPorts};
use crate::detect::balanced::thresholds::{
    A_MINUTE, AN_HOUR, MANY_PORTS, MANY_SOURCES, SOUNDED, SOUNDED_AFTER, SOUNDINGS, STRAY, SWEEP,
};
use crate::detect::balanced::{BalancedDetector, unit_of};
use crate::detect::key::Key;
use crate::types::clock::Moment;
use crate::types::host::Host;
use crate::types::rule::Rule;
use crate::types::scan::{Attempt, Scan, ScanKind};
use crate::types::segment::{Outcome, Port};

/// Connections within this time are one look, also where each service has several.
const ONE_LOOK: Duration = Duration::from_secs(1);

/// What is remembered of a source that has failed on several ports of a host.
pub struct Record {
    pub ports: RecentPorts,
    failures: u64,
    stealthy: bool,
    latest: Moment,
    pub reported: Option<Moment>,
    /// An open port it has looked at, and when it has looked again, as load balancers do.
    looked_at: Option<Attempt>,
    looked_again: Option<Moment>,
    /// It waits to be judged for having sounded out ports.
    sounding: bool,
}

/// A source and a port it tries on several hosts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SweepKey {
    pub source: IpNet,
    pub port: Port,
}

/// A probe of which it is known what became of it.
#[derive(Clone, Copy)]
pub struct Tried {
    pub flow: Flow,
    /// The hash of its source and host.
    pub pair: u64,
    pub moment: Moment,
    pub crafted: bool,
}

/// Nobody was there, or said so.
fn is_silent(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Refused | Outcome::Unanswered)
}

impl Record {
    fn new(now: Moment) -> Self {
        Self {
            ports: RecentPorts::new(),
            failures: 0,
            stealthy: false,
            latest: now,
            reported: None,
            looked_at: None,
            looked_again: None,
            sounding: false,
        }
    }

    /// Adds what has failed, or was looked at; whether the port is another.
    fn add(&mut self, attempt: Attempt, now: Moment) -> bool {
        self.failures += 1;
        match self.looked_at {
            _ if attempt.outcome != Outcome::Answered => {}
            Some(first) if !now.is_past(first.moment, SOUNDED.within) => {
                let again = first.port == attempt.port && now.is_past(first.moment, ONE_LOOK);
                self.looked_again = if again { Some(now) } else { self.looked_again };
            }
            _ => self.looked_at = Some(attempt),
        }
        self.ports.add(attempt)
    }
}

impl BalancedDetector {
    /// A probe has failed, or has only looked whether a port is open.
    pub fn failed(&mut self, tried: Tried, outcome: Outcome, host: &Host, found: &mut Vec<Scan>) {
        if is_silent(outcome) && self.is_no_secret(&tried.flow, host) {
            return;
        }
        self.failed_at_port(&tried, outcome, host, found);
        let is_cut_off =
            outcome == Outcome::Unanswered && !tried.crafted && self.sight.is_cut_off(tried.moment);
        if is_cut_off {
            return;
        }
        // Where nobody is but this host, nobody sweeps.
        if self.sees_others || host.has_more_addresses_than(SWEEP.more_than) {
            self.failed_at_host(&tried, outcome, host, found);
        }
    }

    fn failed_at_port(
        &mut self,
        tried: &Tried,
        outcome: Outcome,
        host: &Host,
        found: &mut Vec<Scan>,
    ) {
        let (now, flow) = (self.latest, &tried.flow);
        let (key, hash) = (self.key(flow, host), tried.pair);
        let attempt = Attempt { port: flow.port, moment: tried.moment, outcome };
        let stealthy = outcome == Outcome::Unknown;
        let forgivable = !tried.crafted && outcome != Outcome::Answered;
        let failure = Failure {
            at: attempt.port.0.into(),
            outcome,
            crafted: stealthy,
            moment: attempt.moment,
        };
        // In a flood this is all there is to be known of a source: everything else is asked only if it is not.
        let first = self.first_ports.known(hash);
        if first == Some(failure.at) {
            self.first_ports.note(hash, failure);
            self.in_a_crowd(tried, attempt, host, found);
            return;
        }
        let record = if first.is_none() { self.records.get(hash, &key) } else { None };
        let known = record.map(|record| {
            // A source silent for an hour begins anew.
            if now.is_past(record.latest, AN_HOUR.within) {
                (record.stealthy, record.reported) = (false, None);
            }
            record.latest = now;
            record.ports.attempts().iter().any(|known| known.port == attempt.port)
        });
        let another = first.is_some() || known == Some(false);
        if another && forgivable && self.forgives(hash, flow.port) {
            return;
        }
        if known.is_none() {
            let Some(first) = self.first_ports.note(hash, failure) else {
                self.in_a_crowd(tried, attempt, host, found);
                return;
            };
            let mut record = Record::new(now);
            let port = Port(u16::try_from(first.at).unwrap_or(0));
            let earlier = Attempt { port, moment: first.moment, outcome: first.outcome };
            record.stealthy = first.crafted;
            record.add(earlier, now);
            if let (_, Some(gone)) = self.records.insert(hash, key, record) {
                self.evicted += u64::from(!now.is_past(gone.latest, A_MINUTE.within));
            }
        }
        let Some(record) = self.records.look(hash, &key) else { return };
        record.stealthy |= stealthy;
        let is_new = record.add(attempt, now);
        let reported = record.reported;
        if reported.is_some() {
            self.episodes.go_on(&key, attempt.port, now);
        } else if is_new {
            self.decoys.note(flow.client, attempt, record.ports.attempts().iter().copied());
        }
        if reported.is_some_and(|reported| !now.is_past(reported, A_MINUTE.within)) {
            return;
        }
        if record.ports.broken(now).is_some() {
            // Some may have been shown to be open since they were tried.
            let server = whose(flow.server, host);
            let open = |port| self.open.knows(self.hashes.of_port(server, port), now);
            record.ports.retain(|attempt| !(is_silent(attempt.outcome) && open(attempt.port)));
        }
        if let Some(broken) = record.ports.broken(now) {
            self.report_ports(flow, key, &broken, now, host, found);
            return;
        }
        if record.ports.sounded(now).is_some() && !record.sounding {
            record.sounding = true;
            if self.soundings.len() < SOUNDINGS {
                self.soundings.push_back((now + SOUNDED_AFTER, *flow));
            } else {
                self.sounded(flow, host, found);
            }
        }
        if reported.is_none() {
            self.in_a_crowd(tried, attempt, host, found);
        }
    }

    /// Whether a failure of the source and host of this hash is forgiven; if it was within the hour, for
    /// nothing: a dead port is tried over and over.
    fn forgives(&mut self, pair: u64, port: Port) -> bool {
        let (now, failure) = (self.latest, Hashes::with(pair, port.0.into()));
        let forgives = self.forgiven.knows(failure, now) || self.credits.forgives(pair, now);
        if forgives {
            self.forgiven.note(failure, now);
        }
        forgives
    }

    /// A source that seems to have sounded out ports had time to show that it is a load balancer.
    pub fn sounded(&mut self, flow: &Flow, host: &Host, found: &mut Vec<Scan>) {
        let now = self.latest;
        let (key, hash) = (self.key(flow, host), self.pair_of(flow, host));
        let Some(record) = self.records.look(hash, &key) else { return };
        record.sounding = false;
        let within = |moment: Moment, span| !now.is_past(moment, span);
        if record.looked_again.is_some_and(|again| within(again, SOUNDED.within))
            || record.reported.is_some_and(|reported| within(reported, SOUNDED.within))
        {
            return;
        }
        let then = now.before(SOUNDED_AFTER);
        if let Some(broken) = record.ports.sounded(then) {
            self.report_ports(flow, key, &broken, then, host, found);
        }
    }

    /// A source has broken a rule about ports, as its record stood then.
    fn report_ports(
        &mut self,
        flow: &Flow,
        key: Key,
        broken: &Broken,
        then: Moment,
        host: &Host,
        found: &mut Vec<Scan>,
    ) {
        let now = self.latest;
        let hash = self.pair_of(flow, host);
        let Some(record) = self.records.look(hash, &key) else { return };
        let continued = record.reported.replace(now).is_some();
        let attempts = record.ports.evidence(broken, then);
        let (probes, stealthy) = (record.failures, record.stealthy);
        let mut others = Vec::new();
        if !continued {
            others = self.decoys.around(&key.source, &attempts);
            self.episodes.begin(key, &attempts, probes, now);
        }
        let kind = if stealthy { ScanKind::Stealth } else { ScanKind::Vertical };
        let scan = self.scan(flow, kind, broken, attempts, host);
        found.push(Scan { probes, continued, others, ..scan });
    }

    pub fn failed_at_host(
        &mut self,
        tried: &Tried,
        outcome: Outcome,
        host: &Host,
        found: &mut Vec<Scan>,
    ) {
        let (now, flow) = (self.latest, &tried.flow);
        let key = self.sweep_key(flow, host);
        let hash = self.hashes.of_sweep(&key.source, key.port);
        let server = self.hash_of_host(flow.server);
        let failed = |outcome| outcome != Outcome::Answered;
        let failure = Failure { at: server, outcome, crafted: tried.crafted, moment: now };
        if self.first_hosts.known(hash) == Some(server) {
            self.first_hosts.note(hash, failure);
            return;
        }
        if self.sweeps.get(hash, &key).is_none() {
            let Some(first) = self.first_hosts.note(hash, failure) else {
                return;
            };
            let mut sweep = RecentHosts::new(first.moment);
            sweep.add(first.at, failed(first.outcome), first.crafted, first.moment);
            self.sweeps.insert(hash, key, sweep);
        }
        let Some(sweep) = self.sweeps.look(hash, &key) else { return };
        if failed(outcome) && !tried.crafted && !sweep.knows(server) {
            // Somebody who is not answered asks again for minutes.
            let failure = Hashes::with(hash, server);
            if self.forgiven.knows(failure, now) || sweep.forgives(now) {
                self.forgiven.note(failure, now);
                return;
            }
        }
        let broken = sweep.add(server, failed(outcome), tried.crafted, now);
        let reported = sweep.reported;
        let Some(limit) = broken else { return };
        if reported.is_some_and(|reported| !now.is_past(reported, SWEEP.within)) {
            return;
        }
        sweep.reported = Some(now);
        // The first of them stands for all.
        let first = Attempt { port: flow.port, moment: sweep.first(), outcome };
        let broken = Broken::new(Rule::FailedHosts, limit);
        let scan = self.scan(flow, ScanKind::Sweep, &broken, vec![first], host);
        let probes = limit.more_than as u64 + 1;
        found.push(Scan { probes, continued: reported.is_some(), ..scan });
    }

    /// A segment that belongs to no connection was refused.
    pub fn strayed(&mut self, flow: &Flow, host: &Host, found: &mut Vec<Scan>) {
        let now = self.latest;
        let (key, hash) = (self.key(flow, host), self.pair_of(flow, host));
        if self.strays.get(hash, &key).is_none() {
            self.strays.insert(hash, key, Record::new(now));
        }
        let Some(record) = self.strays.look(hash, &key) else { return };
        let attempt = Attempt { port: flow.port, moment: now, outcome: Outcome::Refused };
        record.add(attempt, now);
        let too_many = record.ports.within(STRAY.within, now).0 > STRAY.more_than;
        let reported = record.reported;
        if !too_many || reported.is_some_and(|reported| !now.is_past(reported, STRAY.within)) {
            return;
        }
        record.reported = Some(now);
        let probes = record.failures;
        let broken = Broken::new(Rule::StrayPorts, STRAY);
        let attempts = record.ports.evidence(&broken, now);
        let scan = self.scan(flow, ScanKind::Stealth, &broken, attempts, host);
        found.push(Scan { probes, continued: reported.is_some(), ..scan });
    }

    /// A failure of somebody who has not been reported.
    fn in_a_crowd(&mut self, tried: &Tried, attempt: Attempt, host: &Host, found: &mut Vec<Scan>) {
        if attempt.outcome == Outcome::Answered {
            return;
        }
        let flow = &tried.flow;
        let server = self.hashes.of_host(flow.server);
        if self.crowds.failed(server, tried.pair, flow.port, self.latest) {
            let broken = Broken::new(Rule::ManySources, MANY_SOURCES);
            found.push(self.scan(flow, ScanKind::Distributed, &broken, vec![attempt], host));
        }
    }

    /// A port was answered and not used, or is one of those of which nobody uses many.
    pub fn unused(&mut self, tried: &Tried, host: &Host, found: &mut Vec<Scan>) {
        let (now, flow) = (self.latest, &tried.flow);
        if self.crowds.answered(tried.pair, flow.port, now) {
            let attempt = Attempt { port: flow.port, moment: now, outcome: Outcome::Answered };
            let broken = Broken::new(Rule::ManyPorts, MANY_PORTS);
            found.push(self.scan(flow, ScanKind::Vertical, &broken, vec![attempt], host));
        }
    }

    /// What is remembered of a host a source sweeps over.
    pub fn hash_of_host(&self, host: IpAddr) -> u32 {
        self.hashes.of_host(host) as u32
    }

    pub fn key(&self, flow: &Flow, host: &Host) -> Key {
        let source = unit_of(&self.rule, flow.client, host);
        Key { source, destination: Some(flow.server) }
    }

    pub fn pair_of(&self, flow: &Flow, host: &Host) -> u64 {
        self.hashes.of_pair(&unit_of(&self.rule, flow.client, host), flow.server)
    }

    pub fn sweep_key(&self, flow: &Flow, host: &Host) -> SweepKey {
        SweepKey { source: unit_of(&self.rule, flow.client, host), port: flow.port }
    }

    fn scan(
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
}
