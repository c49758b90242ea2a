//! Sweeps: sources that fail on one port of many hosts, or with crafted SYNs on any ports of many hosts.
//!
//! Pure. Owns what is remembered of sources across hosts. [`RecentHosts`] counts.

#![expect(clippy::cast_possible_truncation, reason = "a host is 24 bits of a hash")]

use ipnet::IpNet;

use crate::detect::balanced::connections::Probe;
use crate::detect::balanced::first_failure::{Failure, FirstFailures, HOST};
use crate::detect::balanced::hash::Hashes;
use crate::detect::balanced::hosts::RecentHosts;
use crate::detect::balanced::known::RecentlySeen;
use crate::detect::balanced::thresholds::{Limit, SLOW_SWEEP, SWEEP};
use crate::detect::table::Table;
use crate::types::{Moment, Outcome, Port};

/// A source and a port that it tries on several hosts, or any ports if its segments are crafted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SweepKey {
    source: IpNet,
    port: Option<Port>,
}

impl SweepKey {
    fn of(source: IpNet, probe: &Probe) -> Self {
        Self { source, port: (!probe.crafted).then_some(probe.flow.port) }
    }

    fn hash(&self, hashes: &Hashes) -> u64 {
        hashes.of_sweep(&self.source, self.port.unwrap_or(Port(0)))
    }
}

/// A sweep that has to be reported.
pub struct FoundSweep {
    pub limit: Limit,
    /// When the source tried the first of the hosts.
    pub first: Moment,
    pub tried: u32,
    pub continued: bool,
}

/// The sources that fail on several hosts.
pub struct Sweeps {
    /// The first failed host of each source and port.
    first: FirstFailures,
    sweeps: Table<SweepKey, RecentHosts>,
    /// Failed hosts that were excused.
    excused: RecentlySeen,
}

impl Sweeps {
    pub fn new(first: usize, sweeps: usize) -> Self {
        let (first, sweeps) = (FirstFailures::new(first), Table::new(sweeps));
        Self { first, sweeps, excused: RecentlySeen::new() }
    }

    /// A probe has failed. Returns the sweep that has to be reported, and whether successful connections offset
    /// the failure.
    pub fn failed(
        &mut self,
        source: IpNet,
        probe: &Probe,
        outcome: Outcome,
        now: Moment,
        hashes: &Hashes,
    ) -> (Option<FoundSweep>, bool) {
        let key = SweepKey::of(source, probe);
        let (hash, host) = (key.hash(hashes), host_of(probe, hashes));
        let has_failed = |outcome| outcome != Outcome::Answered;
        let failure =
            Failure { at: host, outcome, crafted: probe.crafted, excused: false, moment: now };
        if self.first.known(hash) == Some(host) {
            self.first.note(hash, failure);
            return (None, false);
        }
        if self.sweeps.get(hash, &key).is_none() {
            let Some(first) = self.first.note(hash, failure) else { return (None, false) };
            let limit = if probe.crafted { SLOW_SWEEP } else { SWEEP };
            let mut sweep = RecentHosts::new(limit, first.moment);
            sweep.add(first.at, has_failed(first.outcome), first.moment);
            self.sweeps.insert(hash, key, sweep);
        }
        let Some(sweep) = self.sweeps.peek(hash, &key) else { return (None, false) };
        let is_new = !sweep.knows(host);
        if has_failed(outcome) && is_new {
            // A client that receives no reply retries for minutes.
            let failure = Hashes::with(hash, host);
            if self.excused.knows(failure, now) || sweep.excuses(now) {
                self.excused.note(failure, now);
                return (None, true);
            }
        }
        if !sweep.add(host, has_failed(outcome), now) {
            return (None, false);
        }
        let (limit, reported) = (sweep.limit(), sweep.reported());
        let has_doubled = reported.is_some() && is_new && sweep.effort().add();
        if !has_doubled && reported.is_some_and(|past| !now.is_past(past, SWEEP.within)) {
            return (None, false);
        }
        sweep.set_reported(Some(now));
        if reported.is_none() {
            sweep.effort().begin(limit.more_than + 1, false);
        }
        let (first, tried) = (sweep.first(), sweep.effort().tried());
        (Some(FoundSweep { limit, first, tried, continued: reported.is_some() }), false)
    }

    /// A connection was established and used.
    pub fn succeeded(&mut self, source: IpNet, probe: &Probe, now: Moment, hashes: &Hashes) {
        let key = SweepKey::of(source, probe);
        if let Some(sweep) = self.sweeps.peek(key.hash(hashes), &key) {
            sweep.earn(host_of(probe, hashes), now);
        }
    }

    /// Undoes a failure, because the server has replied after all.
    pub fn undo(&mut self, source: IpNet, probe: &Probe, hashes: &Hashes) {
        let key = SweepKey::of(source, probe);
        let (hash, host) = (key.hash(hashes), host_of(probe, hashes));
        self.first.undo(hash, host);
        if let Some(sweep) = self.sweeps.peek(hash, &key) {
            sweep.undo(host);
        }
    }

    pub fn forget(&mut self, within: impl Fn(&IpNet) -> bool) {
        self.sweeps.remove_where(|key| within(&key.source));
    }

    /// Has the next failure of a source return its sweep again.
    pub fn not_delivered(&mut self, source: IpNet, port: Port, continued: bool, hashes: &Hashes) {
        for port in [Some(port), None] {
            let key = SweepKey { source, port };
            let Some(sweep) = self.sweeps.peek(key.hash(hashes), &key) else { continue };
            if continued {
                sweep.effort().retry();
            } else {
                sweep.set_reported(None);
            }
        }
    }
}

/// The identity of what was probed: a host, or a port of it if the key does not tell the port.
fn host_of(probe: &Probe, hashes: &Hashes) -> u32 {
    let host = hashes.of_host(probe.flow.server);
    let what = if probe.crafted { Hashes::with(host, probe.flow.port.0.into()) } else { host };
    what as u32 & HOST
}
