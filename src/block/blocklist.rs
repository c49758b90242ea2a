//! The blocks: in the kernel, in the ledger and in the database, which move together and in that order.
//!
//! Owns the back end, the ledger and the database. What it returns as [`Change`] has happened in all three,
//! and is the only source of events, rows and forgotten sources. It never decides whether to block.

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::IpNet;

use crate::block::backend::ipset::netlink::{Element, IpsetError};
use crate::block::backend::{Backend, FirewallError};
use crate::block::ledger::{Due, Ledger};
use crate::block::merge::{Merged, merge};
use crate::block::reconcile::{Checked, DesiredState, Fault, Reconciler, Repaired};
use crate::block::store::persister::{Persister, StoreNews};
use crate::block::store::records::{Record, Remembered};
use crate::block::store::{Loaded, StorePath};
use crate::config::values::Established;
use crate::system::conntrack::Conntrack;
use crate::system::netlink::NetlinkError;
use crate::types::{Block, BlockFailure, BlockReason, Family, Moment, UnblockCause, WallClock};

/// How many blocks expire in one step: other commands wait as long.
const EXPIRE_AT_ONCE: usize = 1024;

/// The pause before the kernel is asked again to end or prolong a block.
const RETRY: Duration = Duration::from_millis(400);

/// How many blocks the kernel restores between two reports of the progress.
const RESTORE_AT_ONCE: usize = 10_000;

/// Told how many blocks are restored, of how many.
pub type OnProgress<'a> = &'a mut dyn FnMut(usize, usize);

/// Something that has happened to a block, in the kernel, the ledger and the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Blocked { network: IpNet, block: Block },
    Unblocked { network: IpNet, cause: UnblockCause },
}

impl Change {
    fn record(&self) -> Record<'_> {
        match self {
            Self::Blocked { network, block } => Record::Block(*network, Some(block)),
            Self::Unblocked { network, .. } => Record::Block(*network, None),
        }
    }
}

/// What becomes of a block for which there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// The scanner's block that expires next ends: a source that scans now does more harm, and the evicted
    /// one is blocked again if it scans again.
    Evict,
    Fail,
}

/// A block that the kernel has accepted.
#[derive(Debug)]
#[must_use]
pub struct Added {
    /// The block, after the one that was evicted for it.
    pub changes: Vec<Change>,
    /// When the kernel accepted it.
    pub accepted: Moment,
}

/// A block that was not added.
#[derive(Debug)]
#[must_use]
pub struct NotAdded {
    pub why: BlockFailure,
    /// What was evicted nevertheless.
    pub changes: Vec<Change>,
}

/// Blocks that ended, and what the kernel refused.
#[derive(Debug, Default)]
#[must_use]
pub struct Removed {
    pub changes: Vec<Change>,
    /// These stay blocked.
    pub failed: Vec<(IpNet, FirewallError)>,
}

/// The blocks of the last run.
#[derive(Debug, Default)]
#[must_use]
pub struct Restored {
    /// Blocks that the kernel held and the database did not.
    pub changes: Vec<Change>,
    /// Blocks that are not expired.
    pub blocks: usize,
    /// Blocks that expired while the service was stopped.
    pub expired: usize,
    /// Blocks that another program had restored to the kernel; they were removed.
    pub stale: usize,
    /// Stale blocks that the kernel did not remove.
    pub stale_failed: Vec<FirewallError>,
    /// Blocks that the kernel did not take.
    pub failed: Vec<FirewallError>,
}

pub struct Blocklist {
    /// None while the service only observes: then nothing is blocked.
    backend: Option<Box<dyn Backend + Send>>,
    ledger: Ledger,
    persister: Persister,
    conntrack: Conntrack,
    reconciler: Reconciler,
    /// Whether a block ends live connections.
    established: Established,
    /// Packets that earlier back ends have dropped, by family.
    dropped_before: [u64; 2],
}

