//! The ledger: every block with its end and reason, earlier offences, and grace periods.
//!
//! It is authoritative: the kernel's sets follow it. Pure, time is an argument; it never touches the
//! kernel or the database.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::ops::Bound;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lru::LruCache;

use crate::block::store::records::{Offences, Record};
use crate::types::{Block, BlockReason, Family, Moment};

/// Earlier offences and grace periods, each: as many as sources that the detector remembers by default.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(131_072).unwrap();

struct Entry {
    block: Block,
    /// When the kernel has to be told again: to end the block, or to prolong it if the kernel cannot
    /// hold it to its end at once.
    due: Moment,
    /// How many probes the source has sent, as far as known: none without a scan.
    probes: u64,
}

/// The place of a scanner's block in the order of eviction: sources without earlier offences first, then those
/// with the fewest probes, and among these the block that ends first.
type Rank = (bool, u64, bool, Option<Moment>, IpNet);

impl Entry {
    fn rank(&self, network: IpNet) -> Option<Rank> {
        let Block { until, offences, reason, .. } = &self.block;
        let is_rule = matches!(reason, BlockReason::Scan(_));
        is_rule.then_some((*offences > 1, self.probes, until.is_none(), *until, network))
    }
}

/// What a due block needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    Expired,
    /// The kernel has to hold it for this long from now on.
    Prolong(Duration),
}

/// An empty table for this many networks. It does not allocate their room in advance: few hosts need much
/// of it.
fn table<V>(networks: NonZeroUsize) -> LruCache<IpNet, V> {
    let mut table = LruCache::new(NonZeroUsize::MIN);
    table.resize(networks);
    table
}

/// Puts a network into a table. Returns the other network that had to leave a full one.
fn push<V>(table: &mut LruCache<IpNet, V>, network: IpNet, value: V) -> Option<IpNet> {
    table.push(network, value).map(|(left, _)| left).filter(|left| *left != network)
}

pub struct Ledger {
    blocks: BTreeMap<IpNet, Entry>,
    counts: [u32; 2],
    due: BTreeSet<(Moment, IpNet)>,
    /// The blocks of scanners by family, in the order of eviction.
    ranks: [BTreeSet<Rank>; 2],
    offences: LruCache<IpNet, Offences>,
    graces: LruCache<IpNet, Moment>,
    /// The longest time for which the kernel can hold a block.
    longest: Duration,
}

impl Ledger {
    /// Returns an empty ledger for a kernel that can hold a block for `longest`.
    pub fn new(longest: Duration) -> Self {
        Self {
            blocks: BTreeMap::new(),
            counts: [0; 2],
            due: BTreeSet::new(),
            ranks: Default::default(),
            offences: table(REMEMBERED),
            graces: table(REMEMBERED),
            longest,
        }
    }

    /// Another back end holds the blocks from now on, for `longest` at most.
    pub fn set_longest(&mut self, longest: Duration, now: Moment) {
        self.longest = longest;
        let ends = self.blocks.iter().map(|(network, entry)| (*network, entry.block.until));
        for (network, until) in ends.collect::<Vec<_>>() {
            self.defer(network, self.due_time(now, until));
        }
    }

    /// Returns how long the kernel has to hold a block of this length. If the block ends, this is at most
    /// half of the longest time: so a block without an end can be told by its remaining time after a crash.
    pub fn kernel_time(&self, duration: Option<Duration>) -> Duration {
        duration.map_or(self.longest, |duration| duration.min(self.longest / 2))
    }

    /// Whether an element of the kernel with this remaining time is a block without an end.
    pub fn is_endless(&self, remaining: Duration) -> bool {
        remaining > self.longest / 2
    }

    /// Makes a block due again at this moment, because the kernel did not do what was due.
    pub fn defer(&mut self, network: IpNet, until: Moment) {
        if let Some(entry) = self.blocks.get_mut(&network) {
            self.due.remove(&(entry.due, network));
            entry.due = until;
            self.due.insert((until, network));
        }
    }

