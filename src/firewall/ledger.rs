//! The ledger: who is blocked, until when, why; who has offended before; who was let in by hand.
//!
//! Pure, and what counts: the kernel's sets follow it. Time is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::time::Duration;

use ipnet::IpNet;
use lru::LruCache;

use super::Family;
use crate::clock::Moment;
use crate::network::overlap;

/// Past offences and grace periods remembered, each: as many as sources by default.
const MEMORY: NonZeroUsize = NonZeroUsize::new(131_072).unwrap();

/// A block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Since when.
    pub since: Moment,
    /// Until when; none: until unblocked.
    pub until: Option<Moment>,
    /// Which offence this is; zero if none.
    pub offences: u32,
    /// Why, in words.
    pub reason: String,
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

#[derive(Clone, Copy, Debug)]
struct Offences {
    count: u32,
    latest: Moment,
}

/// The ledger.
pub struct Ledger {
    blocks: BTreeMap<IpNet, Block>,
    counts: [u32; 2],
    due: BTreeSet<(Moment, IpNet)>,
    offences: LruCache<IpNet, Offences>,
    graces: LruCache<IpNet, Moment>,
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
            offences: LruCache::new(MEMORY),
            graces: LruCache::new(MEMORY),
            longest,
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
    pub fn put_off(&mut self, network: IpNet, until: Moment) {
        if let Some(block) = self.blocks.get_mut(&network) {
            self.due.remove(&(block.due, network));
            block.due = until;
            self.due.insert((until, network));
        }
    }

    /// Enters a block, or replaces it.
    pub fn enter(
        &mut self,
        network: IpNet,
        now: Moment,
        duration: Option<Duration>,
        offences: u32,
        reason: String,
    ) {
        self.remove(&network);
        let until = duration.map(|duration| now + duration);
        let due = self.due_time(now, until);
        self.due.insert((due, network));
        self.counts[Family::of(network) as usize] += 1;
        self.blocks.insert(network, Block { since: now, until, offences, reason, due });
    }

    /// Removes a block.
    pub fn remove(&mut self, network: &IpNet) -> Option<Block> {
        let block = self.blocks.remove(network)?;
        self.counts[Family::of(*network) as usize] -= 1;
        self.due.remove(&(block.due, *network));
        Some(block)
    }

    /// The block of exactly this network.
    pub fn get(&self, network: &IpNet) -> Option<&Block> {
        self.blocks.get(network)
    }

    /// Whether all of this network is blocked, by itself or within a larger one.
    pub fn covers(&self, network: &IpNet) -> bool {
        self.around(network).next().is_some()
    }

    /// What has to go so that this network is let in: its own block and those it lies in; or, where
    /// there is none, those that lie in it.
    pub fn meant_by(&self, network: &IpNet) -> Vec<IpNet> {
        let around: Vec<IpNet> = self.around(network).collect();
        if !around.is_empty() {
            return around;
        }
        self.blocks.keys().filter(|blocked| network.contains(*blocked)).copied().collect()
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
        self.blocks.iter()
    }

    /// When the next block is due.
    pub fn next_due(&self) -> Option<Moment> {
        self.due.first().map(|(due, _)| *due)
    }