impl Blocklist {
    /// Returns a list that holds nothing, as while observing.
    pub fn new(store_path: Option<StorePath>) -> Self {
        Self {
            backend: None,
            ledger: Ledger::new(Duration::MAX),
            persister: Persister::new(store_path),
            conntrack: Conntrack::default(),
            reconciler: Reconciler::default(),
            established: Established::Keep,
            dropped_before: [0; 2],
        }
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    pub fn backend_name(&self) -> &'static str {
        self.backend.as_ref().map_or("none", |backend| backend.name())
    }

    /// How many networks of a family are blocked in fact, as of the last check.
    pub fn enforced(&self, family: Family) -> u32 {
        self.backend.as_ref().map_or(0, |backend| backend.enforced(family))
    }

    /// Packets of a family that the kernel has dropped since the start, as of the last check.
    pub fn dropped(&self, family: Family) -> u64 {
        let dropped = self.backend.as_ref().map_or(0, |backend| backend.dropped(family));
        self.dropped_before[family as usize] + dropped
    }

    /// Packets of a blocked network that the kernel has dropped; none if it does not tell.
    pub fn dropped_from(&mut self, network: IpNet) -> Option<u64> {
        self.backend.as_mut()?.dropped_from(network).ok()
    }

    /// Whether a hundredth of the room is free again. A single free place does not count: a full list would
    /// be reported with each block that ends and each that takes its place.
    pub fn has_room(&self) -> bool {
        let Some(backend) = &self.backend else { return true };
        let most = backend.capacity();
        Family::ALL.into_iter().all(|family| self.ledger.count(family) < most - most / 100)
    }

    /// How many blocks of a family there can be.
    pub fn capacity(&self) -> u32 {
        self.backend.as_ref().map_or(0, |backend| backend.capacity())
    }

    /// What has happened to the database since the last call.
    pub fn take_store_news(&mut self) -> Vec<StoreNews> {
        self.persister.take_news()
    }

    /// Blocks a network, or replaces its block. A scan counts as an offence unless its source may be a
    /// decoy; a user's block ends the grace period.
    pub fn add(
        &mut self,
        network: IpNet,
        block: &Block,
        when_full: WhenFull,
        now: Moment,
    ) -> Result<Added, NotAdded> {
        let mut changes = Vec::new();
        if let Err(why) = self.add_to_kernel(network, block, when_full, now, &mut changes) {
            return Err(NotAdded { why, changes });
        }
        let accepted = Moment::now();
        if self.established == Established::Cut {
            self.conntrack.cut(network);
        }
        self.ledger.insert(network, now, block.clone());
        let more = match &block.reason {
            BlockReason::Scan(evidence) if !evidence.decoy => {
                self.ledger.add_offence(network, now, block.offences)
            }
            BlockReason::Manual(_) => self.ledger.end_grace(&network),
            BlockReason::Scan(_) | BlockReason::Found => Vec::new(),
        };
        let change = Change::Blocked { network, block: block.clone() };
        self.persister.save([change.record()].into_iter().chain(more), now);
        changes.push(change);
        Ok(Added { changes, accepted })
    }

    fn add_to_kernel(
        &mut self,
        network: IpNet,
        block: &Block,
        when_full: WhenFull,
        now: Moment,
        changes: &mut Vec<Change>,
    ) -> Result<(), BlockFailure> {
        let (family, capacity) = (Family::of(network), self.capacity());
        let time = self.ledger.kernel_time(block.until.map(|until| until.since(now)));
        // The kernel's own limit does not do: past it a set still takes some elements, and then refuses
        // even one that replaces another.
        let has_room = self.ledger.count(family) < capacity || self.ledger.get(&network).is_some();
        let backend = self.backend.as_mut().ok_or(BlockFailure::Observing)?;
        let result = if has_room {
            backend.block(network, time)
        } else {
            Err(FirewallError::Full(capacity))
        };
        match result {
            Err(error) if error.is_full() => {
                if when_full == WhenFull::Fail || !self.evict(family, now, changes) {
                    return Err(failure(error, capacity));
                }
                let backend = self.backend.as_mut().ok_or(BlockFailure::Observing)?;
                backend.block(network, time).map_err(|error| failure(error, capacity))
            }
            result => result.map_err(|error| failure(error, capacity)),
        }
    }

