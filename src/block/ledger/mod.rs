//! The ledger: who is blocked, until when, why; who has offended before; who was let in by hand.
//!
//! Pure, and what counts: the kernel's sets follow it. Time is an argument.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::ops::Bound;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lru::LruCache;

use crate::types::block::{Block, Offences, Record};
use crate::types::clock::Moment;
use crate::types::network::Family;

/// Past offences and grace periods remembered, each: as many as sources by default.
const MEMORY: NonZeroUsize = NonZeroUsize::new(131_072).unwrap();

struct Entry {
    block: Block,
    /// When the kernel's side of it has to be looked at: to end it, or to prolong it where the kernel
    /// cannot hold it long enough at once.
    due: Moment,
}

/// What has to be done about a block whose time has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// It is over.
    Expired,
    /// The kernel must be told again, for so long.
    Prolong(Duration),
}

/// Of whom something has changed since it was last kept.
#[derive(Default)]
struct Changes {
    blocks: BTreeSet<IpNet>,
    offences: BTreeSet<IpNet>,
    graces: BTreeSet<IpNet>,
}

/// An empty memory of so many networks. What it will need is not taken before it is needed: nearly nobody
/// ever needs much of it.
fn remembering<V>(networks: NonZeroUsize) -> LruCache<IpNet, V> {
    let mut store = LruCache::new(NonZeroUsize::MIN);
    store.resize(networks);
    store
}

/// The ledger.
pub struct Ledger {
    blocks: BTreeMap<IpNet, Entry>,
    counts: [u32; 2],
    due: BTreeSet<(Moment, IpNet)>,
    offences: LruCache<IpNet, Offences>,
    graces: LruCache<IpNet, Moment>,
    changes: Changes,
    /// The longest the kernel can hold a block without being told again.
    longest: Duration,
}

impl Ledger {
    /// An empty ledger for a kernel that can hold a block for `longest`.
    pub fn new(longest: Duration) -> Self {
        Self {
            blocks: BTreeMap::new(),
            counts: [0; 2],
            due: BTreeSet::new(),
            offences: remembering(MEMORY),
            graces: remembering(MEMORY),
            changes: Changes::default(),
            longest,
        }
    }

    /// Another kernel's side holds the blocks from now on, for `longest` at most.
    pub fn set_longest(&mut self, longest: Duration, now: Moment) {
        self.longest = longest;
        let ends = self.blocks.iter().map(|(network, entry)| (*network, entry.block.until));
        for (network, until) in ends.collect::<Vec<_>>() {
            self.defer(network, self.due_time(now, until));
        }
    }

    /// How long to tell the kernel to hold a block of this length. One with an end is told at most half
    /// of what the kernel can hold, so that one without is known by its remaining time after a crash.
    pub fn kernel_time(&self, duration: Option<Duration>) -> Duration {
        duration.map_or(self.longest, |duration| duration.min(self.longest / 2))
    }

    /// Whether an element found in the kernel with so much time left is a block without an end.
    pub fn is_endless(&self, remaining: Duration) -> bool {
        remaining > self.longest / 2
    }

    /// What was due could not be done: it is due again then.
    pub fn defer(&mut self, network: IpNet, until: Moment) {
        if let Some(entry) = self.blocks.get_mut(&network) {
            self.due.remove(&(entry.due, network));
            entry.due = until;
            self.due.insert((until, network));
        }
    }

    /// Enters a block, or replaces it.
    pub fn insert(&mut self, network: IpNet, now: Moment, block: Block) {
        self.changes.blocks.insert(network);
        self.restore(network, now, block);
    }

    /// Enters a block that is kept already.
    pub fn restore(&mut self, network: IpNet, now: Moment, block: Block) {
        self.take_out(&network);
        let due = self.due_time(now, block.until);
        self.due.insert((due, network));
        self.counts[Family::of(network) as usize] += 1;
        self.blocks.insert(network, Entry { block, due });
    }

    /// Removes a block. One that is not here may still be kept: that ends as well.
    pub fn remove(&mut self, network: &IpNet) -> Option<Block> {
        self.changes.blocks.insert(*network);
        self.take_out(network)
    }

    fn take_out(&mut self, network: &IpNet) -> Option<Block> {
        let Entry { block, due } = self.blocks.remove(network)?;
        self.counts[Family::of(*network) as usize] -= 1;
        self.due.remove(&(due, *network));
        Some(block)
    }

    /// The block of exactly this network.
    pub fn get(&self, network: &IpNet) -> Option<&Block> {
        self.blocks.get(network).map(|entry| &entry.block)
    }