    /// Inserts or replaces a block.
    pub fn insert(&mut self, network: IpNet, now: Moment, block: Block) {
        self.remove(&network);
        let due = self.due_time(now, block.until);
        self.due.insert((due, network));
        let family = Family::of(network) as usize;
        self.counts[family] += 1;
        let probes = block.reason.evidence().map_or(0, |evidence| evidence.probes);
        let entry = Entry { block, due, probes };
        self.ranks[family].extend(entry.rank(network));
        self.blocks.insert(network, entry);
    }

    pub fn remove(&mut self, network: &IpNet) -> Option<Block> {
        let entry = self.blocks.remove(network)?;
        let family = Family::of(*network) as usize;
        self.counts[family] -= 1;
        self.due.remove(&(entry.due, *network));
        if let Some(rank) = entry.rank(*network) {
            self.ranks[family].remove(&rank);
        }
        Some(entry.block)
    }

    /// Takes note that a blocked source has sent so many probes by now.
    pub fn note_probes(&mut self, network: &IpNet, probes: u64) {
        let Some(entry) = self.blocks.get_mut(network) else { return };
        let ranks = &mut self.ranks[Family::of(*network) as usize];
        if let Some(rank) = entry.rank(*network) {
            ranks.remove(&rank);
        }
        entry.probes = entry.probes.max(probes);
        ranks.extend(entry.rank(*network));
    }

    /// The block of exactly this network.
    pub fn get(&self, network: &IpNet) -> Option<&Block> {
        self.blocks.get(network).map(|entry| &entry.block)
    }

    /// Whether all of this network is blocked, by itself or within a larger one.
    pub fn covers(&self, network: &IpNet) -> bool {
        self.around(network).next().is_some()
    }

    /// Returns every block that has to end so that nothing of this network is blocked: its own, those
    /// around it, and those within it.
    pub fn overlapping(&self, network: &IpNet) -> Vec<IpNet> {
        // In this order a network follows those that contain it.
        let within = self.blocks.range(network..).map(|(blocked, _)| *blocked);
        let within =
            within.take_while(|blocked| network.contains(blocked)).filter(|n| n != network);
        self.around(network).chain(within).collect()
    }

    /// The smallest blocked network that contains all of this one, and its block.
    pub fn block_around(&self, network: &IpNet) -> Option<(IpNet, &Block)> {
        let blocked = self.around(network).next()?;
        Some((blocked, self.get(&blocked)?))
    }

    /// The offences that still count, of this network or the smallest one around it that has any.
    pub fn offences_around(
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

    /// All blocks, in the order of their networks.
    pub fn blocks(&self) -> impl ExactSizeIterator<Item = (&IpNet, &Block)> {
        self.blocks.iter().map(|(network, entry)| (network, &entry.block))
    }

    /// The blocks of a family in order, from this network on.
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

    /// When the kernel has to be told again about the block of a network.
    pub fn due(&self, network: &IpNet) -> Option<Moment> {
        self.blocks.get(network).map(|entry| entry.due)
    }

    /// The block to evict if there is no room. Blocks of users never are.
    pub fn first_to_evict(&self, family: Family) -> Option<IpNet> {
        self.ranks[family as usize].first().map(|(.., network)| *network)
    }

    /// When the next block is due.
    pub fn next_due(&self) -> Option<Moment> {
        self.due.first().map(|(due, _)| *due)
    }

    /// How many blocks of a family have expired at this moment and are still in the ledger.
    pub fn expired(&self, family: Family, moment: Moment) -> usize {
        let due = self.due.iter().take_while(|(due, _)| *due <= moment);
        let has_expired = |network: &IpNet| {
            let until = self.get(network).and_then(|block| block.until);
            Family::of(*network) == family && until.is_some_and(|until| until <= moment)
        };
        due.filter(|(_, network)| has_expired(network)).count()
    }

    /// Takes the next block that is due by `now`. An expired one stays in the ledger until it is removed;
    /// one to prolong is already due later.
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
        self.defer(network, self.due_time(now, until));
        let remaining = until.map(|until| until.since(now));
        Some((network, Due::Prolong(self.kernel_time(remaining))))
    }