    /// Ends a block to make room for another. False if there is none that may end, or the kernel refuses.
    fn evict(&mut self, family: Family, now: Moment, changes: &mut Vec<Change>) -> bool {
        let Some(network) = self.ledger.next_to_expire(family) else { return false };
        let Removed { changes: evicted, failed } =
            self.remove(vec![network], UnblockCause::Evicted, now);
        changes.extend(evicted);
        failed.is_empty()
    }

    /// Ends these blocks.
    pub fn remove(&mut self, networks: Vec<IpNet>, cause: UnblockCause, now: Moment) -> Removed {
        let removed = self.remove_from_kernel(networks, cause);
        self.persister.save(removed.changes.iter().map(Change::record), now);
        removed
    }

    /// Ends every block that overlaps a network, as a user has asked. These networks, and the one that the
    /// user named, get a grace period. None if nothing is blocked there.
    pub fn remove_manually(
        &mut self,
        named: IpNet,
        grace_until: Moment,
        now: Moment,
    ) -> Option<Removed> {
        let overlapping = self.ledger.overlapping(&named);
        if overlapping.is_empty() {
            return None;
        }
        let removed = self.remove_from_kernel(overlapping, UnblockCause::Manual);
        let mut records: Vec<_> = removed.changes.iter().map(Change::record).collect();
        let networks = removed.changes.iter().map(|change| match change {
            Change::Blocked { network, .. } | Change::Unblocked { network, .. } => *network,
        });
        // An IPv6 address scans as its network, so both count.
        for graced in networks.chain(removed.failed.is_empty().then_some(named)) {
            records.extend(self.ledger.grant_grace(graced, grace_until));
        }
        self.persister.save(records, now);
        Some(removed)
    }

    fn remove_from_kernel(&mut self, mut networks: Vec<IpNet>, cause: UnblockCause) -> Removed {
        let Some(backend) = &mut self.backend else { return Removed::default() };
        let failed = backend.unblock_all(&networks);
        let kept: BTreeSet<IpNet> = failed.iter().map(|(network, _)| *network).collect();
        networks.retain(|network| !kept.contains(network));
        for network in &networks {
            self.ledger.remove(network);
        }
        let unblocked = |network| Change::Unblocked { network, cause };
        Removed { changes: networks.into_iter().map(unblocked).collect(), failed }
    }

    /// Ends blocks that have expired, and prolongs those that the kernel cannot hold to their end. What the
    /// kernel refuses is tried again a little later.
    pub fn expire(&mut self, now: Moment) -> Removed {
        let (mut expired, mut not_prolonged) = (Vec::new(), Vec::new());
        while expired.len() < EXPIRE_AT_ONCE
            && let Some((network, due)) = self.ledger.take_due(now)
        {
            match due {
                // The kernel rounds up to whole seconds and may still hold it.
                Due::Expired => expired.push(network),
                Due::Prolong(time) => {
                    if let Some(Err(error)) =
                        self.backend.as_mut().map(|backend| backend.block(network, time))
                    {
                        not_prolonged.push((network, error));
                    }
                }
            }
        }
        if expired.is_empty() && not_prolonged.is_empty() {
            return Removed::default();
        }
        let mut removed = self.remove(expired, UnblockCause::Expired, now);
        removed.failed.append(&mut not_prolonged);
        for (network, _) in &removed.failed {
            self.ledger.defer(*network, now + RETRY);
        }
        removed
    }

    /// Installs a back end and blocks what the last run had blocked, except for what is exempt by now: that
    /// enters the ledger only, for the caller to remove. After an error nothing is installed.
    pub fn restore(
        &mut self,
        backend: Box<dyn Backend + Send>,
        established: Established,
        clock: &WallClock,
        is_exempt: &mut dyn FnMut(&IpNet) -> bool,
        on_progress: OnProgress<'_>,
    ) -> Result<Restored, FirewallError> {
        self.established = established;
        self.ledger = Ledger::new(backend.longest());
        let loaded = self.persister.load(clock);
        let backend = self.backend.insert(backend);
        match backend.install() {
            Ok(elements) => {
                let loaded = (loaded, elements);
                Ok(self.restore_blocks(loaded, clock, is_exempt, on_progress))
            }
            Err(error) => {
                // The first error is the one to report.
                let _ = backend.remove();
                self.reset();
                Err(error)
            }
        }
    }

