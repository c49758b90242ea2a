//! A block on its way into the kernel, and what keeps it there.
//!
//! Owns what is done where the kernel does not take a block at once: what others have broken is mended,
//! and where there is no room another block makes way.

use std::time::Duration;

use ipnet::IpNet;

use crate::block::backend::FirewallError;
use crate::block::reconcile::DesiredState;
use crate::config::values::Established;
use crate::handles::health::Component;
use crate::service::firewall::FirewallThread;
use crate::types::block::UnblockCause;
use crate::types::clock::WallClock;
use crate::types::network::Family;

/// What becomes of a block there is no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// The block of a scanner that is nearest its end makes way: who scans now does more harm than who
    /// would soon be let in anyway, and he is blocked again should he scan again.
    Evict,
    /// It is refused: nobody's block is ended by hand but the one that is named.
    Fail,
}

impl FirewallThread {
    /// Has the kernel drop a network's packets.
    pub fn enforce(
        &mut self,
        network: IpNet,
        duration: Option<Duration>,
        when_full: WhenFull,
        clock: &WallClock,
    ) -> Result<(), FirewallError> {
        let time = self.ledger.kernel_time(duration);
        let (family, most) = (Family::of(network), self.backend.capacity());
        // Not left to the kernel: past its limit a set still takes some, and then refuses even who would
        // take another's place.
        let has_room = self.ledger.count(family) < most || self.ledger.get(&network).is_some();
        let attempt = if has_room {
            self.backend.block(network, time)
        } else {
            Err(FirewallError::Full(most))
        };
        match attempt {
            Ok(()) => {}
            Err(error) if error.is_full() => {
                self.health
                    .set_degraded(Component::Capacity, format!("no room for more blocks: {error}"));
                if when_full == WhenFull::Fail || !self.evict(family, clock) {
                    return Err(error);
                }
                self.backend.block(network, time)?;
            }
            Err(error @ (FirewallError::Observing | FirewallError::NoIpv6)) => return Err(error),
            // Perhaps somebody has removed what it needs: then that is mended, and tried once more.
            Err(_) => {
                self.reconcile(clock)?;
                self.backend.block(network, time)?;
            }
        }
        if self.config.established == Established::Cut {
            self.conntrack.cut(network);
        }
        Ok(())
    }

    /// Ends a block to make room for another; false if there is none that may be ended.
    fn evict(&mut self, family: Family, clock: &WallClock) -> bool {
        let Some(network) = self.ledger.next_to_expire(family) else { return false };
        let (unblocked, failed) = self.unblock_in_kernel(vec![network]);
        self.emit_unblocked(&unblocked, UnblockCause::Evicted, None, clock);
        failed.is_empty()
    }

    /// Looks whether all is in the kernel that ought to be, and mends what is not.
    pub fn reconcile(&mut self, clock: &WallClock) -> Result<(), FirewallError> {
        // For more than one: else it would be told of each block that ends, and of the next in its place.
        let most = self.backend.capacity();
        let has_room = |family| self.ledger.count(family) < most - most / 100;
        if Family::ALL.into_iter().all(has_room) {
            self.health.clear(Component::Capacity);
        }
        let desired = DesiredState::of(&self.ledger, clock.now());
        self.reconciler.reconcile(&mut *self.backend, &desired, &self.health, &self.events)
    }

    /// Who is blocked already has lost his live connections, too, where that is configured.
    pub fn cut_as_configured(&mut self) {
        if self.config.established == Established::Cut {
            self.conntrack.cut_all();
        }
    }

    /// Ends the live connections of those who were blocked since the last time.
    pub fn cut_connections(&mut self) -> Result<(), FirewallError> {
        let ledger = &self.ledger;
        Ok(self.conntrack.end_pending(|address| ledger.covers(&address.into()))?)
    }
}
