//! At most so many in each second.
//!
//! Pure.

use std::time::Duration;

use crate::types::clock::Moment;

const SECOND: Duration = Duration::from_secs(1);

/// The limit, and what of it is used up.
#[derive(Debug)]
pub struct Limiter {
    rate: u32,
    second: Moment,
    passed: u32,
}

impl Limiter {
    /// Lets so many pass in each second.
    pub const fn new(rate: u32) -> Self {
        Self { rate, second: Moment::from_nanos(0), passed: 0 }
    }

    /// Whether this one may pass now.
    pub fn permits(&mut self, now: Moment) -> bool {
        if now.since(self.second) >= SECOND {
            *self = Self { second: now, ..Self::new(self.rate) };
        }
        let permits = self.passed < self.rate;
        self.passed += u32::from(permits);
        permits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_to_the_rate() {
        let at = |millis: u64| Moment::from_nanos(millis * 1_000_000);
        let mut limiter = Limiter::new(100);
        assert_eq!((0..5000).filter(|_| limiter.permits(at(10_000))).count(), 100);
        assert!(!limiter.permits(at(10_999)));
        assert!(limiter.permits(at(11_000)));
    }
}
