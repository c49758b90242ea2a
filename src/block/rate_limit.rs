//! The limit of new blocks per minute (`block.max_per_minute`), a guard against forged sources: a single
//! SYN does not show whether its source is real, so an attacker could fill the kernel's sets with any
//! addresses.
//!
//! Pure. The limit of the log and the bus (`types/rate_limit.rs`) does not fit: its windows are fixed
//! seconds, and it counts with the question. This one must hold for every minute, and a block counts only
//! when the kernel has accepted it.

use std::collections::VecDeque;
use std::time::Duration;

use crate::types::Moment;

const MINUTE: Duration = Duration::from_secs(60);

pub struct BlockRateLimit {
    limit: u32,
    /// The blocks of the last minute.
    recent: VecDeque<Moment>,
}

impl BlockRateLimit {
    pub fn new(limit: u32) -> Self {
        Self { limit, recent: VecDeque::new() }
    }

    /// Changes the limit. The blocks of the last minute still count.
    pub const fn set_limit(&mut self, limit: u32) {
        self.limit = limit;
    }

    pub const fn limit(&self) -> u32 {
        self.limit
    }

    /// Whether one more block may be made now.
    pub fn permits(&mut self, now: Moment) -> bool {
        while self.recent.front().is_some_and(|earliest| now.since(*earliest) >= MINUTE) {
            self.recent.pop_front();
        }
        self.recent.len() < self.limit as usize
    }

    /// Counts a block that was made.
    pub fn count(&mut self, now: Moment) {
        self.recent.push_back(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_minute_has_at_most_the_limit() {
        let at = |seconds: u64| Moment::from_nanos(seconds * 1_000_000_000);
        let mut limit = BlockRateLimit::new(2);
        for second in [0, 59] {
            assert!(limit.permits(at(second)));
            limit.count(at(second));
        }
        assert!(!limit.permits(at(59)));
        assert!(limit.permits(at(60)), "the first block is a minute old");
        limit.count(at(60));
        assert!(!limit.permits(at(118)));
        assert!(limit.permits(at(119)));
    }
}
