//! The packets dropped since the start, summed over kernel counters that appear and disappear.
//!
//! Pure. A rule that is made again counts from zero; what the old rule counted must stay in the total.

use std::collections::HashMap;
use std::hash::Hash;

/// A total over counters, each identified by a key.
#[derive(Debug)]
pub struct CounterTotals<K> {
    /// The previous readings, or `None` before the first: what a crashed instance's rules had counted
    /// does not belong to this one.
    previous: Option<HashMap<K, u64>>,
    total: u64,
}

impl<K> Default for CounterTotals<K> {
    fn default() -> Self {
        Self { previous: None, total: 0 }
    }
}

impl<K: Eq + Hash> CounterTotals<K> {
    /// Adds the increase since the previous readings. The first readings are the baseline.
    pub fn update(&mut self, readings: impl IntoIterator<Item = (K, u64)>) {
        let current: HashMap<K, u64> = readings.into_iter().collect();
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

    #[test]
    fn total_is_right_when_counters_appear_disappear_and_are_reset() {
        let mut totals = CounterTotals::default();
        totals.update([("old", 1000)]);
        assert_eq!(totals.total(), 0);
        totals.update([("old", 1005), ("new", 3)]);
        assert_eq!(totals.total(), 8);
        totals.update([("new", 4)]);
        assert_eq!(totals.total(), 9);
        // One counter was reset, the other one returns.
        totals.update([("new", 2), ("old", 1)]);
        assert_eq!(totals.total(), 12);
    }
}
