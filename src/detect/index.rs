//! The index from the hash of a key to the slot of its entry.
//!
//! Pure. Owns an open-addressing hash table; the entries themselves belong to the caller. An index slot
//! takes 8 bytes and at most half of them are used, so a lookup nearly always stays in the one cache line
//! that the hash points to. Collisions use the next slot (linear probing). Removal closes the gap, so no
//! dead slots accumulate. Each slot contains half of the hash, so neither growth nor removal needs the
//! entries.

/// A hash with a key that is random in each process, so that nothing outside can construct collisions.
pub type Tag = u64;

/// The index.
pub struct Index {
    /// Half of the tag in the upper bits, the place plus one in the lower bits; zero if unused. The length is
    /// a power of two.
    slots: Vec<u64>,
    used: usize,
}

impl Index {
    pub fn new() -> Self {
        Self { slots: vec![0; INITIAL_SLOTS], used: 0 }
    }

    /// Reads the slot of a tag, so that it is in the cache for a later lookup.
    pub fn touch(&self, tag: Tag) -> u64 {
        self.slots[self.home(half(tag))]
    }

    /// The place of an entry. The index knows only half of the tag, so `is_there` must confirm the place.
    pub fn find(&self, tag: Tag, is_there: impl Fn(u32) -> bool) -> Option<u32> {
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

    /// The place of an entry, or of another entry with the same half of its tag.
    pub fn candidate(&self, tag: Tag) -> Option<u32> {
        self.find(tag, |_| true)
    }

    /// Adds an entry that is not in the index.
    pub fn insert(&mut self, tag: Tag, place: u32) {
        if self.used >= self.slots.len() / 2 {
            let larger = vec![0; self.slots.len() * 2];
            for slot in std::mem::replace(&mut self.slots, larger) {
                if slot != 0 {
                    self.put(slot);
                }
            }
        }
        self.used += 1;
        self.put(slot_of(tag, place));
    }

    /// Changes the place of an entry.
    pub fn replace(&mut self, tag: Tag, from: u32, to: u32) {
        if let Some(at) = self.position(tag, from) {
            self.slots[at] = slot_of(tag, to);
        }
    }

    pub fn remove(&mut self, tag: Tag, place: u32) {
        let Some(mut gap) = self.position(tag, place) else { return };
        self.used -= 1;
        // A slot that the gap displaced moves into it (Knuth, TAOCP 3, 6.4, algorithm R).
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

    fn put(&mut self, slot: u64) {
        let mut at = self.home(slot & HALF);
        while self.slots[at] != 0 {
            at = self.after(at);
        }
        self.slots[at] = slot;
    }

    fn position(&self, tag: Tag, place: u32) -> Option<usize> {
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

    /// The preferred slot for this half of a tag.
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

/// Half a page.
const INITIAL_SLOTS: usize = 512;

/// The bits of a slot that contain half of a tag.
const HALF: u64 = !0 << 32;

fn half(tag: Tag) -> u64 {
    tag & HALF
}

/// Never zero, and the place never reaches the upper half: configuration limits places to fewer than 2^30.
fn slot_of(tag: Tag, place: u32) -> u64 {
    half(tag) | (u64::from(place) + 1)
}

fn place_in(slot: u64) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is the place")]
    let place = slot as u32;
    place.wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        /// Compares the index with a map, with tags that share their home, around the first growth.
        #[test]
        fn index_equals_a_map(
            steps in proptest::collection::vec((0..3u8, 0..24u64), 1..300),
            others in prop_oneof![Just(0u64), 240..260u64],
        ) {
            let mut index = Index::new();
            for other in 0..others {
                index.insert(other << 40, u32::MAX >> 2);
            }
            let mut map: HashMap<Tag, u32> = HashMap::new();
            // The bits from 32 on select the home.
            let tag_of = |source: u64| (source / 3) << 32 | (source % 3) << 60 | source;
            for (place, (step, source)) in (0..).zip(steps) {
                let tag = tag_of(source);
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
                    let known = map.get(&tag_of(source)).copied();
                    prop_assert_eq!(index.find(tag_of(source), |found| Some(found) == known), known);
                }
            }
        }
    }
}
