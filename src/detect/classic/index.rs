//! Where each source is remembered: from the hash of a source to its place.
//!
//! Pure. A slot is eight bytes and at most half of them are taken, so that what is looked for lies nearly
//! always in the one cache line its hash points to. Collisions go to the next slot (linear probing);
//! removal closes the gap, so that nothing is left to be skipped for ever. Half of the hash is in the
//! slot: neither to grow nor to remove needs the sources themselves.

/// A source's hash, keyed anew in each process: nobody outside can choose sources that collide.
pub type Tag = u64;

/// Where a source is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Among the first contacts.
    FirstContact(u32),
    /// Among those that have tried several ports.
    SeveralPorts(u32),
}

/// The index.
pub struct Index {
    /// Half of the tag above, the place below; zero where nothing is. A power of two.
    slots: Vec<u64>,
    taken: usize,
}

impl Index {
    /// An empty index.
    pub fn new() -> Self {
        Self { slots: vec![0; FEWEST_SLOTS], taken: 0 }
    }

    /// Reads the slot where a source would be, to have it at hand later.
    pub fn touch(&self, tag: Tag) -> u64 {
        self.slots[self.home(half(tag))]
    }

    /// The place of a source, which `is_there` confirms: of the tag itself only half is known here.
    pub fn find(&self, tag: Tag, is_there: impl Fn(Place) -> bool) -> Option<Place> {
        let mut at = self.home(half(tag));
        loop {
            let slot = self.slots[at];
            if slot == 0 {
                return None;
            }
            if slot & HALF == half(tag) && is_there(place_in(slot)) {
                return Some(place_in(slot));
            }
            at = self.after(at);
        }
    }

    /// Where a source is, or perhaps another with the same half of its hash.
    pub fn candidate(&self, tag: Tag) -> Option<Place> {
        self.find(tag, |_| true)
    }

    /// Enters a source that is not there.
    pub fn insert(&mut self, tag: Tag, place: Place) {
        if self.taken >= self.slots.len() / 2 {
            let larger = vec![0; self.slots.len() * 2];
            for slot in std::mem::replace(&mut self.slots, larger) {
                if slot != 0 {
                    self.put(slot);
                }
            }
        }
        self.taken += 1;
        self.put(slot_of(tag, place));
    }

    fn put(&mut self, slot: u64) {
        let mut at = self.home(slot & HALF);
        while self.slots[at] != 0 {
            at = self.after(at);
        }
        self.slots[at] = slot;
    }

    /// A source has moved.
    pub fn replace(&mut self, tag: Tag, from: Place, to: Place) {
        if let Some(at) = self.position(tag, from) {
            self.slots[at] = slot_of(tag, to);
        }
    }

    /// Removes a source.
    pub fn remove(&mut self, tag: Tag, place: Place) {
        let Some(mut gap) = self.position(tag, place) else { return };
        self.taken -= 1;
        // Whoever was turned away from the gap may move into it (Knuth, TAOCP 3, 6.4, algorithm R).
        let mut at = gap;
        loop {
            at = self.after(at);
            let slot = self.slots[at];
            if slot == 0 {
                break;
            }
            if self.distance(self.home(slot & HALF), at) >= self.distance(gap, at) {
                self.slots[gap] = slot;
                gap = at;
            }
        }
        self.slots[gap] = 0;
    }

    fn position(&self, tag: Tag, place: Place) -> Option<usize> {
        let slot = slot_of(tag, place);
        let mut at = self.home(half(tag));
        while self.slots[at] != slot {
            if self.slots[at] == 0 {
                return None;
            }
            at = self.after(at);
        }
        Some(at)
    }

    /// The slot a source with this half of its tag would like to have.
    fn home(&self, half: u64) -> usize {
        (half >> 32) as usize & (self.slots.len() - 1)
    }

    fn after(&self, at: usize) -> usize {
        (at + 1) & (self.slots.len() - 1)
    }

    fn distance(&self, from: usize, to: usize) -> usize {
        to.wrapping_sub(from) & (self.slots.len() - 1)
    }
}

/// Half a page, to begin with.
const FEWEST_SLOTS: usize = 512;

/// The bits of a slot that hold half of a tag.
const HALF: u64 = !0 << 32;

fn half(tag: Tag) -> u64 {
    tag & HALF
}

fn slot_of(tag: Tag, place: Place) -> u64 {
    // Never zero, and never more than 32 bits: there are at most 2^26 places of either kind.
    let (number, kind) = match place {
        Place::FirstContact(number) => (number, 2),
        Place::SeveralPorts(number) => (number, 3),
    };
    half(tag) | (u64::from(number) << 2) | kind
}

fn place_in(slot: u64) -> Place {
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
    let place = slot as u32;
    if place & 1 == 0 { Place::FirstContact(place >> 2) } else { Place::SeveralPorts(place >> 2) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        /// Against a map, with tags that share their home, around the first growth.
        #[test]
        fn equals_a_map(
            steps in proptest::collection::vec((0..3u8, 0..24u64, any::<bool>()), 1..300),
            others in prop_oneof![Just(0u64), 240..260u64],
        ) {
            let mut index = Index::new();
            for other in 0..others {
                index.insert(other << 40, Place::FirstContact(u32::MAX >> 2));
            }
            let mut map: HashMap<Tag, Place> = HashMap::new();
            for (number, (step, source, kind)) in (0..).zip(steps) {
                // The home is chosen by the bits from 32 on.
                let tag = (source / 3) << 32 | (source % 3) << 60 | source;
                let place =
                    if kind { Place::FirstContact(number) } else { Place::SeveralPorts(number) };
                match (step, map.get(&tag).copied()) {
                    (0, None) => {
                        index.insert(tag, place);
                        map.insert(tag, place);
                    }
                    (1, Some(old)) => {
                        index.replace(tag, old, place);
                        map.insert(tag, place);
                    }
                    (2, Some(old)) => {
                        index.remove(tag, old);
                        map.remove(&tag);
                    }
                    _ => {}
                }
                for source in 0..24 {
                    let tag = (source / 3) << 32 | (source % 3) << 60 | source;
                    let known = map.get(&tag).copied();
                    prop_assert_eq!(index.find(tag, |found| Some(found) == known), known);
                }
            }
        }
    }
}