    /// Whether all of this network is blocked, by itself or within a larger one.
    pub fn covers(&self, network: &IpNet) -> bool {
        self.around(network).next().is_some()
    }

    /// What has to go so that all of this network is let in: its own block, those it lies in, and those
    /// that lie in it.
    pub fn overlapping(&self, network: &IpNet) -> Vec<IpNet> {
        // In order, networks follow those they lie in.
        let within = self.blocks.range(network..).map(|(blocked, _)| *blocked);
        let within =
            within.take_while(|blocked| network.contains(blocked)).filter(|n| n != network);
        self.around(network).chain(within).collect()
    }

    /// The smallest blocked network that holds all of this one, and its block.
    pub fn block_around(&self, network: &IpNet) -> Option<(IpNet, &Block)> {
        let blocked = self.around(network).next()?;
        Some((blocked, self.get(&blocked)?))
    }

    /// The past offences that still count, of this network or the smallest around it that has any.
    pub fn past_around(
        &self,
        network: &IpNet,
        now: Moment,
        forget_after: Duration,
    ) -> Option<(IpNet, Offences)> {
        let past = |larger: IpNet| Some((larger, *self.offences.peek(&larger)?));
        networks_around(network)
            .filter_map(past)
            .find(|(_, past)| now.since(past.latest) < forget_after)
    }

    fn around(&self, network: &IpNet) -> impl Iterator<Item = IpNet> {
        networks_around(network).filter(|larger| self.blocks.contains_key(larger))
    }

    /// How many networks of a family are blocked.
    pub fn count(&self, family: Family) -> u32 {
        self.counts[family as usize]
    }

    /// All blocks.
    pub fn blocks(&self) -> impl ExactSizeIterator<Item = (&IpNet, &Block)> {
        self.blocks.iter().map(|(network, entry)| (network, &entry.block))
    }

    /// The blocks of a family, in order, from somewhere on.
    pub fn blocks_of(
        &self,
        family: Family,
        from: Bound<IpNet>,
    ) -> impl Iterator<Item = (&IpNet, &Block)> {
        let (first, last) = match family {
            Family::V4 => {
                (IpNet::V4(Ipv4Net::default()), Bound::Excluded(IpNet::V6(Ipv6Net::default())))
            }
            Family::V6 => (IpNet::V6(Ipv6Net::default()), Bound::Unbounded),
        };
        let from = if from == Bound::Unbounded { Bound::Included(first) } else { from };
        self.blocks.range((from, last)).map(|(network, entry)| (network, &entry.block))
    }

    /// When the kernel's side of a network's block has to be looked at next.
    pub fn due(&self, network: &IpNet) -> Option<Moment> {
        self.blocks.get(network).map(|entry| entry.due)
    }

    /// Of the blocks of scanners the one that ends first: what makes way where there is no room.
    pub fn next_to_expire(&self, family: Family) -> Option<IpNet> {
        let ends = |(due, network): &&(Moment, IpNet)| {
            let block = self.get(network);
            Family::of(*network) == family
                && block.is_some_and(|block| block.evidence.is_some() && block.until == Some(*due))
        };
        self.due.iter().find(ends).map(|(_, network)| *network)
    }

    /// When the next block is due.
    pub fn next_due(&self) -> Option<Moment> {
        self.due.first().map(|(due, _)| *due)
    }

    /// How many blocks of a family are over at a moment, though not taken out yet.
    pub fn over(&self, family: Family, moment: Moment) -> usize {
        let due = self.due.iter().take_while(|(due, _)| *due <= moment);
        let is_over = |network: &IpNet| {
            let until = self.get(network).and_then(|block| block.until);
            Family::of(*network) == family && until.is_some_and(|until| until <= moment)
        };
        due.filter(|(_, network)| is_over(network)).count()
    }

    /// The next block that is due by `now`, and what has to be done about it. One that is over is
    /// still in the ledger; one to be prolonged is put off already.
    pub fn take_due(&mut self, now: Moment) -> Option<(IpNet, Due)> {
        let (due, network) = *self.due.first()?;
        if due > now {
            return None;
        }
        self.due.pop_first();
        let until = self.blocks.get(&network)?.block.until;
        if until.is_some_and(|until| until <= now) {
            return Some((network, Due::Expired));
        }
        let next = self.due_time(now, until);
        self.due.insert((next, network));
        if let Some(entry) = self.blocks.get_mut(&network) {
            entry.due = next;
        }
        let remaining = until.map(|until| until.since(now));
        Some((network, Due::Prolong(self.kernel_time(remaining))))
    }

