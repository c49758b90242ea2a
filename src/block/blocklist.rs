//! The blocks: in the kernel, in the ledger and in the database, which move together and in that order.
//!
//! Owns the back end, the ledger and the database. What it returns as [`Change`] has happened in all three,
//! and is the only source of events, rows and forgotten sources. It never decides whether to block.

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::IpNet;

use crate::block::backend::ipset::netlink::{Element, IpsetError};
use crate::block::backend::{Backend, FirewallError, Refused};
use crate::block::ledger::{Due, Ledger};
use crate::block::merge::{Merged, merge};
use crate::block::reconcile::{DesiredState, Fault, Reconciler};
use crate::block::store::persister::Persister;
use crate::block::store::records::{Record, Remembered};
use crate::block::store::{Loaded, StorePath};
use crate::config::values::Established;
use crate::system::conntrack::Conntrack;
use crate::system::netlink::NetlinkError;
use crate::types::{
    Block, BlockFailure, BlockReason, Family, Moment, UnblockCause, WallClock, Warning,
};

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

/// What becomes of a block for which there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// The block of the scanner that has sent the fewest probes ends. It may be forged, and if not, it is
    /// blocked again when it scans again.
    Evict,
    Fail,
}

/// The blocks of the last run.
#[derive(Debug, Default)]
#[must_use]
pub struct Restored {
    /// Blocks that are not expired.
    pub blocks: usize,
    /// Blocks that expired while the service was stopped.
    pub expired: usize,
    /// Blocks that another program had restored to the kernel; they were removed.
    pub stale: usize,
    /// Stale blocks that the kernel did not remove.
    pub stale_failed: Refused,
    /// Blocks that the kernel did not take.
    pub failed: Refused,
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
    /// What has happened since the caller last took it.
    changes: Vec<Change>,
}

impl Blocklist {
    /// Returns a list that holds nothing, as while observing.
    pub fn new(store: Option<StorePath>) -> Self {
        Self {
            backend: None,
            ledger: Ledger::new(Duration::MAX),
            persister: Persister::new(store),
            conntrack: Conntrack::default(),
            reconciler: Reconciler::default(),
            established: Established::Keep,
            dropped_before: [0; 2],
            changes: Vec::new(),
        }
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Takes note that a blocked source has sent so many probes by now: it is evicted later.
    pub fn note_probes(&mut self, network: &IpNet, probes: u64) {
        self.ledger.note_probes(network, probes);
    }

    pub fn backend_name(&self) -> &'static str {
        self.backend.as_ref().map_or("none", |backend| backend.name())
    }

