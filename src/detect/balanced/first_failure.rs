//! The first failure of each source. Most sources, and all forged ones, have no second one.
//!
//! Pure. Owns a fixed number of places; a later source with the same place overwrites it. Only a second failure
//! takes an entry in a table, so a flood of forged sources cannot evict a source that has failed twice.

#![expect(
    clippy::cast_possible_truncation,
    reason = "hashes are cut to the bits that are needed, times are counted modulo their type"
)]

use std::time::Duration;

use crate::types::{Moment, Outcome};

/// How much of a hash identifies a host.
pub const HOST: u32 = (1 << 24) - 1;

/// A failure at a port of a host, or at a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The port, or the hash of the host: at most 24 bits.
    pub at: u32,
    pub outcome: Outcome,
    /// The segment was a stealth probe or a crafted SYN.
    pub crafted: bool,
    /// The source uses the port although it seems to fail.
    pub excused: bool,
    pub moment: Moment,
}

/// The first failures, in 12 bytes each: who, what, and when in milliseconds. Zeroed memory costs nothing until
/// it is used, and words are zeroed by the allocator.
pub struct FirstFailures(Vec<[u32; 3]>);

impl FirstFailures {
    /// So many places, rounded up to a power of two.
    pub fn new(places: usize) -> Self {
        Self(vec![[0; 3]; places.next_power_of_two()])
    }

    /// Where the source with this hash has failed, if it has failed once.
    pub fn known(&self, hash: u64) -> Option<u32> {
        let [known, what, _] = self.0[self.at(hash)];
        (known == tag(hash)).then_some(what & HOST)
    }

    /// The failure of the source with this hash, if it has failed once.
    pub fn get(&self, hash: u64, now: Moment) -> Option<Failure> {
        let [known, what, then] = self.0[self.at(hash)];
        (known == tag(hash)).then(|| failure_of(what, then, now))
    }

    /// Reads the place of a hash, so that it is in the cache for a later lookup.
    pub fn touch(&self, hash: u64) -> u64 {
        self.0[self.at(hash)][0].into()
    }

    /// Takes note of a failure of the source with this hash. If there is another one already, returns it and
    /// frees its place.
    pub fn note(&mut self, hash: u64, failure: Failure) -> Option<Failure> {
        let at = self.at(hash);
        let place = &mut self.0[at];
        let [known, what, then] = *place;
        if known == tag(hash) && what & HOST != failure.at {
            place[0] = 0;
            return Some(failure_of(what, then, failure.moment));
        }
        let Failure { crafted, excused, .. } = failure;
        let flags = failure.outcome as u32 | u32::from(crafted) << 3 | u32::from(excused) << 4;
        *place = [tag(hash), failure.at & HOST | flags << 24, millis(failure.moment)];
        None
    }

    /// Takes note that the source uses the port at which it seems to fail.
    pub fn excuse(&mut self, hash: u64, at: u32) {
        if self.known(hash) == Some(at) {
            let place = self.at(hash);
            self.0[place][1] |= 1 << 28;
        }
    }

    /// Removes a failure that was none.
    pub fn undo(&mut self, hash: u64, at: u32) {
        if self.known(hash) == Some(at) {
            let place = self.at(hash);
            self.0[place][0] = 0;
        }
    }

    fn at(&self, hash: u64) -> usize {
        hash as usize & (self.0.len() - 1)
    }
}

fn failure_of(what: u32, then: u32, later: Moment) -> Failure {
    Failure {
        at: what & HOST,
        outcome: Outcome::ALL[(what >> 24) as usize & 7],
        crafted: what >> 27 & 1 == 1,
        excused: what >> 28 & 1 == 1,
        moment: moment_of(then, later),
    }
}

/// Never zero, because zero marks an unused place.
fn tag(hash: u64) -> u32 {
    (hash >> 32) as u32 | 1
}

/// The moment of a first failure, given that of the second one. That may be a little earlier, because a missing
/// reply is known later than a refusal.
fn moment_of(first: u32, second: Moment) -> Moment {
    let age = millis(second).wrapping_sub(first);
    if age < u32::MAX / 2 {
        second.before(Duration::from_millis(age.into()))
    } else {
        second + Duration::from_millis(age.wrapping_neg().into())
    }
}

/// Wraps around after seven weeks.
fn millis(moment: Moment) -> u32 {
    (moment.as_nanos() / 1_000_000) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_failure_returns_the_first_with_its_time() {
        let mut first = FirstFailures::new(8);
        let at = |at, seconds: u64| Failure {
            at,
            outcome: Outcome::HalfOpen,
            crafted: true,
            excused: false,
            moment: Moment::from_nanos(seconds * 1_000_000_000),
        };
        assert_eq!(first.note(7, at(22, 1_700_000_000)), None);
        assert_eq!(first.note(7, at(22, 1_700_000_001)), None, "the same port");
        assert_eq!(first.known(7), Some(22));
        assert_eq!(first.note(7, at(23, 1_700_086_000)), Some(at(22, 1_700_000_001)));
        assert_eq!(first.note(7, at(24, 1_700_086_000)), None, "the place is free again");
    }
}