    /// Which offence one committed now would be.
    pub fn next_offence(&self, network: &IpNet, now: Moment, forget_after: Duration) -> u32 {
        match self.offences.peek(network) {
            Some(past) if now.since(past.latest) < forget_after => past.count.saturating_add(1),
            _ => 1,
        }
    }

    /// Remembers an offence.
    pub fn remember_offence(&mut self, network: IpNet, now: Moment, count: u32) {
        self.changes.offences.insert(network);
        if let Some((evicted, _)) = self.offences.push(network, Offences { count, latest: now }) {
            self.changes.offences.insert(evicted);
        }
    }

    /// Leaves a network alone until then.
    pub fn grant_grace(&mut self, network: IpNet, until: Moment) {
        self.changes.graces.insert(network);
        if let Some((evicted, _)) = self.graces.push(network, until) {
            self.changes.graces.insert(evicted);
        }
    }

    /// Offences and graces that are kept already, the oldest of each first.
    pub fn restore_past(
        &mut self,
        offences: impl IntoIterator<Item = (IpNet, Offences)>,
        graces: impl IntoIterator<Item = (IpNet, Moment)>,
    ) {
        for (network, offences) in offences {
            self.offences.put(network, offences);
        }
        for (network, until) in graces {
            self.graces.put(network, until);
        }
    }

    /// Forgets offences that no longer count and graces that are over, as long as they are the oldest.
    pub fn forget(&mut self, now: Moment, forget_after: Duration) {
        while let Some((network, past)) = self.offences.peek_lru()
            && now.is_past(past.latest, forget_after)
        {
            self.changes.offences.insert(*network);
            self.offences.pop_lru();
        }
        while let Some((network, until)) = self.graces.peek_lru()
            && *until <= now
        {
            self.changes.graces.insert(*network);
            self.graces.pop_lru();
        }
    }

    /// What has changed since it was last kept.
    pub fn changes(&self) -> impl Iterator<Item = Record<'_>> {
        let Changes { blocks, offences, graces } = &self.changes;
        let blocks = blocks.iter().map(|network| Record::Block(*network, self.get(network)));
        let offences = offences
            .iter()
            .map(|network| Record::Offences(*network, self.offences.peek(network).copied()));
        let graces = graces
            .iter()
            .map(|network| Record::Grace(*network, self.graces.peek(network).copied()));
        blocks.chain(offences).chain(graces)
    }

    /// Everything there is to keep.
    pub fn records(&self) -> impl Iterator<Item = Record<'_>> {
        let blocks = self.blocks().map(|(network, block)| Record::Block(*network, Some(block)));
        // From the least recent on, as they are recalled.
        let offences = self.offences.iter().rev();
        let offences = offences.map(|(network, past)| Record::Offences(*network, Some(*past)));
        let graces = self.graces.iter().rev();
        let graces = graces.map(|(network, until)| Record::Grace(*network, Some(*until)));
        blocks.chain(offences).chain(graces)
    }

    /// What has changed is kept now, or will be with everything else.
    pub fn mark_saved(&mut self) {
        self.changes = Changes::default();
    }

    /// Ends the grace of a network, and of what lies in it. That of a larger one goes on: others are in it.
    pub fn end_grace(&mut self, network: &IpNet) {
        let all = self.graces.iter().map(|(graced, _)| *graced);
        let ended: Vec<IpNet> = all.filter(|graced| network.contains(graced)).collect();
        for graced in ended {
            self.graces.pop(&graced);
            self.changes.graces.insert(graced);
        }
    }

    /// How long a network is still left alone, by its own grace or that of a larger one.
    pub fn grace(&self, network: &IpNet, now: Moment) -> Option<Duration> {
        networks_around(network)
            .filter_map(|larger| self.graces.peek(&larger))
            .filter(|until| **until > now)
            .map(|until| until.since(now))
            .max()
    }

    fn due_time(&self, now: Moment, until: Option<Moment>) -> Moment {
        // Halfway through what the kernel was told, so that a service that is down for days still comes
        // in time.
        match until {
            None => now + self.longest / 2,
            Some(until) if until.since(now) <= self.longest / 2 => until,
            Some(_) => now + self.longest / 4,
        }
    }
}

/// A network and all it lies in, the smallest first. One look-up for each is cheap, however many
/// networks are known.
fn networks_around(network: &IpNet) -> impl Iterator<Item = IpNet> + use<> {
    let network = *network;
    (0..=network.prefix_len())
        .rev()
        .filter_map(move |length| IpNet::new(network.addr(), length).ok())
        .map(|larger| larger.trunc())
}