    fn restore_blocks(
        &mut self,
        (loaded, elements): (Loaded, Option<Vec<Element>>),
        clock: &WallClock,
        is_exempt: &mut dyn FnMut(&IpNet) -> bool,
        on_progress: OnProgress<'_>,
    ) -> Restored {
        let now = clock.now();
        let Remembered { blocks, offences, graces } = loaded.remembered;
        self.ledger.load(offences, graces);
        let merged = merge(blocks, loaded.precedence, elements, now, &self.ledger);
        let Merged { restored, expired, lingering, found, stale } = merged;
        let stale_failed = if stale.is_empty() {
            Vec::new()
        } else {
            self.backend.as_mut().map(|backend| backend.unblock_all(&stale)).unwrap_or_default()
        };
        let again: Vec<_> = restored
            .iter()
            .chain(&found)
            .filter(|(network, _)| !is_exempt(network))
            .map(|(network, block)| {
                let remaining = block.until.map(|until| until.since(now));
                (*network, self.ledger.kernel_time(remaining))
            })
            .collect();
        let failed = self.block_all(&again, on_progress);
        let mut result = Restored {
            changes: Vec::new(),
            blocks: restored.len(),
            expired: expired.len(),
            stale: stale.len(),
            stale_failed: stale_failed.into_iter().map(|(_, error)| error).collect(),
            failed: Vec::new(),
        };
        let mut records: Vec<_> =
            expired.iter().map(|network| Record::Block(*network, None)).collect();
        for (network, block) in restored.into_iter().chain(lingering) {
            self.ledger.insert(network, now, block);
        }
        let refused: BTreeSet<IpNet> = failed.iter().map(|(network, _)| *network).collect();
        for (network, block) in found {
            self.ledger.insert(network, now, block.clone());
            if !refused.contains(&network) {
                result.changes.push(Change::Blocked { network, block });
            }
        }
        for (network, error) in failed {
            self.ledger.remove(&network);
            records.push(Record::Block(network, None));
            result.failed.push(error);
        }
        records.extend(result.changes.iter().map(Change::record));
        if loaded.is_outdated {
            self.persister.save_all(&self.ledger, clock);
        } else {
            self.persister.save(records, now);
        }
        self.cut_all();
        result
    }

    fn block_all(
        &mut self,
        blocks: &[(IpNet, Duration)],
        on_progress: OnProgress<'_>,
    ) -> Vec<(IpNet, FirewallError)> {
        let Some(backend) = &mut self.backend else { return Vec::new() };
        let mut failed = Vec::new();
        for (number, some) in blocks.chunks(RESTORE_AT_ONCE).enumerate() {
            if blocks.len() > RESTORE_AT_ONCE {
                on_progress(number * RESTORE_AT_ONCE, blocks.len());
            }
            failed.append(&mut backend.block_all(some));
        }
        failed
    }

    /// Puts another back end in the place of the present one, with all blocks.
    pub fn replace_backend(
        &mut self,
        mut new: Box<dyn Backend + Send>,
        established: Established,
        now: Moment,
    ) -> Result<(), FirewallError> {
        let Some(old) = &mut self.backend else { return Ok(()) };
        let blocked = Family::ALL.map(|family| self.ledger.count(family)).into_iter().max();
        let (blocked, room) = (blocked.unwrap_or_default(), new.capacity());
        if blocked > room {
            return Err(FirewallError::TooManyFor { backend: new.name(), blocked, room });
        }
        self.ledger.set_longest(new.longest(), now);
        let desired = DesiredState::of(&self.ledger, now);
        // Reads the last counters; what is wrong with the old back end does not matter any more.
        let _ = old.check(&desired);
        if let Err(error) = new.repair(&desired) {
            self.ledger.set_longest(old.longest(), now);
            // The new back end may have changed something already.
            let _ = old.repair(&DesiredState::of(&self.ledger, now));
            return Err(error);
        }
        // The counters start here.
        let _ = new.check(&desired);
        self.keep_dropped();
        (self.backend, self.established) = (Some(new), established);
        self.cut_all();
        Ok(())
    }

