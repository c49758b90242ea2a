//! The hosts at which a source has failed on one port, or has connected without data.
//!
//! Pure. Owns the most recent distinct hosts and the sweep limits. A host is 32 bits of a keyed hash.

#![expect(
    clippy::cast_possible_truncation,
    reason = "times are counted modulo their type, and positions fit by construction"
)]

use std::time::Duration;

use crate::detect::balanced::thresholds::{
    CONNECTIONS_PER_HOST, FRUITLESS_SWEEP, Limit, SWEEP, SWEEP_FAILED,
};
use crate::detect::effort::Effort;
use crate::types::Moment;

const KEPT: usize = SWEEP.more_than + 1;

/// The most recent hosts, in the order of their last attempts.
#[derive(Clone, Copy, Debug)]
pub struct RecentHosts {
    limit: Limit,
    hosts: [u32; KEPT],
    /// The attempts, in milliseconds since `began`.
    moments: [u32; KEPT],
    began: Moment,
    /// A bit for each host that has failed.
    failed: u32,
    kept: u8,
    /// Successful connections within the span of the limit ...
    connections: u16,
    /// ... the host of the latest one ...
    connected: u32,
    /// ... how many failures they have offset ...
    excused: u16,
    /// ... and the beginning of the span.
    span: Moment,
    /// When the source last reached a host.
    reached: Option<Moment>,
    reported: Option<Moment>,
    effort: Effort,
}

impl RecentHosts {
    pub fn new(limit: Limit, now: Moment) -> Self {
        Self {
            limit,
            hosts: [0; KEPT],
            moments: [0; KEPT],
            began: now,
            failed: 0,
            kept: 0,
            connections: 0,
            connected: 0,
            excused: 0,
            span: now,
            reached: None,
            reported: None,
            effort: Effort::default(),
        }
    }

    pub fn limit(&self) -> Limit {
        self.limit
    }

    /// When the sweep was last reported.
    pub fn reported(&self) -> Option<Moment> {
        self.reported
    }

    /// How far the source has gone on since the sweep was reported.
    pub fn effort(&mut self) -> &mut Effort {
        &mut self.effort
    }

    pub fn set_reported(&mut self, moment: Option<Moment>) {
        self.reported = moment;
    }

    /// Adds a successful connection, unless the previous one was to the same host: the only use of repeated
    /// connections to one host is to earn credit.
    pub fn earn(&mut self, host: u32, now: Moment) {
        self.start_span(now);
        self.reached = Some(now);
        if std::mem::replace(&mut self.connected, host) != host {
            self.connections = self.connections.saturating_add(1);
        }
    }

    /// Offsets a failure. Returns false if there are too few connections.
    pub fn excuses(&mut self, now: Moment) -> bool {
        self.start_span(now);
        let excuses = self.excused < self.connections / CONNECTIONS_PER_HOST;
        self.excused += u16::from(excuses);
        excuses
    }

    /// Whether a host is among the most recent ones.
    pub fn knows(&self, host: u32) -> bool {
        self.hosts[..usize::from(self.kept)].contains(&host)
    }

    /// Adds a failure, or a connection without data. Returns whether the limit is exceeded now.
    pub fn add(&mut self, host: u32, mut failed: bool, now: Moment) -> bool {
        let mut kept = usize::from(self.kept);
        if let Some(at) = self.hosts[..kept].iter().position(|known| *known == host) {
            failed |= self.failed >> at & 1 == 1;
            self.remove(at);
            kept -= 1;
        } else if kept == KEPT {
            self.remove(0);
            kept -= 1;
        }
        self.hosts[kept] = host;
        self.moments[kept] = self.millis(now);
        self.failed |= u32::from(failed) << kept;
        self.kept = kept as u8 + 1;
        let age = Duration::from_millis(self.millis(now).wrapping_sub(self.moments[0]).into());
        let recently = |reached| !now.is_past(reached, FRUITLESS_SWEEP.within);
        let within = match self.reached {
            Some(reached) if recently(reached) => self.limit.within,
            _ => self.limit.within.max(FRUITLESS_SWEEP.within),
        };
        usize::from(self.kept) == KEPT
            && age < within
            && self.failed.count_ones() as usize >= SWEEP_FAILED
    }

