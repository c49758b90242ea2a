//! The packets dropped since the start, summed over kernel counters that appear and disappear.
//!
//! A rule that is made again counts from zero; what the old rule counted must stay in the total. The rules
//! thread reads the counters before it deletes a rule, and the firewall thread for its figures, so that both
//! share them. Reading takes one netlink message; no lock is held while a program runs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::block::backend::nftables::Nftables;
use crate::block::backend::ruleset::Source;
use crate::system::netlink::NetlinkError;

/// The identity of a rule's counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CounterKey {
    /// nf_tables numbers its rules and uses no number twice.
    Handle(u64),
    /// ip_tables does not, but there is one rule for each source.
    Source(Source),
}

/// A total over counters.
#[derive(Debug, Default)]
pub struct CounterTotals {
    /// The previous readings, or `None` before the first: what a crashed instance's rules had counted
    /// does not belong to this one.
    previous: Option<HashMap<CounterKey, u64>>,
    total: u64,
}

impl CounterTotals {
    /// Adds the increase since the previous readings. The first readings are the baseline.
    pub fn update(&mut self, readings: impl Iterator<Item = (CounterKey, u64)>) {
        let current: HashMap<_, _> = readings.collect();
        if let Some(previous) = &self.previous {
            for (key, packets) in &current {
                let before = previous.get(key).copied().unwrap_or(0);
                // A counter below its previous reading was reset.
                self.total += packets.checked_sub(before).unwrap_or(*packets);
            }
        }
        self.previous = Some(current);
    }

    pub fn total(&self) -> u64 {
        self.total
    }
}

/// The packets dropped by the rules of one family, which threads share.
#[derive(Clone)]
pub struct DropCounter(Arc<Mutex<Counter>>);

struct Counter {
    /// None: each reading of the table records them.
    nftables: Option<Nftables>,
    comment: String,
    totals: CounterTotals,
}

impl DropCounter {
    /// Counts for the rules with this comment. Without nf_tables, [`Self::record`] has to be called.
    pub fn new(nftables: Option<Nftables>, comment: String) -> Self {
        let totals = CounterTotals::default();
        Self(Arc::new(Mutex::new(Counter { nftables, comment, totals })))
    }

    /// Reads the counters, if that takes no program.
    pub fn update(&self) -> Result<(), NetlinkError> {
        let Counter { nftables, comment, totals } = &mut *self.inner();
        if let Some(nftables) = nftables {
            let counters = nftables.counters(comment)?.into_iter();
            totals.update(counters.map(|(handle, packets)| (CounterKey::Handle(handle), packets)));
        }
        Ok(())
    }

    /// Adds what a reading of the table has shown.
    pub fn record(&self, readings: impl Iterator<Item = (CounterKey, u64)>) {
        self.inner().totals.update(readings);
    }

    pub fn total(&self) -> u64 {
        self.inner().totals.total()
    }

    fn inner(&self) -> MutexGuard<'_, Counter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: CounterKey = CounterKey::Handle(7);
    const NEW: CounterKey = CounterKey::Handle(8);

    #[test]
    fn total_is_right_when_counters_appear_disappear_and_are_reset() {
        let mut totals = CounterTotals::default();
        totals.update([(OLD, 1000)].into_iter());
        assert_eq!(totals.total(), 0);
        totals.update([(OLD, 1005), (NEW, 3)].into_iter());
        assert_eq!(totals.total(), 8);
        totals.update([(NEW, 4)].into_iter());
        assert_eq!(totals.total(), 9);
        // One counter was reset, the other one returns.
        totals.update([(NEW, 2), (OLD, 1)].into_iter());
        assert_eq!(totals.total(), 12);
    }
}