    /// Removes everything from the kernel and stops blocking. The database keeps the blocks, as after a
    /// stop, for [`Self::restore`]. Returns how many there were.
    pub fn suspend(&mut self) -> Result<usize, FirewallError> {
        if let Some(backend) = &mut self.backend {
            backend.remove()?;
        }
        self.keep_dropped();
        let count = self.ledger.blocks().len();
        self.reset();
        Ok(count)
    }

    fn reset(&mut self) {
        self.backend = None;
        self.ledger = Ledger::new(Duration::MAX);
        self.reconciler = Reconciler::default();
        self.persister.pause();
    }

    fn keep_dropped(&mut self) {
        self.dropped_before = Family::ALL.map(|family| self.dropped(family));
    }

    /// Saves everything for the next instance, and removes everything from the kernel.
    pub fn finish(&mut self, clock: &WallClock) -> Result<(), FirewallError> {
        self.persister.finish(&self.ledger, clock);
        self.backend.as_mut().map_or(Ok(()), |backend| backend.remove())
    }

    /// Compares the kernel with the ledger. Fails if the kernel cannot be read.
    pub fn check(&mut self, now: Moment) -> Result<Checked, FirewallError> {
        let Some(backend) = &mut self.backend else { return Ok(Checked::Sound) };
        let desired = DesiredState::of(&self.ledger, now);
        self.reconciler.check(&mut **backend, &desired)
    }

    /// Repairs what a check has found.
    pub fn repair(&mut self, faults: Vec<Fault>, now: Moment) -> Repaired {
        let Some(backend) = &mut self.backend else {
            return Repaired::Fully { is_settled: true };
        };
        let desired = DesiredState::of(&self.ledger, now);
        self.reconciler.repair(&mut **backend, &desired, faults)
    }

    /// Has the connections of all blocked sources ended, if so configured.
    fn cut_all(&mut self) {
        if self.established == Established::Cut {
            self.conntrack.cut_all();
        }
    }

    /// Ends the live connections of sources that were blocked since the last call, if so configured.
    pub fn end_connections(&mut self) -> Result<(), NetlinkError> {
        let ledger = &self.ledger;
        self.conntrack.end_pending(|address| ledger.covers(&address.into()))
    }

    /// Forgets offences that no longer count and grace periods that have ended.
    pub fn forget(&mut self, now: Moment, forget_after: Duration) {
        let records = self.ledger.forget(now, forget_after);
        self.persister.save(records, now);
    }

    /// Checks the database, and tries again to save what could not be saved.
    pub fn maintain_store(&mut self, clock: &WallClock) {
        self.persister.maintain(&self.ledger, clock);
    }
}

