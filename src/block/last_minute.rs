//! The events of the last minute, counted.
//!
//! Pure. The limit of the log and the bus (`types/rate_limit.rs`) does not fit blocks and repairs: its
//! windows are fixed seconds, and it counts with the question.

use std::collections::VecDeque;
use std::time::Duration;

use crate::types::Moment;

const MINUTE: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub struct LastMinute(VecDeque<Moment>);

impl LastMinute {
    /// Adds an event.
    pub fn add(&mut self, now: Moment) {
        self.0.push_back(now);
    }

    /// Returns how many events there were in the minute before now.
    pub fn count(&mut self, now: Moment) -> usize {
        while self.0.front().is_some_and(|earliest| now.since(*earliest) >= MINUTE) {
            self.0.pop_front();
        }
        self.0.len()
    }

    /// The latest event that the last count has included, or that came after it.
    pub fn latest(&self) -> Option<Moment> {
        self.0.back().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_counts_for_a_minute() {
        let at = |seconds: u64| Moment::from_nanos(seconds * 1_000_000_000);
        let mut minute = LastMinute::default();
        for (second, count) in [(0, 0), (59, 1), (60, 1)] {
            assert_eq!(minute.count(at(second)), count, "{second}");
            minute.add(at(second));
        }
        assert_eq!(minute.count(at(118)), 2, "the first event is a minute old");
        assert_eq!(minute.count(at(119)), 1);
        assert_eq!((minute.count(at(120)), minute.latest()), (0, None));
    }
}
