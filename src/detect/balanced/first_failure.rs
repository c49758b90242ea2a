//! The first failure of each source. Most sources, and all forged ones, have no second one.
//!
//! Pure. Owns a fixed number of places; a later source with the same place overwrites it. Only a second failure
//! takes an entry in a table, so a flood of forged sources cannot evict a source that has failed twice.

#![expect(
    clippy::cast_possible_truncation,
    reason = "hashes are cut to the bits that are needed, and places fit by construction"
)]

use crate::types::{Moment, Outcome};

/// Words per place. Zeroed memory costs nothing until it is used, and words are zeroed by the allocator.
const WORDS: usize = 3;

const OUTCOMES: [Outcome; 5] =
    [Outcome::Unknown, Outcome::Answered, Outcome::Refused, Outcome::Unanswered, Outcome::HalfOpen];

/// A failure at a port of a host, or at a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The port, or the hash of the host.
    pub at: u32,
    pub outcome: Outcome,
    /// The segment was a stealth probe or a crafted SYN.
    pub crafted: bool,
    pub moment: Moment,
}

/// The first failures.
pub struct FirstFailures {
    words: Vec<u64>,
    places: usize,
}

impl FirstFailures {
    /// So many places, rounded up to a power of two.
    pub fn new(places: usize) -> Self {
        let places = places.next_power_of_two();
        Self { words: vec![0; places * WORDS], places }
    }

    /// Where the source with this hash has failed, if it has failed once.
    pub fn known(&self, hash: u64) -> Option<u32> {
        let (places, _) = self.words.as_chunks::<WORDS>();
        let [tag, what, _] = places[self.at(hash)];
        (tag == hash | 1).then_some(what as u32)
    }

    /// Reads the place of a hash, so that it is in the cache for a later lookup.
    pub fn touch(&self, hash: u64) -> u64 {
        self.words[self.at(hash) * WORDS]
    }

    /// Takes note of a failure of the source with this hash. If there is another one already, returns it and
    /// frees its place.
    pub fn note(&mut self, hash: u64, failure: Failure) -> Option<Failure> {
        let tag = hash | 1;
        let place = self.place(hash);
        let [known_tag, what, moment] = place;
        if *known_tag == tag && *what as u32 != failure.at {
            *known_tag = 0;
            return Some(Failure {
                at: *what as u32,
                outcome: OUTCOMES[(*what >> 32) as usize & 7],
                crafted: *what >> 40 & 1 == 1,
                moment: Moment::from_nanos(*moment),
            });
        }
        let outcome = OUTCOMES.iter().position(|o| *o == failure.outcome).unwrap_or(0) as u64;
        *known_tag = tag;
        *what = u64::from(failure.at) | outcome << 32 | u64::from(failure.crafted) << 40;
        *moment = failure.moment.as_nanos();
        None
    }

    /// Removes a failure that was none.
    pub fn undo(&mut self, hash: u64, at: u32) {
        let [tag, what, _] = self.place(hash);
        if *tag == hash | 1 && *what as u32 == at {
            *tag = 0;
        }
    }

    fn place(&mut self, hash: u64) -> &mut [u64; WORDS] {
        let at = self.at(hash);
        let (places, _) = self.words.as_chunks_mut::<WORDS>();
        &mut places[at]
    }

    fn at(&self, hash: u64) -> usize {
        (hash >> 20) as usize & (self.places - 1)
    }
}
