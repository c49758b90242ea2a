//! A table with a fixed number of entries. A new entry evicts the least recently used one.
//!
//! Pure. Never allocates for an entry. The caller has the hash of each key already, so the table takes it
//! instead of computing it again.

use crate::detect::index::{Index, Tag};
use crate::detect::slots::Slots;

struct Entry<K, V> {
    hash: Tag,
    key: K,
    value: V,
}

/// The table.
pub struct Table<K, V> {
    index: Index,
    entries: Slots<Entry<K, V>>,
}

impl<K: Copy + Eq, V> Table<K, V> {
    pub fn new(capacity: usize) -> Self {
        Self { index: Index::new(), entries: Slots::new(capacity) }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The value of a key, which becomes the most recently used.
    pub fn get(&mut self, hash: Tag, key: &K) -> Option<&mut V> {
        let at = self.find(hash, key)?;
        self.entries.promote(at);
        self.entries.get_mut(at).map(|entry| &mut entry.value)
    }

    /// The value of a key. The order of use stays.
    pub fn peek(&mut self, hash: Tag, key: &K) -> Option<&mut V> {
        let at = self.find(hash, key)?;
        self.entries.get_mut(at).map(|entry| &mut entry.value)
    }

    /// Adds a key that is not in the table. Returns the value that was evicted for it.
    pub fn insert(&mut self, hash: Tag, key: K, value: V) -> Option<V> {
        let (at, evicted) = self.entries.add(Entry { hash, key, value });
        if let Some(evicted) = &evicted {
            self.index.remove(evicted.hash, at);
        }
        self.index.insert(hash, at);
        evicted.map(|evicted| evicted.value)
    }

    pub fn remove_where(&mut self, matches: impl Fn(&K) -> bool) {
        let entries = self.entries.iter().filter(|(_, entry)| matches(&entry.key));
        let matching: Vec<(u32, Tag)> = entries.map(|(at, entry)| (at, entry.hash)).collect();
        for (at, hash) in matching {
            self.index.remove(hash, at);
            self.entries.remove(at);
        }
    }

    fn find(&self, hash: Tag, key: &K) -> Option<u32> {
        self.index.find(hash, |at| self.entries.get(at).is_some_and(|entry| entry.key == *key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Keys collide.
    fn hash(key: u8) -> Tag {
        u64::from(key % 5) << 40
    }

    proptest! {
        /// Compares the table with a list that is searched from end to end.
        #[test]
        fn table_equals_a_list(steps in proptest::collection::vec((0..4u8, 0..12u8), 1..300)) {
            let mut table = Table::new(6);
            let mut list: Vec<(u8, usize)> = Vec::new();
            for (number, (step, key)) in steps.into_iter().enumerate() {
                let known = list.iter().position(|(k, _)| *k == key);
                match step {
                    0 => {
                        table.remove_where(|k| *k == key);
                        list.retain(|(k, _)| *k != key);
                    }
                    1 => prop_assert_eq!(table.peek(hash(key), &key).copied(), known.map(|at| list[at].1)),
                    _ => if let Some(at) = known {
                        let entry = list.remove(at);
                        list.push(entry);
                        prop_assert_eq!(table.get(hash(key), &key).copied(), Some(entry.1));
                    } else {
                        let gone = (list.len() == 6).then(|| list.remove(0).1);
                        list.push((key, number));
                        prop_assert_eq!(table.insert(hash(key), key, number), gone);
                    },
                }
                prop_assert_eq!(table.len(), list.len());
            }
        }
    }
}
