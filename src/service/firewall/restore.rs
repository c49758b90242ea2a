//! The start: what is remembered and what the kernel still holds, put together.
//!
//! The database says who is blocked: it is written before anybody is told. The kernel's sets, left by
//! an instance that was killed, tell more only of what happened in its last moment, or while the
//! database could not be written.

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::block::backend::FirewallError;
use crate::block::backend::ipset::netlink::Element;
use crate::block::ledger::Ledger;
use crate::service::firewall::FirewallThread;
use crate::service::firewall::persister::{Loaded, Precedence};
use crate::types::block::BlockCause;
use crate::types::block::{Block, Remembered};
use crate::types::clock::{Moment, WallClock};
use crate::types::event::{Event, Warning};

/// What is to be done about whom.
#[derive(Debug, Default, PartialEq, Eq)]
struct Merged {
    /// To be blocked as remembered.
    restored: Vec<(IpNet, Block)>,
    /// Remembered, and over.
    over: Vec<IpNet>,
    /// Over, and still held by the kernel: to be ended like any other.
    held: Vec<(IpNet, Block)>,
    /// Held by the kernel, and not remembered.
    unknown: Vec<Element>,
    /// The same, but put there by somebody else: a program that keeps rules and sets over a boot brings back
    /// who was blocked when it saved them.
    brought_back: Vec<IpNet>,
}

/// How many are blocked again before it is told how far it is.
const BETWEEN_NEWS: usize = 10_000;

/// How many were blocked again, of how many.
pub type HowFar<'a> = &'a mut dyn FnMut(usize, usize);

impl FirewallThread {
    /// Puts everything up, and blocks again whom the last instance had blocked; tells how far it is where
    /// there are many. If that fails, nothing is left half-done.
    pub fn install(&mut self, clock: &WallClock, how_far: HowFar<'_>) -> Result<(), FirewallError> {
        let now = clock.now();
        let Loaded { remembered, precedence, is_outdated } = if self.config.enabled {
            self.persister.load(clock)
        } else {
            self.persister.start_paused()
        };
        let found = self.backend.install().inspect_err(|_| {
            // The first error is the one to tell.
            let _ = self.backend.remove();
        })?;
        let Remembered { blocks, offences, graces } = remembered;
        self.ledger.restore_past(offences, graces);
        let merged = merge(blocks, precedence, found, now, &self.ledger);
        self.unblock_stale(&merged.brought_back);
        let unknown: Vec<_> = merged
            .unknown
            .iter()
            .map(|element| (element.network, taken_over(element, now, &self.ledger)))
            .collect();
        let blocks: Vec<_> = merged.restored.iter().chain(&unknown).collect();
        let refused = self.block_again(&blocks, now, how_far);
        let (restored, over) = (merged.restored.len(), merged.over.len());
        for (network, block) in merged.restored {
            self.ledger.restore(network, now, block);
        }
        for network in merged.over {
            self.ledger.remove(&network);
        }
        for (network, block) in unknown.iter().cloned().chain(merged.held) {
            self.ledger.insert(network, now, block);
        }
        for (network, error) in &refused {
            self.kernel_failed(error);
            self.ledger.remove(network);
        }
        if is_outdated {
            self.persister.save_all(&mut self.ledger, clock);
        } else {
            self.persister.save_changes(&mut self.ledger, now);
        }
        for (network, _) in unknown {
            self.emit_blocked(network, clock, BlockCause::Found, None);
        }
        if restored + over > 0 {
            self.events.emit(Event::Restored { blocks: restored, expired: over });
        }
        if let Some((_, error)) = refused.first() {
            let count = refused.len();
            self.events.emit(Event::Warning(Warning::RestoreIncomplete {
                count,
                error: error.to_string(),
            }));
        }
        self.unblock_exempt(clock);
        self.follow_time(clock);
        self.cut_as_configured();
        self.look_round(clock);
        Ok(())
    }

