//! What connections that came about are good for: one failure in so many is forgiven.
//!
//! Pure. Counted before anybody has failed, of each source and host, in as many places as there are; who has
//! connected more often keeps his. Bounded by the minute and the hour: a balance without bounds could be
//! filled by anybody who makes connections to an open port.

#![expect(
    clippy::cast_possible_truncation,
    reason = "hashes are cut to the bits that are needed, seconds are compared modulo their type"
)]

use crate::detect::balanced::thresholds::{
    CONNECTIONS_FOR_A_FAILURE, CONNECTIONS_KEPT, CONNECTIONS_KEPT_FOR, CREDITS, FORGIVEN_A_MINUTE,
    FORGIVEN_AN_HOUR,
};
use crate::types::clock::Moment;
use crate::types::segment::Port;

const HOUR: u32 = 3600;
const MINUTE: u32 = 60;

#[derive(Clone, Copy, Debug, Default)]
struct Credit {
    tag: u32,
    connections: u16,
    /// The port of the latest on which nothing was said.
    silent: u16,
    forgiven: u16,
    forgiven_in_hour: u16,
    /// In seconds: the latest connection, and since when it is counted what was forgiven.
    latest: u32,
    minute: u32,
    hour: u32,
}

/// The connections of each source to each host.
pub struct Credits(Vec<Credit>);

impl Credits {
    pub fn new() -> Self {
        Self(vec![Credit::default(); CREDITS])
    }

    /// A connection of the source and host of this hash came about, or seems to.
    pub fn earn(&mut self, hash: u64, now: Moment) {
        let (credit, now) = (self.place(hash), seconds(now));
        if credit.tag != tag(hash) {
            if credit.counts(now) && credit.connections > 0 {
                credit.connections -= 1;
                return;
            }
            *credit = Credit { tag: tag(hash), minute: now, hour: now, ..Credit::default() };
        } else if !credit.counts(now) {
            credit.connections = 0;
        }
        credit.connections = (credit.connections + 1).min(CONNECTIONS_KEPT);
        credit.latest = now;
    }

    /// One of those counted was none.
    pub fn take_back(&mut self, hash: u64) {
        let credit = self.place(hash);
        if credit.tag == tag(hash) {
            credit.connections = credit.connections.saturating_sub(1);
        }
    }

    /// On one of them nothing was said. A monitoring host does so on many ports; on one port over and over
    /// it is no use to anybody, but to be forgiven.
    pub fn silent(&mut self, hash: u64, port: Port) {
        let credit = self.place(hash);
        if credit.tag == tag(hash) && std::mem::replace(&mut credit.silent, port.0) == port.0 {
            credit.connections = credit.connections.saturating_sub(1);
        }
    }

    /// Whether a failure of theirs is forgiven.
    pub fn forgives(&mut self, hash: u64, now: Moment) -> bool {
        let (credit, now) = (self.place(hash), seconds(now));
        if credit.tag != tag(hash) || !credit.counts(now) {
            return false;
        }
        if now.wrapping_sub(credit.minute) >= MINUTE {
            (credit.minute, credit.forgiven) = (now, 0);
        }
        if now.wrapping_sub(credit.hour) >= HOUR {
            (credit.hour, credit.forgiven_in_hour) = (now, 0);
        }
        if credit.connections < CONNECTIONS_FOR_A_FAILURE
            || credit.forgiven >= FORGIVEN_A_MINUTE
            || credit.forgiven_in_hour >= FORGIVEN_AN_HOUR
        {
            return false;
        }
        credit.connections -= CONNECTIONS_FOR_A_FAILURE;
        credit.forgiven += 1;
        credit.forgiven_in_hour += 1;
        true
    }

    fn place(&mut self, hash: u64) -> &mut Credit {
        &mut self.0[(hash >> 32) as usize & (CREDITS - 1)]
    }
}

impl Credit {
    fn counts(&self, now: u32) -> bool {
        u64::from(now.wrapping_sub(self.latest)) < CONNECTIONS_KEPT_FOR.as_secs()
    }
}

/// Never zero: that is nobody's.
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
    fn one_in_so_many_is_forgiven_and_no_more_than_an_hour_allows() {
        let mut credits = Credits::new();
        let (mut forgiven, mut in_a_minute) = (0, 0);
        for second in 1000..4600 {
            for _ in 0..1000 {
                credits.earn(SOURCE, at(second));
            }
            let now = (0..40).filter(|_| credits.forgives(SOURCE, at(second))).count();
            forgiven += now;
            in_a_minute += if second < 1060 { now } else { 0 };
        }
        assert_eq!(in_a_minute, usize::from(FORGIVEN_A_MINUTE));
        assert_eq!(forgiven, usize::from(FORGIVEN_AN_HOUR));
        for _ in 1..CONNECTIONS_FOR_A_FAILURE {
            credits.earn(1, at(1000));
        }
        assert!(!credits.forgives(1, at(1000)), "one connection is missing");
    }

    #[test]
    fn what_is_kept_is_bounded_and_forgotten() {
        let mut credits = Credits::new();
        for _ in 0..100_000 {
            credits.earn(SOURCE, at(1000));
        }
        let burst = (0..1000).filter(|_| credits.forgives(SOURCE, at(1100))).count();
        assert_eq!(burst, usize::from(CONNECTIONS_KEPT / CONNECTIONS_FOR_A_FAILURE));
        for _ in 0..100 {
            credits.earn(SOURCE, at(1100));
        }
        assert!(!credits.forgives(SOURCE, at(1100 + 3600)));
    }

    #[test]
    fn who_connects_more_often_keeps_the_place() {
        let mut credits = Credits::new();
        let other = SOURCE ^ 0xff00;
        for _ in 0..100 {
            credits.earn(SOURCE, at(1000));
        }
        for _ in 0..50 {
            credits.earn(other, at(1000));
        }
        assert!(credits.forgives(SOURCE, at(1000)));
        assert!(!credits.forgives(other, at(1000)));
    }
}
