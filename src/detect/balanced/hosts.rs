//! The hosts at which a source has failed on one port, or has connected without data.
//!
//! Pure. Owns the most recent distinct hosts and the sweep limits. A host is 32 bits of a keyed hash.

#![expect(
    clippy::cast_possible_truncation,
    reason = "times are counted modulo their type, and positions fit by construction"
)]

use std::time::Duration;

use crate::detect::balanced::thresholds::{
    CONNECTIONS_PER_EXTRA_HOST, CONNECTIONS_PER_HOST, HOSTS_EXCUSED, Limit, SLOW_SWEEP, SWEEP,
    SWEEP_FAILED,
};
use crate::detect::effort::Effort;

use crate::types::Moment;

const KEPT: usize = SWEEP.more_than + 1;

/// The most recent hosts, in the order of their last attempts.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecentHosts {
    hosts: [u32; KEPT],
    /// The attempts, in milliseconds since `began`.
    moments: [u32; KEPT],
    began: Moment,
    /// A bit for each host that has failed.
    failed: u32,
    /// A bit for each host that has failed on a crafted SYN.
    crafted: u32,
    kept: u8,
    /// Successful connections within the span of a sweep ...
    connections: u16,
    /// ... the host of the latest one ...
    connected: u32,
    /// ... how many failures they have offset ...
    excused: u16,
    /// ... and the beginning of the span.
    span: Moment,
    /// Successful connections within a day, and the beginning of the day.
    in_a_day: u16,
    day: Moment,
    reported: Option<Moment>,
    effort: Effort,
}

impl RecentHosts {
    pub fn new(now: Moment) -> Self {
        Self { began: now, span: now, day: now, ..Self::default() }
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
        self.start_spans(now);
        if std::mem::replace(&mut self.connected, host) == host {
            return;
        }
        self.connections = self.connections.saturating_add(1);
        self.in_a_day = self.in_a_day.saturating_add(1);
    }

    /// Offsets a failure. Returns false if there are too few connections.
    pub fn excuses(&mut self, now: Moment) -> bool {
        self.start_spans(now);
        let allowed = (self.connections / CONNECTIONS_PER_HOST)
            .min(HOSTS_EXCUSED)
            .max(self.connections / CONNECTIONS_PER_EXTRA_HOST);
        let excuses = self.excused < allowed;
        self.excused += u16::from(excuses);
        excuses
    }

    /// Whether a host is among the most recent ones.
    pub fn knows(&self, host: u32) -> bool {
        self.hosts[..usize::from(self.kept)].contains(&host)
    }

    /// Adds a failure, or a connection without data. Returns the limit that is exceeded now.
    pub fn add(&mut self, host: u32, failed: bool, crafted: bool, now: Moment) -> Option<Limit> {
        let (mut failed, mut crafted) = (failed, failed && crafted);
        let mut kept = usize::from(self.kept);
        if let Some(at) = self.hosts[..kept].iter().position(|known| *known == host) {
            failed |= self.failed >> at & 1 == 1;
            crafted |= self.crafted >> at & 1 == 1;
            self.remove(at);
            kept -= 1;
        } else if kept == KEPT {
            self.remove(0);
            kept -= 1;
        }
        self.hosts[kept] = host;
        self.moments[kept] = self.millis(now);
        self.failed |= u32::from(failed) << kept;
        self.crafted |= u32::from(crafted) << kept;
        self.kept = kept as u8 + 1;
        let age = Duration::from_millis(self.millis(now).wrapping_sub(self.moments[0]).into());
        let within = |limit: Limit| usize::from(self.kept) == KEPT && age < limit.within;
        if within(SWEEP) && self.failed.count_ones() as usize >= SWEEP_FAILED {
            return Some(SWEEP);
        }
        let all_crafted = self.crafted.count_ones() as usize == KEPT;
        let is_used = usize::from(self.in_a_day / CONNECTIONS_PER_HOST) >= KEPT;
        (within(SLOW_SWEEP) && all_crafted && !is_used).then_some(SLOW_SWEEP)
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
        let without = |bits: u32| bits >> (at + 1) << at | bits & ((1 << at) - 1);
        (self.failed, self.crafted) = (without(self.failed), without(self.crafted));
        self.kept -= 1;
    }

    /// Wraps around after seven weeks.
    fn millis(&self, now: Moment) -> u32 {
        now.since(self.began).as_millis() as u32
    }

    fn start_spans(&mut self, now: Moment) {
        if now.is_past(self.span, SWEEP.within) {
            (self.span, self.connections, self.excused) = (now, 0, 0);
        }
        if now.is_past(self.day, SLOW_SWEEP.within) {
            (self.day, self.in_a_day) = (now, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn thirty_hosts_exceed_the_limit_if_some_have_failed() {
        for (every, expected) in [(1, Some(29)), (2, Some(29)), (10, None)] {
            let mut hosts = RecentHosts::new(at(1));
            let mut add = |host| hosts.add(host, host % every == 0, false, at(1)).is_some();
            assert_eq!((0..60).find(|host| add(*host)), expected, "one of {every} has failed");
        }
    }

    #[test]
    fn slow_sweep_exceeds_the_limit_if_all_segments_are_crafted() {
        for (pause, every, expected) in
            [(11, 1, Some(29)), (2900, 1, Some(29)), (3000, 1, None), (11, 29, None)]
        {
            let mut hosts = RecentHosts::new(at(1));
            let mut add = |host: u32| {
                hosts
                    .add(host, true, host.is_multiple_of(every), at(1 + pause * u64::from(host)))
                    .is_some()
            };
            assert_eq!((0..60).find(|host| add(*host)), expected, "a pause of {pause} s");
        }
    }

    /// A mail server behind a firewall that strips the options of its SYNs.
    #[test]
    fn source_with_successful_connections_is_no_slow_sweep() {
        for (connections, expected) in [(59, Some(29)), (60, None)] {
            let mut hosts = RecentHosts::new(at(1));
            (0..connections).for_each(|host| hosts.earn(host + 1, at(1)));
            let mut add =
                |host: u32| hosts.add(host, true, true, at(1 + 600 * u64::from(host))).is_some();
            assert_eq!((0..60).find(|host| add(*host)), expected, "{connections} connections");
        }
    }

    /// However fast the crawler is. If a third of the hosts is dead, only a fifth of the connections counts
    /// beyond the limit.
    #[test]
    fn every_sixth_host_of_a_crawler_is_excused() {
        for (connections_each, expected) in [(2, 3000 * 2 / 5), (5, 3000)] {
            let mut hosts = RecentHosts::new(at(1));
            let mut excused = 0;
            for failure in 0..3000 {
                (0..connections_each).for_each(|next| hosts.earn(failure * 5 + next + 1, at(2)));
                excused += u16::from(hosts.excuses(at(2)));
            }
            assert_eq!(excused, expected, "{connections_each} connections for each failure");
        }
    }

    #[test]
    fn undone_host_has_not_failed() {
        let mut hosts = RecentHosts::new(at(1));
        let add =
            |hosts: &mut RecentHosts, host, failed| hosts.add(host, failed, false, at(2)).is_some();
        for host in 0..29 {
            add(&mut hosts, host, host < 10);
        }
        assert!(!add(&mut hosts, 3, false), "a known host is no thirtieth");
        hosts.undo(4);
        assert!(!add(&mut hosts, 30, false));
        assert!(!add(&mut hosts, 31, false), "nine have failed");
        assert!(add(&mut hosts, 31, true));
    }
}
