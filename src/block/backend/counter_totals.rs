//! How many packets were dropped, ever, though the counters they are read from come and go.
//!
//! Pure. A rule that is made anew counts from zero: what it had counted before must not get lost.

use std::collections::HashMap;
use std::hash::Hash;

/// The sum over counters that come and go, each known by a key of its own.
#[derive(Debug)]
pub struct CounterTotals<K> {
    last: HashMap<K, u64>,
    total: u64,
}

impl<K: Eq + Hash> CounterTotals<K> {
    /// Counts from these readings on.
    pub fn starting_at(readings: impl IntoIterator<Item = (K, u64)>) -> Self {
        Self { last: readings.into_iter().collect(), total: 0 }
    }

    /// Adds what has come since the last readings.
    pub fn read(&mut self, readings: impl IntoIterator<Item = (K, u64)>) {
        let mut now = HashMap::new();
        for (key, packets) in readings {
            let before = self.last.get(&key).copied().unwrap_or(0);
            // One that has fallen was set to zero.
            self.total += packets.checked_sub(before).unwrap_or(packets);
            now.insert(key, packets);
        }
        self.last = now;
    }

    /// The sum.
    pub fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_or_counted_twice_when_counters_come_and_go() {
        let mut tally = CounterTotals::starting_at([("old", 1000)]);
        tally.read([("old", 1005), ("new", 3)]);
        assert_eq!(tally.total(), 8);
        tally.read([("new", 4)]);
        assert_eq!(tally.total(), 9);
        // Set to zero by somebody, and one that comes back.
        tally.read([("new", 2), ("old", 1)]);
        assert_eq!(tally.total(), 12);
    }
}