/// Why the kernel did not take a block.
fn failure(error: FirewallError, capacity: u32) -> BlockFailure {
    match error {
        FirewallError::Full(capacity) => BlockFailure::Full(capacity),
        FirewallError::Set(IpsetError::Full(_)) => BlockFailure::Full(capacity),
        FirewallError::NoIpv6 => BlockFailure::NoIpv6,
        error => BlockFailure::Kernel(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::backend::fake::FakeKernel;
    use crate::types::{Evidence, Rule, ScanKind};

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn at(seconds: u64) -> Moment {
        Moment::from_nanos(seconds * 1_000_000_000)
    }

    /// A block for a scan, of one hour from this second on.
    fn scan(second: u64) -> Block {
        let evidence = Evidence {
            kind: ScanKind::Vertical,
            address: [198, 51, 100, 1].into(),
            destination: [192, 0, 2, 5].into(),
            attempts: Vec::new(),
            probes: 4,
            rule: Rule::Ports,
            threshold: 3,
            span: Duration::from_secs(60),
            decoy: false,
        };
        let until = Some(at(second + 3600));
        let reason = BlockReason::Scan(Box::new(evidence));
        Block { since: at(second), until, offences: 1, reason }
    }

    fn manual() -> Block {
        let reason = BlockReason::Manual("test".to_owned());
        Block { since: at(0), until: None, offences: 0, reason }
    }

    fn blocklist(kernel: &FakeKernel) -> Blocklist {
        let mut blocklist = Blocklist::new(None);
        let clock = WallClock::at(at(0), 1_800_000_000);
        let backend = Box::new(kernel.clone());
        let restored =
            blocklist.restore(backend, Established::Keep, &clock, &mut |_| false, &mut |_, _| {});
        assert_eq!(restored.unwrap().changes, []);
        blocklist
    }

    #[test]
    fn eviction_comes_before_the_block_it_made_room_for() {
        let kernel = FakeKernel::default();
        kernel.inner().capacity = Some(1);
        let mut blocklist = blocklist(&kernel);
        let (first, second) = (net("198.51.100.1/32"), net("198.51.100.2/32"));
        let _ = blocklist.add(first, &scan(0), WhenFull::Evict, at(0)).unwrap();
        let added = blocklist.add(second, &scan(1), WhenFull::Evict, at(1)).unwrap();
        assert_eq!(
            added.changes,
            [
                Change::Unblocked { network: first, cause: UnblockCause::Evicted },
                Change::Blocked { network: second, block: scan(1) },
            ]
        );
        let refused = blocklist.add(first, &manual(), WhenFull::Fail, at(2)).unwrap_err();
        assert_eq!((refused.why, refused.changes), (BlockFailure::Full(1), Vec::new()));
    }

    #[test]
    fn nothing_changes_if_the_kernel_refuses() {
        let kernel = FakeKernel::default();
        let mut blocklist = blocklist(&kernel);
        let (held, other) = (net("198.51.100.1/32"), net("198.51.100.2/32"));
        let _ = blocklist.add(held, &scan(0), WhenFull::Evict, at(0)).unwrap();
        kernel.inner().out_of_order = true;
        let refused = blocklist.add(other, &manual(), WhenFull::Fail, at(1)).unwrap_err();
        assert!(matches!(refused.why, BlockFailure::Kernel(_)), "{refused:?}");
        let removed = blocklist.remove(vec![held], UnblockCause::Exempt, at(1));
        assert_eq!((removed.changes, removed.failed.len()), (Vec::new(), 1));
        let held_now: Vec<_> = blocklist.ledger().blocks().map(|(network, _)| *network).collect();
        assert_eq!(held_now, [held]);
    }

    #[test]
    fn manual_removal_grants_grace_to_the_named_address_and_its_network() {
        let mut blocklist = blocklist(&FakeKernel::default());
        let (network, named) = (net("2001:db8::/64"), net("2001:db8::7/128"));
        assert!(blocklist.remove_manually(named, at(60), at(0)).is_none(), "nothing is blocked");
        let _ = blocklist.add(network, &scan(0), WhenFull::Evict, at(0)).unwrap();
        let removed = blocklist.remove_manually(named, at(60), at(0)).unwrap();
        let cause = UnblockCause::Manual;
        assert_eq!(removed.changes, [Change::Unblocked { network, cause }]);
        for graced in [network, named] {
            assert!(blocklist.ledger().grace(&graced, at(59)).is_some(), "{graced}");
        }
        let _ = blocklist.add(network, &manual(), WhenFull::Fail, at(1)).unwrap();
        assert_eq!(blocklist.ledger().grace(&network, at(1)), None, "a user has blocked it");
    }

    #[test]
    fn without_a_back_end_nothing_is_blocked() {
        let mut blocklist = Blocklist::new(None);
        let refused = blocklist.add(net("192.0.2.1/32"), &scan(0), WhenFull::Evict, at(0));
        assert_eq!(refused.unwrap_err().why, BlockFailure::Observing);
        assert_eq!(blocklist.backend_name(), "none");
        assert!(matches!(blocklist.check(at(0)), Ok(Checked::Sound)));
    }
}
