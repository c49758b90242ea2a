//! The spoofing guard: how many new blocks a minute a flood can buy.
//!
//! Pure. Forged sources cannot be told from real ones by a single SYN each, so that somebody could
//! fill the kernel's sets with addresses of his choice; this bounds how fast.

use std::collections::VecDeque;
use std::time::Duration;

use crate::types::clock::Moment;

const MINUTE: Duration = Duration::from_secs(60);

/// The blocks of the last minute.
pub struct BlockRateLimit {
    limit: u32,
    recent: VecDeque<Moment>,
}

impl BlockRateLimit {
    /// At most `limit` blocks in any minute.
    pub fn new(limit: u32) -> Self {
        Self { limit, recent: VecDeque::new() }
    }

    /// Another limit from now on. The blocks of the last minute count as before.
    pub const fn set_limit(&mut self, limit: u32) {
        self.limit = limit;
    }

    /// The limit.
    pub const fn limit(&self) -> u32 {
        self.limit
    }

    /// Whether one more may be added now.
    pub fn permits(&mut self, now: Moment) -> bool {
        while self.recent.front().is_some_and(|earliest| now.since(*earliest) >= MINUTE) {
            self.recent.pop_front();
        }
        self.recent.len() < self.limit as usize
    }

    /// Counts one.
    pub fn count(&mut self, now: Moment) {
        self.recent.push_back(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_limit_in_any_minute() {
        let at = |seconds: u64| Moment::from_nanos(seconds * 1_000_000_000);
        let mut guard = BlockRateLimit::new(2);
        for second in [0, 59] {
            assert!(guard.permits(at(second)));
            guard.count(at(second));
        }
        assert!(!guard.permits(at(59)));
        assert!(guard.permits(at(60)), "the first is a minute old");
        guard.count(at(60));
        assert!(!guard.permits(at(118)));
        assert!(guard.permits(at(119)));
    }
}