    /// The number of an offence committed now.
    pub fn next_offence(&self, network: &IpNet, now: Moment, forget_after: Duration) -> u32 {
        match self.offences.peek(network) {
            Some(past) if now.since(past.latest) < forget_after => past.count.saturating_add(1),
            _ => 1,
        }
    }

    /// Adds an offence. Returns the rows that change.
    pub fn add_offence(&mut self, network: IpNet, now: Moment, count: u32) -> Vec<Record<'static>> {
        let offences = Offences { count, latest: now };
        let displaced = push(&mut self.offences, network, offences);
        let displaced = displaced.map(|other| Record::Offences(other, None));
        [Record::Offences(network, Some(offences))].into_iter().chain(displaced).collect()
    }

    /// Grants a network a grace period. Returns the rows that change.
    pub fn grant_grace(&mut self, network: IpNet, until: Moment) -> Vec<Record<'static>> {
        let displaced = push(&mut self.graces, network, until);
        let displaced = displaced.map(|other| Record::Grace(other, None));
        [Record::Grace(network, Some(until))].into_iter().chain(displaced).collect()
    }

    /// Ends the grace period of a network and of those within it. That of a larger network stays: it
    /// covers other addresses, too. Returns the rows that change.
    pub fn end_grace(&mut self, network: &IpNet) -> Vec<Record<'static>> {
        let all = self.graces.iter().map(|(graced, _)| *graced);
        let ended: Vec<IpNet> = all.filter(|graced| network.contains(graced)).collect();
        for graced in &ended {
            self.graces.pop(graced);
        }
        ended.into_iter().map(|graced| Record::Grace(graced, None)).collect()
    }

    /// Takes over offences and grace periods from the database.
    pub fn load(
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

    /// Forgets offences that no longer count and grace periods that have ended, as long as they are the
    /// oldest. Returns the rows that change.
    pub fn forget(&mut self, now: Moment, forget_after: Duration) -> Vec<Record<'static>> {
        let mut records = Vec::new();
        while let Some((network, past)) = self.offences.peek_lru()
            && now.is_past(past.latest, forget_after)
        {
            records.push(Record::Offences(*network, None));
            self.offences.pop_lru();
        }
        while let Some((network, until)) = self.graces.peek_lru()
            && *until <= now
        {
            records.push(Record::Grace(*network, None));
            self.graces.pop_lru();
        }
        records
    }

    /// Every row of a complete database.
    pub fn records(&self) -> impl Iterator<Item = Record<'_>> {
        let blocks = self.blocks().map(|(network, block)| Record::Block(*network, Some(block)));
        // The oldest first, as the database returns them.
        let offences = self.offences.iter().rev();
        let offences = offences.map(|(network, past)| Record::Offences(*network, Some(*past)));
        let graces = self.graces.iter().rev();
        let graces = graces.map(|(network, until)| Record::Grace(*network, Some(*until)));
        blocks.chain(offences).chain(graces)
    }

    /// What is left of a network's grace period, its own or that of a larger network.
    pub fn grace(&self, network: &IpNet, now: Moment) -> Option<Duration> {
        networks_around(network)
            .filter_map(|larger| self.graces.peek(&larger))
            .filter(|until| **until > now)
            .map(|until| until.since(now))
            .max()
    }

    fn due_time(&self, now: Moment, until: Option<Moment>) -> Moment {
        // Halfway through the time that the kernel was told, so that a service that was down for days
        // is still in time.
        match until {
            None => now + self.longest / 2,
            Some(until) if until.since(now) <= self.longest / 2 => until,
            Some(_) => now + self.longest / 4,
        }
    }
}

/// A network and all that contain it, the smallest first. A look-up for each is cheap, no matter how many
/// networks the ledger holds.
fn networks_around(network: &IpNet) -> impl Iterator<Item = IpNet> + use<> {
    let network = *network;
    (0..=network.prefix_len())
        .rev()
        .filter_map(move |length| IpNet::new(network.addr(), length).ok())
        .map(|larger| larger.trunc())
}
