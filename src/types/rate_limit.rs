//! A limit of events per second that counts what it suppresses.
//!
//! Pure: the caller passes the time. Windows are fixed: each begins with the first call after the last
//! one has passed, so that an event costs one comparison and no queue of times.

use std::time::Duration;

use crate::types::Moment;

const SECOND: Duration = Duration::from_secs(1);

/// At most so many events per second.
#[derive(Clone, Debug)]
pub struct RateLimit {
    limit: u32,
    /// When the current second began.
    began: Moment,
    allowed: u32,
    suppressed: u64,
    /// When the second began in which the first of the suppressed events came.
    suppressed_since: Moment,
}

/// What a limit has suppressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suppression {
    pub count: u64,
    /// The time in which the suppressed events came.
    pub span: Duration,
}

impl RateLimit {
    /// Allows at most `limit` events per second.
    #[must_use]
    pub fn per_second(limit: u32) -> Self {
        let start = Moment::default();
        Self { limit, began: start, allowed: 0, suppressed: 0, suppressed_since: start }
    }

    /// Returns whether one more event is allowed, and counts it if not.
    pub fn allow(&mut self, now: Moment) -> bool {
        self.begin_second(now);
        let is_allowed = self.allowed < self.limit;
        if is_allowed {
            self.allowed += 1;
        } else {
            self.suppress_now(1);
        }
        is_allowed
    }

    /// Counts events that are suppressed for another reason.
    pub fn suppress(&mut self, count: u64) {
        if count > 0 {
            self.suppress_now(count);
        }
    }

    /// Returns what was suppressed, once the second in which that happened has passed.
    pub fn take_suppressed(&mut self, now: Moment) -> Option<Suppression> {
        self.begin_second(now);
        let is_over = self.began != self.suppressed_since;
        if is_over { self.finish(now) } else { None }
    }

    /// Returns what was suppressed, and begins a new second.
    pub fn finish(&mut self, now: Moment) -> Option<Suppression> {
        let count = std::mem::take(&mut self.suppressed);
        let span = now.since(self.suppressed_since);
        (self.began, self.allowed, self.suppressed_since) = (now, 0, now);
        (count > 0).then_some(Suppression { count, span })
    }

    fn begin_second(&mut self, now: Moment) {
        if now.is_past(self.began, SECOND) {
            (self.began, self.allowed) = (now, 0);
            if self.suppressed == 0 {
                self.suppressed_since = now;
            }
        }
    }

    fn suppress_now(&mut self, count: u64) {
        if self.suppressed == 0 {
            self.suppressed_since = self.began;
        }
        self.suppressed = self.suppressed.saturating_add(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    fn suppression(count: u64, millis: u64) -> Suppression {
        Suppression { count, span: Duration::from_millis(millis) }
    }

    #[test]
    fn events_above_the_limit_are_suppressed_and_counted() {
        let mut limit = RateLimit::per_second(2);
        let allowed = [5_000, 5_000, 5_100, 5_900].map(|millis| limit.allow(at(millis)));
        assert_eq!(allowed, [true, true, false, false]);
        assert_eq!(limit.take_suppressed(at(5_999)), None, "the second is not over");
        assert_eq!(limit.take_suppressed(at(6_100)), Some(suppression(2, 1_100)));
        assert!(limit.allow(at(6_200)), "a new second began");
        assert_eq!(limit.take_suppressed(at(7_200)), None, "nothing was suppressed");
    }

    #[test]
    fn suppressed_events_are_not_lost_when_the_next_second_begins() {
        let mut limit = RateLimit::per_second(1);
        assert!(limit.allow(at(5_000)));
        assert!(!limit.allow(at(5_500)));
        assert!(limit.allow(at(6_500)), "a new second began");
        assert!(!limit.allow(at(6_600)));
        assert_eq!(limit.take_suppressed(at(6_700)), Some(suppression(2, 1_700)));
        assert_eq!(limit.take_suppressed(at(9_000)), None);
    }

    #[test]
    fn events_suppressed_for_another_reason_are_counted() {
        let mut limit = RateLimit::per_second(1);
        assert_eq!(limit.take_suppressed(at(5_000)), None);
        limit.suppress(0);
        limit.suppress(7);
        assert_eq!(limit.take_suppressed(at(5_500)), None);
        assert_eq!(limit.take_suppressed(at(6_000)), Some(suppression(7, 1_000)));
    }

    #[test]
    fn finish_returns_what_the_current_second_has_suppressed() {
        let mut limit = RateLimit::per_second(1);
        assert!(limit.allow(at(5_000)));
        assert!(!limit.allow(at(5_100)));
        assert_eq!(limit.finish(at(5_300)), Some(suppression(1, 300)));
        assert_eq!(limit.finish(at(5_400)), None);
        assert!(limit.allow(at(5_450)));
    }
}