    /// How many networks of a family are blocked in fact, and how many of their packets the kernel has
    /// dropped since the start, as of the last check.
    pub fn figures(&self, family: Family) -> (u32, u64) {
        let figures = self.backend.as_ref().map(|backend| backend.figures(family));
        let (enforced, dropped) = figures.unwrap_or_default();
        (enforced, self.dropped_before[family as usize] + dropped)
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

    /// Returns what has happened to blocks since the last call.
    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    pub fn take_store_warnings(&mut self) -> Vec<Warning> {
        self.persister.take_warnings()
    }

    /// Why changes are not saved.
    pub fn store_failure(&self) -> Option<String> {
        self.persister.failure()
    }

    /// Why blocks are not enforced, as of the last check or repair.
    pub fn trouble(&self) -> Option<&str> {
        self.reconciler.trouble()
    }

    /// Blocks a network, or replaces its block. A scan counts as an offence unless its source may be a
    /// decoy; a user's block ends the grace period. Returns when the kernel accepted the block.
    pub fn add(
        &mut self,
        network: IpNet,
        block: &Block,
        when_full: WhenFull,
        now: Moment,
    ) -> Result<Moment, BlockFailure> {
        self.add_to_kernel(network, block, when_full, now)?;
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
        self.persister.save([Record::Block(network, Some(block))].into_iter().chain(more), now);
        self.changes.push(Change::Blocked { network, block: block.clone() });
        Ok(accepted)
    }

    fn add_to_kernel(
        &mut self,
        network: IpNet,
        block: &Block,
        when_full: WhenFull,
        now: Moment,
    ) -> Result<(), BlockFailure> {
        let (family, capacity) = (Family::of(network), self.capacity());
        let time = self.ledger.kernel_time(block.until.map(|until| until.since(now)));
        // The kernel's own limit does not do: past it a set still takes some elements, and then refuses
        // even one that replaces another.
        let has_room = self.ledger.count(family) < capacity || self.ledger.get(&network).is_some();
        let backend = self.backend.as_mut().ok_or(BlockFailure::Observing)?;
        let mut result = if has_room {
            backend.block(network, time)
        } else {
            Err(FirewallError::Full(capacity))
        };
        if result.as_ref().is_err_and(FirewallError::is_full)
            && when_full == WhenFull::Evict
            && self.evict(family, now)
            && let Some(backend) = &mut self.backend
        {
            result = backend.block(network, time);
        }
        result.map_err(|error| match error {
            FirewallError::Full(_) | FirewallError::Set(IpsetError::Full(_)) => {
                BlockFailure::Full(capacity)
            }
            FirewallError::NoIpv6 => BlockFailure::NoIpv6,
            error => BlockFailure::Kernel(error.to_string()),
        })
    }

    /// Ends a block to make room for another. False if there is none that may end, or the kernel refuses.
    fn evict(&mut self, family: Family, now: Moment) -> bool {
        let next = self.ledger.first_to_evict(family);
        next.is_some_and(|network| {
            self.remove(vec![network], UnblockCause::Evicted, now).is_empty()
        })
    }

    /// Ends these blocks, except those that the kernel refuses to end.
    pub fn remove(&mut self, networks: Vec<IpNet>, cause: UnblockCause, now: Moment) -> Refused {
        self.end(networks, cause, None, now)
    }

    /// Ends every block that overlaps a network, as a user has asked. These networks, and the one that the
    /// user named, get a grace period. None if nothing is blocked there.
    pub fn remove_manually(
        &mut self,
        named: IpNet,
        grace_until: Moment,
        now: Moment,
    ) -> Option<Refused> {
        let overlapping = self.ledger.overlapping(&named);
        let grace = Some((named, grace_until));
        (!overlapping.is_empty()).then(|| self.end(overlapping, UnblockCause::Manual, grace, now))
    }

    fn end(
        &mut self,
        mut networks: Vec<IpNet>,
        cause: UnblockCause,
        grace: Option<(IpNet, Moment)>,
        now: Moment,
    ) -> Refused {
        let Some(backend) = &mut self.backend else { return Vec::new() };
        let refused = backend.unblock_all(&networks);
        let kept: BTreeSet<IpNet> = refused.iter().map(|(network, _)| *network).collect();
        networks.retain(|network| !kept.contains(network));
        let mut records = Vec::new();
        for network in &networks {
            self.ledger.remove(network);
            records.push(Record::Block(*network, None));
            self.changes.push(Change::Unblocked { network: *network, cause });
        }
        if let Some((named, until)) = grace {
            // An IPv6 address scans as its network, so both count.
            for graced in networks.into_iter().chain(refused.is_empty().then_some(named)) {
                records.extend(self.ledger.grant_grace(graced, until));
            }
        }
        self.persister.save(records, now);
        refused
    }

    /// Ends blocks that have expired, and prolongs those that the kernel cannot hold to their end. What the
    /// kernel refuses is tried again a little later.
    pub fn expire(&mut self, now: Moment) -> Refused {
        let (mut expired, mut not_prolonged) = (Vec::new(), Vec::new());
        while expired.len() < EXPIRE_AT_ONCE
            && let Some((network, due)) = self.ledger.take_due(now)
        {
            match (due, &mut self.backend) {
                // The kernel rounds up to whole seconds and may still hold it.
                (Due::Expired, _) => expired.push(network),
                (Due::Prolong(time), Some(backend)) => {
                    let error = backend.block(network, time).err();
                    not_prolonged.extend(error.map(|error| (network, error)));
                }
                (Due::Prolong(_), None) => {}
            }
        }
        let mut refused = self.remove(expired, UnblockCause::Expired, now);
        refused.append(&mut not_prolonged);
        for (network, _) in &refused {
            self.ledger.defer(*network, now + RETRY);
        }
        refused
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
        let backend = self.backend.as_mut();
        let stale_failed = backend.map(|backend| backend.unblock_all(&stale)).unwrap_or_default();
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
        let (blocks, expired_count, stale) = (restored.len(), expired.len(), stale.len());
        let inserted = restored.into_iter().chain(lingering).chain(found.iter().cloned());
        for (network, block) in inserted {
            self.ledger.insert(network, now, block);
        }
        let ended = expired.iter().chain(failed.iter().map(|(network, _)| network));
        let begun = found.iter().map(|(network, block)| Record::Block(*network, Some(block)));
        let records = begun.chain(ended.map(|network| Record::Block(*network, None)));
        for (network, _) in &failed {
            self.ledger.remove(network);
        }
        if loaded.is_outdated {
            self.persister.save_all(&self.ledger, clock);
        } else {
            self.persister.save(records, now);
        }
        let found = found.into_iter().filter(|(network, _)| self.ledger.get(network).is_some());
        self.changes.extend(found.map(|(network, block)| Change::Blocked { network, block }));
        self.cut_all();
        Restored { blocks, expired: expired_count, stale, stale_failed, failed }
    }

    fn block_all(&mut self, blocks: &[(IpNet, Duration)], on_progress: OnProgress<'_>) -> Refused {
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
        self.dropped_before = Family::ALL.map(|family| self.figures(family).1);
    }

    /// Saves everything for the next instance, and removes everything from the kernel.
    pub fn finish(&mut self, clock: &WallClock) -> Result<(), FirewallError> {
        self.persister.finish(&self.ledger, clock);
        self.backend.as_mut().map_or(Ok(()), |backend| backend.remove())
    }

    /// Compares the kernel with the ledger. Returns what has to be repaired now. Fails if the kernel cannot
    /// be read.
    pub fn check(&mut self, now: Moment) -> Result<Vec<Fault>, FirewallError> {
        let Some(backend) = &mut self.backend else { return Ok(Vec::new()) };
        self.reconciler.check(&mut **backend, &DesiredState::of(&self.ledger, now))
    }

    /// Repairs what a check has found. Returns whether everything is as it should be.
    pub fn repair(&mut self, faults: &[Fault], now: Moment) -> bool {
        let Some(backend) = &mut self.backend else { return true };
        self.reconciler.repair(&mut **backend, &DesiredState::of(&self.ledger, now), faults)
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
        assert_eq!((restored.unwrap().blocks, blocklist.take_changes()), (0, Vec::new()));
        blocklist
    }

    #[test]
    fn eviction_comes_before_the_block_it_made_room_for() {
        let kernel = FakeKernel::default();
        kernel.inner().capacity = Some(1);
        let mut blocklist = blocklist(&kernel);
        let (first, second) = (net("198.51.100.1/32"), net("198.51.100.2/32"));
        blocklist.add(first, &scan(0), WhenFull::Evict, at(0)).unwrap();
        blocklist.take_changes();
        blocklist.add(second, &scan(1), WhenFull::Evict, at(1)).unwrap();
        assert_eq!(
            blocklist.take_changes(),
            [
                Change::Unblocked { network: first, cause: UnblockCause::Evicted },
                Change::Blocked { network: second, block: scan(1) },
            ]
        );
        let refused = blocklist.add(first, &manual(), WhenFull::Fail, at(2)).unwrap_err();
        assert_eq!((refused, blocklist.take_changes()), (BlockFailure::Full(1), Vec::new()));
    }

    #[test]
    fn nothing_changes_if_the_kernel_refuses() {
        let kernel = FakeKernel::default();
        let mut blocklist = blocklist(&kernel);
        let (held, other) = (net("198.51.100.1/32"), net("198.51.100.2/32"));
        blocklist.add(held, &scan(0), WhenFull::Evict, at(0)).unwrap();
        blocklist.take_changes();
        kernel.inner().out_of_order = true;
        let refused = blocklist.add(other, &manual(), WhenFull::Fail, at(1)).unwrap_err();
        assert!(matches!(refused, BlockFailure::Kernel(_)), "{refused:?}");
        assert_eq!(blocklist.remove(vec![held], UnblockCause::Exempt, at(1)).len(), 1);
        assert_eq!(blocklist.take_changes(), []);
        let held_now: Vec<_> = blocklist.ledger().blocks().map(|(network, _)| *network).collect();
        assert_eq!(held_now, [held]);
    }

    #[test]
    fn manual_removal_grants_grace_to_the_named_address_and_its_network() {
        let mut blocklist = blocklist(&FakeKernel::default());
        let (network, named) = (net("2001:db8::/64"), net("2001:db8::7/128"));
        assert!(blocklist.remove_manually(named, at(60), at(0)).is_none(), "nothing is blocked");
        blocklist.add(network, &scan(0), WhenFull::Evict, at(0)).unwrap();
        blocklist.take_changes();
        assert!(blocklist.remove_manually(named, at(60), at(0)).unwrap().is_empty());
        let cause = UnblockCause::Manual;
        assert_eq!(blocklist.take_changes(), [Change::Unblocked { network, cause }]);
        for graced in [network, named] {
            assert!(blocklist.ledger().grace(&graced, at(59)).is_some(), "{graced}");
        }
        blocklist.add(network, &manual(), WhenFull::Fail, at(1)).unwrap();
        assert_eq!(blocklist.ledger().grace(&network, at(1)), None, "a user has blocked it");
    }

    #[test]
    fn without_a_back_end_nothing_is_blocked() {
        let mut blocklist = Blocklist::new(None);
        let refused = blocklist.add(net("192.0.2.1/32"), &scan(0), WhenFull::Evict, at(0));
        assert_eq!(refused.unwrap_err(), BlockFailure::Observing);
        assert_eq!(blocklist.backend_name(), "none");
        assert_eq!(blocklist.check(at(0)).unwrap(), []);
    }
}
