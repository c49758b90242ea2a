//! Who is let in again: by hand, because the time is up, because nobody may block him any more.
//!
//! First the kernel, then ledger and database; then it is told, and the detector forgets.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::block::backend::FirewallError;
use crate::block::ledger::Due;
use crate::handles::detector::Control;
use crate::handles::firewall::Refusal;
use crate::service::firewall::{Actor, TICK};
use crate::types::block::UnblockCause;
use crate::types::clock::WallClock;
use crate::types::event::Event;
use crate::types::network::show_network;

/// How many blocks are ended at once: so long others wait.
const AT_ONCE: usize = 1024;

impl Actor {
    pub fn unblock_by_hand(
        &mut self,
        network: IpNet,
        uid: u32,
        clock: &WallClock,
    ) -> Result<(), Refusal> {
        let meant = self.ledger.meant_by(&network);
        let result = if meant.is_empty() {
            Err(Refusal::NotBlocked(show_network(&network)))
        } else {
            // What was asked for, and what it was counted as: an IPv6 address scans as its network.
            let until = clock.now() + self.config.grace_after_unblock.get();
            let (let_in, failed) = self.let_in(meant);
            for graced in let_in.iter().copied().chain(failed.is_empty().then_some(network)) {
                self.ledger.grant_grace(graced, until);
            }
            self.tell_unblocked(&let_in, UnblockCause::Manual, Some(uid), clock);
            failed
                .first()
                .map_or(Ok(()), |(_, error)| Err(Refusal::Kernel(self.kernel_failed(error))))
        };
        if let Err(refusal) = &result {
            self.tell_refused(format!("unblock {}", show_network(&network)), refusal, uid);
        }
        result
    }

    /// Lets networks in, first in the kernel, then in the ledger. Returns whom, and whom the kernel did
    /// not let in.
    pub fn let_in(&mut self, networks: Vec<IpNet>) -> (Vec<IpNet>, Vec<(IpNet, FirewallError)>) {
        let failed = self.backend.unblock_all(&networks);
        let held: BTreeSet<IpNet> = failed.iter().map(|(network, _)| *network).collect();
        let mut let_in = networks;
        let_in.retain(|network| !held.contains(network));
        for network in &let_in {
            self.ledger.remove(network);
        }
        (let_in, failed)
    }

    /// Keeps and tells who was let in; the detector forgets them.
    pub fn tell_unblocked(
        &mut self,
        networks: &[IpNet],
        cause: UnblockCause,
        uid: Option<u32>,
        clock: &WallClock,
    ) {
        self.keeper.keep(&mut self.ledger, clock.now());
        self.count();
        for some in networks.chunks(AT_ONCE) {
            // The detector drains this before it looks at another probe; it cannot wait for us, so we
            // may wait for it.
            let _ = self.detector.send(Control::Forget(some.to_vec()));
            for network in some.iter().copied() {
                self.reporter.tell(Event::Unblocked { network, cause, uid });
            }
        }
    }

    pub fn release_exempt(&mut self, clock: &WallClock) {
        let exempt: Vec<IpNet> = self
            .ledger
            .blocks()
            .map(|(network, _)| *network)
            .filter(|network| self.exemptions.forbid(network).is_some())
            .collect();
        self.release(exempt, clock);
    }

    /// Lets in whoever has got an SSH session open although blocked: one that exists goes on, and it may
    /// have begun just before the block.
    pub fn release_peers(&mut self, clock: &WallClock) {
        // Nobody is asked where nothing could follow; but that there was no answer must not be said for ever.
        if self.ledger.blocks().len() == 0 && !self.exemptions.is_unanswered() {
            return;
        }
        self.ask_for_sessions(clock.now());
        let peers = self.exemptions.peers().iter().map(|peer| IpNet::from(*peer));
        let blocked = peers.filter(|peer| self.ledger.covers(peer));
        let exempt: BTreeSet<IpNet> =
            blocked.flat_map(|peer| self.ledger.meant_by(&peer)).collect();
        self.release(exempt.into_iter().collect(), clock);
    }

    fn release(&mut self, exempt: Vec<IpNet>, clock: &WallClock) {
        let (let_in, failed) = self.let_in(exempt);
        self.tell_unblocked(&let_in, UnblockCause::Exempt, None, clock);
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
        let (let_in, still_held) = self.let_in(over);
        self.tell_unblocked(&let_in, UnblockCause::Expired, None, clock);
        for (network, error) in failed.into_iter().chain(still_held) {
            self.kernel_failed(&error);
            self.ledger.put_off(network, clock.now() + TICK);
            self.unfinished = true;
        }
    }
}