    /// The next block that is due by `now`, and what has to be done about it. One that is over is
    /// still in the ledger; one to be prolonged is put off already.
    pub fn take_due(&mut self, now: Moment) -> Option<(IpNet, Due)> {
        let (due, network) = *self.due.first()?;
        if due > now {
            return None;
        }
        self.due.pop_first();
        let until = self.blocks.get(&network)?.until;
        if until.is_some_and(|until| until <= now) {
            return Some((network, Due::Expired));
        }
        let next = self.due_time(now, until);
        self.due.insert((next, network));
        if let Some(block) = self.blocks.get_mut(&network) {
            block.due = next;
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
        self.offences.put(network, Offences { count, latest: now });
    }

    /// Leaves a network alone until then.
    pub fn grant_grace(&mut self, network: IpNet, until: Moment) {
        self.graces.put(network, until);
    }

    /// Ends the grace of a network, and of what lies in it.
    pub fn end_grace(&mut self, network: &IpNet) {
        let ended: Vec<IpNet> =
            self.graces.iter().map(|(n, _)| *n).filter(|graced| overlap(graced, network)).collect();
        for graced in ended {
            self.graces.pop(&graced);
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LONGEST: Duration = Duration::from_secs(1000);

    fn at(seconds: u64) -> Moment {
        Moment::from_nanos(seconds * 1_000_000_000)
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[expect(clippy::unnecessary_wraps, reason = "as the ledger takes it")]
    fn seconds(seconds: u64) -> Option<Duration> {
        Some(Duration::from_secs(seconds))
    }

    #[test]
    fn blocks_are_due_when_they_end() {
        let mut ledger = Ledger::new(LONGEST);
        ledger.enter(net("192.0.2.1/32"), at(0), seconds(60), 1, String::new());
        ledger.enter(net("192.0.2.2/32"), at(0), seconds(30), 1, String::new());
        assert_eq!(ledger.next_due(), Some(at(30)));
        assert_eq!(ledger.take_due(at(29)), None);
        assert_eq!(ledger.take_due(at(30)), Some((net("192.0.2.2/32"), Due::Expired)));
        assert_eq!(ledger.take_due(at(30)), None);
    }

    #[test]
    fn what_the_kernel_cannot_hold_is_prolonged() {
        let mut ledger = Ledger::new(LONGEST);
        ledger.enter(net("192.0.2.1/32"), at(0), None, 0, String::new());
        ledger.enter(net("192.0.2.2/32"), at(0), seconds(700), 0, String::new());
        assert_eq!(ledger.kernel_time(None), LONGEST);
        assert_eq!(ledger.kernel_time(seconds(700)), LONGEST / 2);
        let (endless, long) = (net("192.0.2.1/32"), net("192.0.2.2/32"));
        assert_eq!(ledger.take_due(at(249)), None);
        assert_eq!(ledger.take_due(at(250)), Some((long, Due::Prolong(Duration::from_secs(450)))));
        assert_eq!(ledger.take_due(at(500)), Some((endless, Due::Prolong(LONGEST))));
        assert_eq!(ledger.take_due(at(699)), None);
        assert_eq!(ledger.take_due(at(700)), Some((long, Due::Expired)));
    }

    #[test]
    fn what_could_not_be_done_is_due_again() {
        let mut ledger = Ledger::new(LONGEST);
        let network = net("192.0.2.1/32");
        ledger.enter(network, at(0), seconds(60), 1, String::new());
        assert_eq!(ledger.take_due(at(60)), Some((network, Due::Expired)));
        ledger.put_off(network, at(61));
        assert_eq!(ledger.take_due(at(60)), None);
        assert_eq!(ledger.take_due(at(61)), Some((network, Due::Expired)));
    }

    #[test]
    fn a_replaced_block_is_due_once() {
        let mut ledger = Ledger::new(LONGEST);
        ledger.enter(net("192.0.2.1/32"), at(0), seconds(10), 1, String::new());
        ledger.enter(net("192.0.2.1/32"), at(5), seconds(60), 2, String::new());
        assert_eq!(ledger.take_due(at(60)), None);
        assert_eq!(ledger.take_due(at(65)), Some((net("192.0.2.1/32"), Due::Expired)));
        assert_eq!(ledger.blocks().len(), 1);
    }

    #[test]
    fn unblocking_means_the_block_itself_and_those_around_it_or_else_those_in_it() {
        let mut ledger = Ledger::new(LONGEST);
        for text in ["10.0.0.0/8", "10.1.0.0/16", "2001:db8::/64", "192.0.2.1/32", "192.0.2.2/32"] {
            ledger.enter(net(text), at(0), None, 0, String::new());
        }
        assert_eq!(ledger.meant_by(&net("10.1.0.0/16")), [net("10.1.0.0/16"), net("10.0.0.0/8")]);
        assert_eq!(ledger.meant_by(&net("10.1.2.3/32")), [net("10.1.0.0/16"), net("10.0.0.0/8")]);
        assert_eq!(ledger.meant_by(&net("2001:db8::5/128")), [net("2001:db8::/64")]);
        assert_eq!(ledger.meant_by(&net("192.0.2.0/24")).len(), 2);
        assert_eq!(ledger.meant_by(&net("198.51.100.1/32")), []);
        assert!(ledger.covers(&net("10.9.9.9/32")));
        assert!(!ledger.covers(&net("192.0.2.0/24")));
    }

    #[test]
    fn offences_count_until_they_are_forgotten() {
        let mut ledger = Ledger::new(LONGEST);
        let source = net("192.0.2.1/32");
        let month = Duration::from_secs(100);
        assert_eq!(ledger.next_offence(&source, at(0), month), 1);
        ledger.remember_offence(source, at(0), 1);
        assert_eq!(ledger.next_offence(&source, at(99), month), 2);
        assert_eq!(ledger.next_offence(&source, at(100), month), 1);
    }

    #[test]
    fn grace_covers_what_lies_in_it_until_it_ends() {
        let mut ledger = Ledger::new(LONGEST);
        ledger.grant_grace(net("192.0.2.0/24"), at(10));
        assert_eq!(ledger.grace(&net("192.0.2.1/32"), at(4)), seconds(6));
        assert_eq!(ledger.grace(&net("192.0.2.1/32"), at(10)), None);
        ledger.end_grace(&net("192.0.2.1/32"));
        assert_eq!(ledger.grace(&net("192.0.2.1/32"), at(4)), None);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Enter(u8, Option<u64>),
        Remove(u8),
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..6u8, proptest::option::of(1..3000u64)).prop_map(|(n, d)| Step::Enter(n, d)),
            (0..6u8).prop_map(Step::Remove),
            (1..900u64).prop_map(Step::Pass),
        ]
    }

    proptest! {
        /// Against a map of end times: the same blocks at every step, and the kernel, which forgets
        /// after what it was told, never lets go early.
        #[test]
        fn equals_a_map_of_end_times(steps in proptest::collection::vec(step(), 1..60)) {
            let mut ledger = Ledger::new(LONGEST);
            let mut model: BTreeMap<IpNet, Option<u64>> = BTreeMap::new();
            let mut kernel: BTreeMap<IpNet, u64> = BTreeMap::new();
            let mut now = 0;
            let network = |n: u8| IpNet::from(std::net::IpAddr::from([192, 0, 2, n]));
            for step in steps {
                match step {
                    Step::Enter(n, duration) => {
                        let duration = duration.map(Duration::from_secs);
                        kernel.insert(network(n), now + ledger.kernel_time(duration).as_secs());
                        ledger.enter(network(n), at(now), duration, 0, String::new());
                        model.insert(network(n), duration.map(|d| now + d.as_secs()));
                    }
                    Step::Remove(n) => {
                        prop_assert_eq!(
                            ledger.remove(&network(n)).is_some(),
                            model.remove(&network(n)).is_some()
                        );
                    }
                    Step::Pass(time) => {
                        // The actor wakes whenever something is due.
                        let end = now + time;
                        while let Some(due) = ledger.next_due().filter(|due| *due <= at(end)) {
                            now = now.max(due.as_nanos() / 1_000_000_000);
                            while let Some((network, due)) = ledger.take_due(at(now)) {
                                match due {
                                    Due::Expired => { ledger.remove(&network); }
                                    Due::Prolong(more) => {
                                        prop_assert!(kernel[&network] >= now, "let go early");
                                        kernel.insert(network, now + more.as_secs());
                                    }
                                }
                            }
                        }
                        now = end;
                        model.retain(|_, until| until.is_none_or(|until| until > now));
                    }
                }
                let blocked: Vec<IpNet> = ledger.blocks().map(|(network, _)| *network).collect();
                prop_assert_eq!(&blocked, &model.keys().copied().collect::<Vec<_>>());
                prop_assert_eq!(ledger.count(Family::V4) as usize, blocked.len());
                for network in blocked {
                    prop_assert!(kernel[&network] > now, "let go early");
                }
            }
        }
    }
}