    /// Ends what somebody has brought back to the kernel.
    fn unblock_stale(&mut self, brought_back: &[IpNet]) {
        if brought_back.is_empty() {
            return;
        }
        for (_, error) in self.backend.unblock_all(brought_back) {
            self.kernel_failed(&error);
        }
        self.events.emit(Event::Warning(Warning::StaleBlocksRemoved { count: brought_back.len() }));
    }

    /// Blocks those whom nobody has exempted since. Returns those the kernel did not take.
    fn block_again(
        &mut self,
        blocks: &[&(IpNet, Block)],
        now: Moment,
        how_far: HowFar<'_>,
    ) -> Vec<(IpNet, FirewallError)> {
        // Nobody is asked where nothing could follow.
        if blocks.is_empty() {
            return Vec::new();
        }
        self.ask_for_sessions(now);
        let is_exempt = |network: &IpNet| {
            self.exemptions.forbid(network).is_some()
                || self.exemptions.forbid_for_session(network).is_some()
        };
        let again: Vec<_> = blocks
            .iter()
            .filter(|(network, _)| !is_exempt(network))
            .map(|(network, block)| {
                let remaining = block.until.map(|until| until.since(now));
                (*network, self.ledger.kernel_time(remaining))
            })
            .collect();
        let mut refused = Vec::new();
        for (number, some) in again.chunks(BETWEEN_NEWS).enumerate() {
            if again.len() > BETWEEN_NEWS {
                how_far(number * BETWEEN_NEWS, again.len());
            }
            refused.append(&mut self.backend.block_all(some));
        }
        refused
    }
}

/// Puts together what is remembered and what the kernel holds; none: it held nothing of ours, as after
/// a stop or a boot.
fn merge(
    remembered: Vec<(IpNet, Block)>,
    precedence: Precedence,
    found: Option<Vec<Element>>,
    now: Moment,
    ledger: &Ledger,
) -> Merged {
    let is_kernel_right = precedence == Precedence::Kernel && found.is_some();
    let found = found.unwrap_or_default().into_iter();
    let mut found: BTreeMap<IpNet, Element> =
        found.map(|element| (element.network, element)).collect();
    let mut merged = Merged::default();
    for (network, mut block) in remembered {
        let is_over = block.until.is_some_and(|until| until <= now);
        if is_kernel_right {
            match found.remove(&network) {
                // Blocked once more since: not the block that is remembered.
                Some(element) if is_over => {
                    found.insert(network, element);
                }
                // Perhaps for longer since.
                Some(element) => {
                    let until = taken_over(&element, now, ledger).until;
                    block.until = block.until.zip(until).map(|(one, other)| one.max(other));
                    merged.restored.push((network, block));
                }
                // Let in since.
                None => merged.over.push(network),
            }
        } else {
            let is_held = found.remove(&network).is_some();
            if is_over {
                merged.over.push(network);
                if is_held {
                    merged.held.push((network, block));
                }
            } else {
                merged.restored.push((network, block));
            }
        }
    }
    let is_brought_back = |element: &Element| match precedence {
        Precedence::Kernel => false,
        // Blocked in the last instance's last moment; but not whom it had let in by hand.
        Precedence::Store => ledger.grace(&element.network, now).is_some(),
        Precedence::MemoryAlone => true,
    };
    for element in found.into_values() {
        if is_brought_back(&element) {
            merged.brought_back.push(element.network);
        } else {
            merged.unknown.push(element);
        }
    }
    merged
}

/// The block that an element of a set stands for.
fn taken_over(element: &Element, now: Moment, ledger: &Ledger) -> Block {
    let is_endless = ledger.is_endless(element.remaining);
    Block {
        since: now,
        until: (!is_endless).then(|| now + element.remaining),
        offences: 0,
        reason: "left in the kernel by an instance that did not stop in order".to_owned(),
        evidence: None,
    }
}
