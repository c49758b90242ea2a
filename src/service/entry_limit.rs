//! Which connections, and which scans, are listed one by one in the journal, and how many are only
//! counted.
//!
//! Pure. A flood must not buy the journal's time: at most so many entries a second, the rest as one
//! number.

use std::time::Duration;

use crate::types::clock::Moment;

const SECOND: Duration = Duration::from_secs(1);

/// The limit and what it has kept back.
pub struct EntryLimit {
    /// Entries a second; none: no entries at all, and no summary.
    rate: Option<u32>,
    second: Moment,
    listed: u32,
    left_out: u64,
}

impl EntryLimit {
    /// At most `rate` entries a second; without a rate, none.
    pub fn new(rate: Option<u32>) -> Self {
        Self { rate, second: Moment::default(), listed: 0, left_out: 0 }
    }

    /// Whether one more is listed. Call [`Self::summary`] first.
    pub fn lists(&mut self) -> bool {
        let Some(rate) = self.rate else { return false };
        if self.listed < rate {
            self.listed += 1;
            return true;
        }
        self.left_out += 1;
        false
    }

    /// So many more are not listed, whatever the rate.
    pub fn leave_out(&mut self, count: u64) {
        self.left_out += count;
    }

    /// Begins a new second when the last is over: how many were left out in it, and its length.
    pub fn summary(&mut self, now: Moment) -> Option<(u64, Duration)> {
        if now.since(self.second) < SECOND { None } else { self.rest(now) }
    }

    /// Begins a new second in any case.
    pub fn rest(&mut self, now: Moment) -> Option<(u64, Duration)> {
        let length = now.since(self.second);
        self.second = now;
        self.listed = 0;
        let left_out = std::mem::take(&mut self.left_out);
        (left_out > 0).then_some((left_out, length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn above_the_rate_they_are_counted_and_summed_up() {
        let mut limit = EntryLimit::new(Some(2));
        assert_eq!(limit.summary(at(5_000)), None);
        assert_eq!(
            [limit.lists(), limit.lists(), limit.lists(), limit.lists()],
            [true, true, false, false]
        );
        assert_eq!(limit.summary(at(5_900)), None);
        assert_eq!(limit.summary(at(6_100)), Some((2, Duration::from_millis(1100))));
        assert!(limit.lists());
        assert_eq!(limit.summary(at(7_200)), None, "nothing was left out");
    }

    #[test]
    fn switched_off_it_lists_and_sums_up_nothing() {
        let mut limit = EntryLimit::new(None);
        limit.summary(at(5_000));
        assert!(!limit.lists());
        assert_eq!(limit.summary(at(7_000)), None);
    }
}
