//! Credit for successful connections, which offsets failures.
//!
//! Pure. Owns a fixed number of places for pairs of source and host. A pair earns credit before its first
//! failure. When two pairs share a place, the pair with more connections keeps it. Credit is limited per hour,
//! because any source can earn it with connections to an open port.

#![expect(
    clippy::cast_possible_truncation,
    reason = "hashes are cut to the bits that are needed, seconds are compared modulo their type"
)]

use crate::detect::balanced::thresholds::{CONNECTIONS_PER_FAILURE, EXCUSED_PER_HOUR};
use crate::types::Moment;

const HOUR: u32 = 3600;

/// For how many pairs of source and host connections are counted. 16 bytes each.
pub const CREDITS: usize = 1 << 16;

#[derive(Clone, Copy, Debug, Default)]
struct Credit {
    tag: u32,
    connections: u16,
    excused_in_hour: u16,
    /// The second of the latest connection.
    latest: u32,
    /// The second in which the current hour began.
    hour: u32,
}

/// The credit of each source at each host.
pub struct Credits(Vec<Credit>);

impl Credits {
    pub fn new() -> Self {
        Self(vec![Credit::default(); CREDITS])
    }

    /// Adds a connection of the source and host with this hash.
    pub fn earn(&mut self, hash: u64, now: Moment) {
        let (credit, now) = (self.credit(hash), seconds(now));
        if credit.tag != tag(hash) {
            if credit.counts(now) && credit.connections > 0 {
                credit.connections -= 1;
                return;
            }
            *credit = Credit { tag: tag(hash), hour: now, ..Credit::default() };
        } else if !credit.counts(now) {
            credit.connections = 0;
        }
        credit.connections = credit.connections.saturating_add(1);
        credit.latest = now;
    }

    /// Removes a connection that was added too early: the client has not used it.
    pub fn undo(&mut self, hash: u64) {
        let credit = self.credit(hash);
        if credit.tag == tag(hash) {
            credit.connections = credit.connections.saturating_sub(1);
        }
    }

    /// Whether the source has used the host within the last hour.
    pub fn uses(&mut self, hash: u64, now: Moment) -> bool {
        let credit = self.credit(hash);
        credit.tag == tag(hash) && credit.connections > 0 && credit.counts(seconds(now))
    }

    /// Offsets a failure. Returns false if there is not enough credit.
    pub fn excuses(&mut self, hash: u64, now: Moment) -> bool {
        let (credit, now) = (self.credit(hash), seconds(now));
        if credit.tag != tag(hash) || !credit.counts(now) {
            return false;
        }
        if now.wrapping_sub(credit.hour) >= HOUR {
            (credit.hour, credit.excused_in_hour) = (now, 0);
        }
        if credit.connections < CONNECTIONS_PER_FAILURE
            || credit.excused_in_hour >= EXCUSED_PER_HOUR
        {
            return false;
        }
        credit.connections -= CONNECTIONS_PER_FAILURE;
        credit.excused_in_hour += 1;
        true
    }

    fn credit(&mut self, hash: u64) -> &mut Credit {
        &mut self.0[(hash >> 32) as usize & (CREDITS - 1)]
    }
}

impl Credit {
    fn counts(&self, now: u32) -> bool {
        now.wrapping_sub(self.latest) < HOUR
    }
}

/// Never zero, because zero marks an unused place.
fn tag(hash: u64) -> u32 {
    hash as u32 | 1
}

fn seconds(moment: Moment) -> u32 {
    (moment.as_nanos() / 1_000_000_000) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: u64 = 0x1234_5678_9abc_def1;

    fn at(seconds: u64) -> Moment {
        Moment::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn excused_failures_are_limited_per_hour() {
        let mut credits = Credits::new();
        let mut excused = 0;
        for second in 1000..4600 {
            for _ in 0..1000 {
                credits.earn(SOURCE, at(second));
            }
            excused += (0..40).filter(|_| credits.excuses(SOURCE, at(second))).count();
        }
        assert_eq!(excused, usize::from(EXCUSED_PER_HOUR));
        for _ in 1..CONNECTIONS_PER_FAILURE {
            credits.earn(1, at(1000));
        }
        assert!(!credits.excuses(1, at(1000)), "one connection short");
    }

    #[test]
    fn credit_is_bounded_and_expires() {
        let mut credits = Credits::new();
        for _ in 0..100_000 {
            credits.earn(SOURCE, at(1000));
        }
        let burst = (0..1000).filter(|_| credits.excuses(SOURCE, at(1100))).count();
        assert_eq!(burst, usize::from(EXCUSED_PER_HOUR));
        for _ in 0..100 {
            credits.earn(SOURCE, at(1100));
        }
        assert!(!credits.excuses(SOURCE, at(1100 + 3600)));
    }

    #[test]
    fn pair_with_more_connections_keeps_the_place() {
        let mut credits = Credits::new();
        let other = SOURCE ^ 0xff00;
        for _ in 0..100 {
            credits.earn(SOURCE, at(1000));
        }
        for _ in 0..50 {
            credits.earn(other, at(1000));
        }
        assert!(credits.excuses(SOURCE, at(1000)));
        assert!(!credits.excuses(other, at(1000)));
    }
}
