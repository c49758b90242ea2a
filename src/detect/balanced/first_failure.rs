//! A source's first failure: what most have, and forged sources never more.
//!
//! Pure. Each has one place, which the latest takes; only a second failure gets a place in a table. So a
//! flood of forged sources pushes nobody out who has failed twice.

#![expect(
    clippy::cast_possible_truncation,
    reason = "hashes are cut to the bits that are needed, places fit by construction"
)]

use crate::types::clock::Moment;
use crate::types::segment::Outcome;

/// Three words for each place: they are taken from the system only where they are used.
const WORDS: usize = 3;

const OUTCOMES: [Outcome; 5] =
    [Outcome::Unknown, Outcome::Answered, Outcome::Refused, Outcome::Unanswered, Outcome::HalfOpen];

/// A failure: at a port of a host, or at a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    pub at: u32,
    pub outcome: Outcome,
    /// Nothing an operating system sends of its own: a stealth probe, a SYN made up.
    pub crafted: bool,
    pub moment: Moment,
}

/// First failures.
pub struct FirstFailures {
    words: Vec<u64>,
    places: usize,
}

impl FirstFailures {
    /// So many places: a power of two.
    pub fn new(places: usize) -> Self {
        let places = places.next_power_of_two();
        Self { words: vec![0; places * WORDS], places }
    }

    /// Where whoever has this hash has failed, if only there.
    pub fn known(&self, hash: u64) -> Option<u32> {
        let (places, _) = self.words.as_chunks::<WORDS>();
        let [tag, what, _] = places[self.at(hash)];
        (tag == hash | 1).then_some(what as u32)
    }

    /// Reads the place of this hash.
    pub fn read(&self, hash: u64) -> u64 {
        self.words[self.at(hash) * WORDS]
    }

    /// Notes a failure of whoever has this hash. If it has another already, that one is returned, and its
    /// place is free.
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

    /// It was none.
    pub fn take_back(&mut self, hash: u64, at: u32) {
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
