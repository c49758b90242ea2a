//! At which hosts a source has failed on one port, and whether they are too many.
//!
//! Pure. Likewise the most recent distinct ones; a host is 32 bits of a hash nobody outside knows.

#![expect(
    clippy::cast_possible_truncation,
    reason = "hashes are cut to the bits that are needed, places fit by construction"
)]

use std::time::Duration;

use super::numbers::SWEEP;
use crate::clock::Moment;

const KEPT: usize = SWEEP.more_than + 1;

/// Connections on the port that came about, for each failure that is forgiven: sweeps fail mostly.
const CONNECTIONS_FOR_A_FAILURE: u16 = 4;
/// Failures forgiven at the most in [`SWEEP`]'s span.
const FORGIVEN: u16 = 30;

/// The most recent hosts, in a ring.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecentHosts {
    hosts: [u32; KEPT],
    /// In milliseconds since `begun`.
    moments: [u32; KEPT],
    begun: Moment,
    kept: u8,
    connections: u16,
    forgiven: u16,
    turned: Moment,
    pub(super) reported: Option<Moment>,
}

impl RecentHosts {
    pub(super) fn new(now: Moment) -> Self {
        Self {
            hosts: [0; KEPT],
            moments: [0; KEPT],
            begun: now,
            kept: 0,
            connections: 0,
            forgiven: 0,
            turned: now,
            reported: None,
        }
    }

    /// A connection on the port came about.
    pub(super) fn earn(&mut self, now: Moment) {
        self.turn(now);
        self.connections = self.connections.saturating_add(1);
    }

    /// A failure at a host; whether they are too many now.
    pub(super) fn add(&mut self, host: u32, now: Moment) -> bool {
        self.turn(now);
        let mut kept = usize::from(self.kept);
        if let Some(at) = self.hosts[..kept].iter().position(|known| *known == host) {
            self.remove(at);
            kept -= 1;
        } else if self.forgiven < (self.connections / CONNECTIONS_FOR_A_FAILURE).min(FORGIVEN) {
            self.forgiven += 1;
            return false;
        }
        if kept == KEPT {
            self.remove(0);
            kept -= 1;
        }
        self.hosts[kept] = host;
        self.moments[kept] = self.millis(now);
        self.kept = kept as u8 + 1;
        let age = Duration::from_millis(self.millis(now).wrapping_sub(self.moments[0]).into());
        usize::from(self.kept) == KEPT && age < SWEEP.within
    }

    /// A host has answered after all.
    pub(super) fn take_back(&mut self, host: u32) {
        let kept = usize::from(self.kept);
        if let Some(at) = self.hosts[..kept].iter().position(|known| *known == host) {
            self.remove(at);
        }
    }

    /// The first of the hosts that are too many was tried then.
    pub(super) fn first(&self) -> Moment {
        self.begun + Duration::from_millis(self.moments[0].into())
    }

    fn remove(&mut self, at: usize) {
        self.hosts.copy_within(at + 1.., at);
        self.moments.copy_within(at + 1.., at);
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
    }
}