    /// Removes a host that has replied after all.
    pub fn undo(&mut self, host: u32) {
        let kept = usize::from(self.kept);
        if let Some(at) = self.hosts[..kept].iter().position(|known| *known == host) {
            self.remove(at);
        }
    }

    /// When the source tried the first of the hosts.
    pub fn first(&self) -> Moment {
        self.began + Duration::from_millis(self.moments[0].into())
    }

    fn remove(&mut self, at: usize) {
        self.hosts.copy_within(at + 1.., at);
        self.moments.copy_within(at + 1.., at);
        self.failed = self.failed >> (at + 1) << at | self.failed & ((1 << at) - 1);
        self.kept -= 1;
    }

    /// Wraps around after seven weeks.
    fn millis(&self, now: Moment) -> u32 {
        now.since(self.began).as_millis() as u32
    }

    fn start_span(&mut self, now: Moment) {
        if now.is_past(self.span, self.limit.within) {
            (self.span, self.connections, self.excused) = (now, 0, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::balanced::thresholds::SLOW_SWEEP;

    fn at(seconds: u64) -> Moment {
        Moment::from_nanos(seconds * 1_000_000_000)
    }

    fn hosts(limit: Limit) -> RecentHosts {
        RecentHosts::new(limit, at(1))
    }

    #[test]
    fn thirty_hosts_exceed_the_limit_if_some_have_failed() {
        for (every, expected) in [(1, Some(29)), (2, Some(29)), (10, None)] {
            let mut hosts = hosts(SWEEP);
            let found = (0..60).find(|host| hosts.add(*host, host % every == 0, at(1)));
            assert_eq!(found, expected, "one of {every} has failed");
        }
    }

    #[test]
    fn slow_sweep_exceeds_the_limit_within_its_span() {
        for (limit, pause, expected) in [
            (SWEEP, 120, Some(29)),
            (SWEEP, 125, None),
            (SLOW_SWEEP, 2900, Some(29)),
            (SLOW_SWEEP, 3000, None),
        ] {
            let mut hosts = hosts(limit);
            let found =
                (0..60).find(|host| hosts.add(*host, true, at(1 + pause * u64::from(*host))));
            assert_eq!(found, expected, "a pause of {pause} s");
        }
    }

    #[test]
    fn source_that_reaches_a_host_sweeps_only_if_it_is_fast() {
        for (pause, expected) in [(10, Some(29)), (11, None)] {
            let mut hosts = hosts(SWEEP);
            let found = (0..60).find(|host| {
                let now = at(1 + pause * u64::from(*host));
                hosts.earn(99, now);
                hosts.add(*host, true, now)
            });
            assert_eq!(found, expected, "a pause of {pause} s");
        }
    }

    #[test]
    fn two_connections_offset_a_failed_host_unless_they_are_to_the_same_host() {
        for (hosts_connected, expected) in [(2, 20), (1, 0)] {
            let mut hosts = hosts(SWEEP);
            (0..40).for_each(|number| hosts.earn(1 + number % hosts_connected, at(2)));
            assert_eq!((0..60).filter(|_| hosts.excuses(at(2))).count(), expected);
        }
    }

    #[test]
    fn undone_host_has_not_failed() {
        let mut hosts = hosts(SWEEP);
        for host in 0..29 {
            hosts.add(host, host < 10, at(2));
        }
        assert!(!hosts.add(3, false, at(2)), "a known host is no thirtieth");
        hosts.undo(4);
        assert!(!hosts.add(30, false, at(2)));
        assert!(!hosts.add(31, false, at(2)), "nine have failed");
        assert!(hosts.add(31, true, at(2)));
    }
}
