//! Who is let in again: by hand, because the time is up, because nobody may block him any more.
//!
//! First the kernel, then ledger and database; then it is told, and the detector forgets.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::block::backend::FirewallError;
use crate::block::ledger::Due;
use crate::handles::detector::DetectorCommand;
use crate::handles::firewall::RequestError;
use crate::service::firewall::{FirewallThread, TICK};
use crate::types::block::UnblockCause;
use crate::types::clock::WallClock;
use crate::types::event::{Event, Request};

/// How many blocks are ended at once: so long others wait.
const AT_ONCE: usize = 1024;

impl FirewallThread {
    pub fn unblock_by_hand(
        &mut self,
        network: IpNet,
        uid: u32,
        clock: &WallClock,
    ) -> Result<(), RequestError> {
        let meant = self.ledger.overlapping(&network);
        let result = if meant.is_empty() {
            Err(RequestError::NotBlocked(network))
        } else {
            // What was asked for, and what it was counted as: an IPv6 address scans as its network.
            let until = clock.now() + self.config.grace_after_unblock.get();
            let (unblocked, failed) = self.unblock_in_kernel(meant);
            for graced in unblocked.iter().copied().chain(failed.is_empty().then_some(network)) {
                self.ledger.grant_grace(graced, until);
            }
            self.emit_unblocked(&unblocked, UnblockCause::Manual, Some(uid), clock);
            failed
                .first()
                .map_or(Ok(()), |(_, error)| Err(RequestError::Kernel(self.kernel_failed(error))))
        };
        if let Err(error) = &result {
            self.emit_refused(Request::Unblock(network), error, uid);
        }
        result
    }

    /// Lets networks in, first in the kernel, then in the ledger. Returns whom, and whom the kernel did
    /// not let in.
    pub fn unblock_in_kernel(
        &mut self,
        networks: Vec<IpNet>,
    ) -> (Vec<IpNet>, Vec<(IpNet, FirewallError)>) {
        let failed = self.backend.unblock_all(&networks);
        let held: BTreeSet<IpNet> = failed.iter().map(|(network, _)| *network).collect();
        let mut unblocked = networks;
        unblocked.retain(|network| !held.contains(network));
        for network in &unblocked {
            self.ledger.remove(network);
        }
        (unblocked, failed)
    }

    /// Keeps and tells who was let in; the detector forgets them.
    pub fn emit_unblocked(
        &mut self,
        networks: &[IpNet],
        cause: UnblockCause,
        uid: Option<u32>,
        clock: &WallClock,
    ) {
        self.persister.save_changes(&mut self.ledger, clock.now());
        self.count();
        for some in networks.chunks(AT_ONCE) {
            // The detector drains this before it looks at another probe; it cannot wait for us, so we
            // may wait for it.
            let _ = self.detector.send(DetectorCommand::Forget(some.to_vec()));
            for network in some.iter().copied() {
                self.events.emit(Event::Unblocked { network, cause, uid });
            }
        }
    }

    pub fn unblock_exempt(&mut self, clock: &WallClock) {
        let exempt: Vec<IpNet> = self
            .ledger
            .blocks()
            .map(|(network, _)| *network)
            .filter(|network| self.exemptions.forbid(network).is_some())
            .collect();
        self.unblock_as_exempt(exempt, clock);
    }

    /// Lets in whoever has got an SSH session open although blocked: one that exists goes on, and it may
    /// have begun just before the block.
    pub fn unblock_peers(&mut self, clock: &WallClock) {
        // Nobody is asked where nothing could follow; but that there was no answer must not be said for ever.
        if self.ledger.blocks().len() == 0 && !self.exemptions.is_unanswered() {
            return;
        }
        self.ask_for_sessions(clock.now());
        let peers = self.exemptions.peers().iter().map(|peer| IpNet::from(*peer));
        let blocked = peers.filter(|peer| self.ledger.covers(peer));
        let exempt: BTreeSet<IpNet> =
            blocked.flat_map(|peer| self.ledger.overlapping(&peer)).collect();
        self.unblock_as_exempt(exempt.into_iter().collect(), clock);
    }

    fn unblock_as_exempt(&mut self, exempt: Vec<IpNet>, clock: &WallClock) {
        let (unblocked, failed) = self.unblock_in_kernel(exempt);
        self.emit_unblocked(&unblocked, UnblockCause::Exempt, None, clock);
        for (_, error) in failed {
            self.kernel_failed(&error);
            self.unfinished = true;
        }
    }

    /// Ends what is over, and prolongs what the kernel cannot hold long enough at once. What the kernel
    /// refuses is tried again a tick later.
    pub fn follow_time(&mut self, clock: &WallClock) {
        let (mut over, mut failed) = (Vec::new(), Vec::new());
        while over.len() < AT_ONCE
            && let Some((network, due)) = self.ledger.take_due(clock.now())
        {
            match due {
                // The kernel rounds up to whole seconds: it may need to be told.
                Due::Expired => over.push(network),
                Due::Prolong(more) => {
                    if let Err(error) = self.backend.block(network, more) {
                        failed.push((network, error));
                    }
                }
            }
        }
        let (unblocked, still_held) = self.unblock_in_kernel(over);
        self.emit_unblocked(&unblocked, UnblockCause::Expired, None, clock);
        for (network, error) in failed.into_iter().chain(still_held) {
            self.kernel_failed(&error);
            self.ledger.defer(network, clock.now() + TICK);
            self.unfinished = true;
        }
    }
}
