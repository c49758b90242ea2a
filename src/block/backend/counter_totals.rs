//! The packets dropped since the start, summed over kernel counters that appear and disappear.
//!
//! Pure. A rule that is made again counts from zero; what the old rule counted must stay in the total.

use std::collections::HashMap;

use crate::block::backend::ruleset::Source;

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
