//! A fixed number of slots in the order of their last use, and what takes the oldest slot.
//!
//! Pure. Owns the entries and their order: a list through the slots, which are used again and again. Never
//! allocates for an entry. (The crate `lru` allocates each entry separately. In a flood of many sources the
//! cache misses of that cost more than the rest of the detector.)

/// No slot: the end of the list.
const NONE: u32 = u32::MAX;

/// Marks a slot that is not in the list.
const FREE: u32 = u32::MAX - 1;

/// An entry and its neighbours in the list. The alignment keeps small entries within one cache line.
#[derive(Clone, Copy)]
#[repr(align(32))]
struct Slot<T> {
    value: T,
    newer: u32,
    older: u32,
}

/// The slots.
pub struct Slots<T> {
    places: Vec<Slot<T>>,
    free: Vec<u32>,
    newest: u32,
    oldest: u32,
    capacity: usize,
}

impl<T> Slots<T> {
    /// At most `capacity` slots. The kernel provides the memory when it is first used.
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.clamp(1, 1 << 30);
        let places = Vec::with_capacity(capacity);
        Self { places, free: Vec::new(), newest: NONE, oldest: NONE, capacity }
    }

    /// How many slots are used.
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// The entry of a slot that is used. A free slot returns its last entry.
    pub fn get(&self, at: u32) -> Option<&T> {
        self.places.get(at as usize).map(|slot| &slot.value)
    }

    /// The entry of a slot that is used. A free slot returns its last entry.
    pub fn get_mut(&mut self, at: u32) -> Option<&mut T> {
        self.places.get_mut(at as usize).map(|slot| &mut slot.value)
    }

    /// Adds an entry as the newest. If all slots are used, the oldest entry is evicted and returned.
    pub fn add(&mut self, value: T) -> (u32, Option<T>) {
        if self.len() == self.capacity {
            let at = self.oldest;
            self.unlink(at);
            let evicted = std::mem::replace(&mut self.places[at as usize].value, value);
            self.link(at);
            return (at, Some(evicted));
        }
        let slot = Slot { value, newer: NONE, older: NONE };
        let at = if let Some(at) = self.free.pop() {
            self.places[at as usize] = slot;
            at
        } else {
            self.places.push(slot);
            // The capacity is far below the limit.
            u32::try_from(self.places.len() - 1).unwrap_or(NONE)
        };
        self.link(at);
        (at, None)
    }

    /// Removes the entry of a slot that is used.
    pub fn remove(&mut self, at: u32) {
        self.unlink(at);
        self.places[at as usize].newer = FREE;
        self.free.push(at);
    }

    /// Makes the entry of a slot that is used the newest.
    pub fn promote(&mut self, at: u32) {
        self.unlink(at);
        self.link(at);
    }

    /// All entries and their slots, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        let used = (0u32..).zip(&self.places).filter(|(_, slot)| slot.newer != FREE);
        used.map(|(at, slot)| (at, &slot.value))
    }

    /// Every value, including those of free slots, in the order of the slots.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.places.iter_mut().map(|slot| &mut slot.value)
    }

    /// Puts a slot at the front of the list.
    fn link(&mut self, at: u32) {
        let second = std::mem::replace(&mut self.newest, at);
        let slot = &mut self.places[at as usize];
        (slot.newer, slot.older) = (NONE, second);
        match self.places.get_mut(second as usize) {
            Some(second) => second.newer = at,
            None => self.oldest = at,
        }
    }

    /// Takes a slot out of the list.
    fn unlink(&mut self, at: u32) {
        let Slot { newer, older, .. } = self.places[at as usize];
        match self.places.get_mut(newer as usize) {
            Some(slot) => slot.older = older,
            None => self.newest = older,
        }
        match self.places.get_mut(older as usize) {
            Some(slot) => slot.newer = newer,
            None => self.oldest = newer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lru::LruCache;
    use proptest::prelude::*;
    use std::num::NonZeroUsize;

    #[test]
    fn three_words_fit_in_half_a_cache_line() {
        assert_eq!(size_of::<Slot<[u64; 3]>>(), 32);
    }

    proptest! {
        /// Compares the slots with the crate `lru`.
        #[test]
        fn slots_equal_the_crate_lru(
            capacity in 1..12usize,
            steps in proptest::collection::vec((0..4u8, 0..20u64), 1..300),
        ) {
            let mut slots = Slots::new(capacity);
            let mut model: LruCache<u64, u32> = LruCache::new(NonZeroUsize::new(capacity).unwrap());
            for (step, key) in steps {
                match (step, model.peek(&key).copied()) {
                    (0, Some(at)) => {
                        slots.remove(at);
                        model.pop(&key);
                    }
                    (_, Some(at)) => {
                        slots.promote(at);
                        model.promote(&key);
                    }
                    (_, None) => {
                        let oldest = (model.len() == capacity).then(|| model.pop_lru()).flatten();
                        let (at, evicted) = slots.add(key);
                        prop_assert_eq!(evicted, oldest.map(|(key, _)| key));
                        model.push(key, at);
                    }
                }
                prop_assert_eq!(slots.len(), model.len());
                prop_assert_eq!(slots.iter().count(), model.len());
                for (key, at) in &model {
                    prop_assert_eq!(slots.get(*at), Some(key));
                }
            }
        }
    }
}
