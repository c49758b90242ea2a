//! Sources that have tried a single port so far. Nearly all sources never try a second one.
//!
//! Pure. Owns a ring of fixed size, first in, first out. A flood of forged sources with one probe each
//! therefore cannot evict a source that has tried several ports. An entry takes 24 bytes, because it keeps a
//! [`Tag`] instead of the source. (Two sources of a ring share a tag once in many million years of full
//! flood.) The ring needs no order of use, so it does without the links of [`crate::detect::slots`].

use std::time::Duration;

use crate::detect::index::Tag;
use crate::types::{Moment, Port};

/// A source that has tried one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    tag: Tag,
    /// When it last tried the port.
    latest: Moment,
    /// Stops counting at the maximum.
    probes: u32,
    port: Port,
    /// At least one probe was not an ordinary connection attempt.
    stealthy: bool,
    /// Cleared when the source leaves. Its place stays occupied until the ring comes round.
    waits: bool,
}

impl Candidate {
    /// A source with its first probe.
    pub fn new(tag: Tag, port: Port, stealthy: bool, latest: Moment) -> Self {
        Self { tag, latest, probes: 1, port, stealthy, waits: true }
    }

    pub fn tag(&self) -> Tag {
        self.tag
    }

    pub fn latest(&self) -> Moment {
        self.latest
    }

    pub fn probes(&self) -> u32 {
        self.probes
    }

    pub fn port(&self) -> Port {
        self.port
    }

    pub fn is_stealthy(&self) -> bool {
        self.stealthy
    }

    /// Counts another probe of the same port. A source that was silent for a whole span starts over.
    pub fn count(&mut self, stealthy: bool, now: Moment, span: Duration) {
        self.stealthy &= !now.is_past(self.latest, span);
        self.stealthy |= stealthy;
        self.latest = now;
        self.probes = self.probes.saturating_add(1);
    }
}

/// The ring.
pub struct Candidates {
    ring: Vec<Candidate>,
    capacity: usize,
    /// The place of the next entry once the ring is full, which is the place of the oldest.
    next: usize,
    waiting: usize,
}

impl Candidates {
    /// A ring of at most `capacity` sources. The kernel provides the memory when it is first used.
    pub fn new(capacity: usize) -> Self {
        Self { ring: Vec::with_capacity(capacity), capacity, next: 0, waiting: 0 }
    }

    /// How many sources wait here.
    pub fn len(&self) -> usize {
        self.waiting
    }

    /// Reads a place, so that it is in the cache for a later lookup.
    pub fn touch(&self, at: u32) -> u64 {
        self.ring.get(at as usize).map_or(0, |candidate| candidate.tag)
    }

    /// The sources that the next `new` additions evict.
    pub fn next_to_evict(&self, new: usize) -> impl Iterator<Item = &Candidate> {
        let full = self.ring.len() == self.capacity;
        let next = if full { self.ring.get(self.next..).unwrap_or_default() } else { &[] };
        next.iter().take(new)
    }

    pub fn get(&self, at: u32) -> Option<&Candidate> {
        self.ring.get(at as usize).filter(|candidate| candidate.waits)
    }

    pub fn get_mut(&mut self, at: u32) -> Option<&mut Candidate> {
        self.ring.get_mut(at as usize).filter(|candidate| candidate.waits)
    }

    /// Adds a source and returns its place. In a full ring that is the place of the oldest source, which is
    /// returned unless it has left before.
    pub fn add(&mut self, candidate: Candidate) -> (u32, Option<Candidate>) {
        self.waiting += 1;
        let mut oldest = None;
        let at = if self.ring.len() < self.capacity {
            self.ring.push(candidate);
            self.ring.len() - 1
        } else {
            let at = self.next;
            self.next = if at + 1 == self.capacity { 0 } else { at + 1 };
            oldest = Some(std::mem::replace(&mut self.ring[at], candidate)).filter(|old| old.waits);
            self.waiting -= usize::from(oldest.is_some());
            at
        };
        // Configuration limits the capacity far below.
        (u32::try_from(at).unwrap_or(u32::MAX), oldest)
    }

    /// Removes a source that has tried a second port, or that the detector must forget.
    pub fn remove(&mut self, at: u32) {
        if let Some(candidate) = self.get_mut(at) {
            candidate.waits = false;
            self.waiting -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    fn candidate(tag: Tag) -> Candidate {
        Candidate::new(tag, Port(80), false, Moment::default())
    }

    #[test]
    fn new_source_takes_the_place_of_the_oldest() {
        let mut candidates = Candidates::new(2);
        assert_eq!(candidates.add(candidate(1)), (0, None));
        assert_eq!(candidates.add(candidate(2)), (1, None));
        assert_eq!(candidates.add(candidate(3)), (0, Some(candidate(1))));
        candidates.remove(1);
        assert_eq!((candidates.len(), candidates.get(1)), (1, None));
        assert_eq!(candidates.add(candidate(4)), (1, None), "2 was removed before");
        assert_eq!(candidates.len(), 2);
    }

    proptest! {
        /// Compares the ring with a queue.
        #[test]
        fn ring_equals_a_queue(
            capacity in 1..20usize,
            steps in proptest::collection::vec((0..3u8, 0..40usize), 1..300),
        ) {
            let mut candidates = Candidates::new(capacity);
            // Places in the order of use. A place stays occupied when its source is removed.
            let mut queue: VecDeque<(u32, Option<Tag>)> = VecDeque::new();
            for (tag, (step, which)) in (0..).zip(steps) {
                if step > 0 {
                    let expected = (queue.len() == capacity).then(|| queue.pop_front()).flatten();
                    let (at, gone) = candidates.add(candidate(tag));
                    prop_assert_eq!(gone.map(|gone| gone.tag), expected.and_then(|old| old.1));
                    if let Some((place, _)) = expected {
                        prop_assert_eq!(at, place);
                    }
                    queue.push_back((at, Some(tag)));
                } else if let Some((at, waits)) = queue.get_mut(which) {
                    candidates.remove(*at);
                    *waits = None;
                }
                prop_assert_eq!(candidates.len(), queue.iter().filter(|place| place.1.is_some()).count());
                for (at, waits) in &queue {
                    prop_assert_eq!(candidates.get(*at).map(|candidate| candidate.tag), *waits);
                }
            }
        }
    }
}
