//! At which hosts a source has failed on one port, or left it unused, and whether they are too many.
//!
//! Pure. Likewise the most recent distinct ones; a host is 32 bits of a hash nobody outside knows.

#![expect(
    clippy::cast_possible_truncation,
    reason = "hashes are cut to the bits that are needed, places fit by construction"
)]

use std::time::Duration;

use crate::detect::balanced::thresholds::{
    CONNECTIONS_FOR_A_HOST, CONNECTIONS_FOR_ANOTHER_HOST, HOSTS_FORGIVEN, Limit, SLOW_SWEEP, SWEEP,
    SWEEP_FAILED,
};
use crate::types::clock::Moment;

const KEPT: usize = SWEEP.more_than + 1;

/// The most recent hosts, in the order in which they were last tried.
#[derive(Clone, Copy, Debug)]
pub struct RecentHosts {
    hosts: [u32; KEPT],
    /// In milliseconds since `begun`.
    moments: [u32; KEPT],
    begun: Moment,
    /// A bit for each that has failed.
    failed: u32,
    /// Likewise, for each that has failed to answer a SYN no operating system makes.
    crafted: u32,
    kept: u8,
    connections: u16,
    /// The host of the latest of them.
    connected: u32,
    forgiven: u16,
    turned: Moment,
    /// Likewise within a day: connections, and since when they are counted.
    in_a_day: u16,
    day: Moment,
    pub reported: Option<Moment>,
}

impl RecentHosts {
    pub fn new(now: Moment) -> Self {
        Self {
            hosts: [0; KEPT],
            moments: [0; KEPT],
            begun: now,
            failed: 0,
            crafted: 0,
            kept: 0,
            connections: 0,
            connected: 0,
            forgiven: 0,
            turned: now,
            in_a_day: 0,
            day: now,
            reported: None,
        }
    }

    /// A connection to a host came about. Over and over to the same one, it is no use but to be forgiven.
    pub fn earn(&mut self, host: u32, now: Moment) {
        self.turn(now);
        if std::mem::replace(&mut self.connected, host) == host {
            return;
        }
        self.connections = self.connections.saturating_add(1);
        self.in_a_day = self.in_a_day.saturating_add(1);
    }

    /// Whether a failure is forgiven.
    pub fn forgives(&mut self, now: Moment) -> bool {
        self.turn(now);
        let allowed = (self.connections / CONNECTIONS_FOR_A_HOST)
            .min(HOSTS_FORGIVEN)
            .max(self.connections / CONNECTIONS_FOR_ANOTHER_HOST);
        let forgives = self.forgiven < allowed;
        self.forgiven += u16::from(forgives);
        forgives
    }

    /// Whether a host is among them.
    pub fn knows(&self, host: u32) -> bool {
        self.hosts[..usize::from(self.kept)].contains(&host)
    }

    /// A failure at a host, by a SYN that is bare or not, or a connection left unused; the rule that is
    /// broken by now, if one is.
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
        let all_bare = self.crafted.count_ones() as usize == KEPT;
        let is_used = usize::from(self.in_a_day / CONNECTIONS_FOR_A_HOST) >= KEPT;
        (within(SLOW_SWEEP) && all_bare && !is_used).then_some(SLOW_SWEEP)
    }

    /// A host has answered after all.
    pub fn take_back(&mut self, host: u32) {
        let kept = usize::from(self.kept);
        if let Some(at) = self.hosts[..kept].iter().position(|known| *known == host) {
            self.remove(at);
        }
    }

    /// The first of the hosts that are too many was tried then.
    pub fn first(&self) -> Moment {
        self.begun + Duration::from_millis(self.moments[0].into())
    }

    fn remove(&mut self, at: usize) {
        self.hosts.copy_within(at + 1.., at);
        self.moments.copy_within(at + 1.., at);
        let without = |bits: u32| bits >> (at + 1) << at | bits & ((1 << at) - 1);
        (self.failed, self.crafted) = (without(self.failed), without(self.crafted));
        self.kept -= 1;
    }

    /// Comes round after seven weeks.
    fn millis(&self, now: Moment) -> u32 {
        now.since(self.begun).as_millis() as u32
    }

    fn turn(&mut self, now: Moment) {
        if now.is_past(self.turned, SWEEP.within) {
            (self.turned, self.connections, self.forgiven) = (now, 0, 0);
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
    fn thirty_hosts_are_too_many_if_some_have_failed() {
        for (every, expected) in [(1, Some(29)), (2, Some(29)), (10, None)] {
            let mut hosts = RecentHosts::new(at(1));
            let mut add = |host| hosts.add(host, host % every == 0, false, at(1)).is_some();
            assert_eq!((0..60).find(|host| add(*host)), expected, "one of {every} has failed");
        }
    }

    #[test]
    fn slowly_they_are_too_many_if_all_have_failed_by_bare_segments() {
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

    /// A mail server whose firewall takes the options off its SYNs.
    #[test]
    fn whoever_uses_a_port_as_well_does_not_sweep_slowly() {
        for (connections, expected) in [(59, Some(29)), (60, None)] {
            let mut hosts = RecentHosts::new(at(1));
            (0..connections).for_each(|host| hosts.earn(host + 1, at(1)));
            let mut add =
                |host: u32| hosts.add(host, true, true, at(1 + 600 * u64::from(host))).is_some();
            assert_eq!((0..60).find(|host| add(*host)), expected, "{connections} connections");
        }
    }

    /// However fast it is. Where a third is dead, no more than a fifth of what is alive is forgiven beyond the
    /// limit.
    #[test]
    fn a_crawler_is_forgiven_every_sixth_host() {
        for (connections_each, expected) in [(2, 3000 * 2 / 5), (5, 3000)] {
            let mut hosts = RecentHosts::new(at(1));
            let mut forgiven = 0;
            for failure in 0..3000 {
                (0..connections_each).for_each(|next| hosts.earn(failure * 5 + next + 1, at(2)));
                forgiven += u16::from(hosts.forgives(at(2)));
            }
            assert_eq!(forgiven, expected, "{connections_each} connections for each failure");
        }
    }

    #[test]
    fn a_host_that_has_failed_once_has_failed_and_one_taken_back_has_not() {
        let mut hosts = RecentHosts::new(at(1));
        let add =
            |hosts: &mut RecentHosts, host, failed| hosts.add(host, failed, false, at(2)).is_some();
        for host in 0..29 {
            add(&mut hosts, host, host < 10);
        }
        assert!(!add(&mut hosts, 3, false), "the same again is no thirtieth");
        hosts.take_back(4);
        assert!(!add(&mut hosts, 30, false));
        assert!(!add(&mut hosts, 31, false), "nine have failed");
        assert!(add(&mut hosts, 31, true));
    }
}
