//! A table of so many entries and no more: the one longest untouched goes for a new one. Whoever has a key has its
//! hash.
//!
//! Pure. All memory is there from the beginning (and taken from the system when it is used); nothing is
//! allocated for an entry.

#![expect(
    clippy::cast_possible_truncation,
    reason = "hashes are cut to the bits that are needed, places fit by construction"
)]

/// No entry.
const NONE: u32 = u32::MAX;

struct Entry<K, V> {
    hash: u64,
    key: K,
    value: V,
    /// The next with the same hash.
    next: u32,
    older: u32,
    newer: u32,
}

/// The table.
pub struct Table<K, V> {
    entries: Vec<Entry<K, V>>,
    /// The first entry of each hash, plus one; a power of two.
    heads: Vec<u32>,
    capacity: usize,
    oldest: u32,
    newest: u32,
}

impl<K: Copy + Eq, V> Table<K, V> {
    /// Room for so many.
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.clamp(1, 1 << 30);
        Self {
            entries: Vec::with_capacity(capacity),
            heads: vec![0; (capacity * 2).next_power_of_two()],
            capacity,
            oldest: NONE,
            newest: NONE,
        }
    }

    /// Entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// An entry, which is the latest touched from now on.
    pub fn get(&mut self, hash: u64, key: &K) -> Option<&mut V> {
        let at = self.find(hash, key)?;
        self.leave_order(at);
        self.enter_order(at);
        Some(&mut self.entries[at as usize].value)
    }

    /// An entry, wherever it stands.
    pub fn look(&mut self, hash: u64, key: &K) -> Option<&mut V> {
        let at = self.find(hash, key)?;
        Some(&mut self.entries[at as usize].value)
    }

    /// Enters what is not there; returns it, and what had to go for it.
    pub fn insert(&mut self, hash: u64, key: K, value: V) -> (&mut V, Option<V>) {
        let mut gone = None;
        let at = if self.entries.len() < self.capacity {
            let at = u32::try_from(self.entries.len()).unwrap_or(NONE);
            self.entries.push(Entry { hash, key, value, next: NONE, older: NONE, newer: NONE });
            at
        } else {
            let at = self.oldest;
            self.leave_order(at);
            self.leave_chain(at);
            let entry = &mut self.entries[at as usize];
            (entry.hash, entry.key) = (hash, key);
            gone = Some(std::mem::replace(&mut entry.value, value));
            at
        };
        self.enter_order(at);
        let home = self.home(hash);
        self.entries[at as usize].next = self.heads[home].checked_sub(1).unwrap_or(NONE);
        self.heads[home] = at + 1;
        (&mut self.entries[at as usize].value, gone)
    }

    /// Removes all that `goes` says.
    pub fn remove_where(&mut self, goes: impl Fn(&K) -> bool) {
        let mut at = 0;
        while at < self.entries.len() {
            if goes(&self.entries[at].key) {
                self.remove_at(at as u32);
            } else {
                at += 1;
            }
        }
    }

    fn remove_at(&mut self, at: u32) {
        let last = (self.entries.len() - 1) as u32;
        self.leave_order(at);
        self.leave_chain(at);
        if at != last {
            // The last moves into the gap; whoever knew it by its place is told.
            let home = self.home(self.entries[last as usize].hash);
            self.leave_chain(last);
            let (older, newer) = {
                let entry = &self.entries[last as usize];
                (entry.older, entry.newer)
            };
            self.entries.swap(at as usize, last as usize);
            self.entries[at as usize].next = self.heads[home].checked_sub(1).unwrap_or(NONE);
            self.heads[home] = at + 1;
            match older {
                NONE => self.oldest = at,
                older => self.entries[older as usize].newer = at,
            }
            match newer {
                NONE => self.newest = at,
                newer => self.entries[newer as usize].older = at,
            }
        }
        self.entries.pop();
    }

    fn home(&self, hash: u64) -> usize {
        hash as usize & (self.heads.len() - 1)
    }

    fn find(&self, hash: u64, key: &K) -> Option<u32> {
        let mut at = self.heads[self.home(hash)].checked_sub(1)?;
        while at != NONE {
            let entry = &self.entries[at as usize];
            if entry.hash == hash && entry.key == *key {
                return Some(at);
            }
            at = entry.next;
        }
        None
    }

    fn leave_chain(&mut self, gone: u32) {
        let home = self.home(self.entries[gone as usize].hash);
        let next = self.entries[gone as usize].next;
        let first = self.heads[home].checked_sub(1).unwrap_or(NONE);
        if first == gone {
            self.heads[home] = next.wrapping_add(1);
            return;
        }
        let mut at = first;
        while at != NONE {
            let after = self.entries[at as usize].next;
            if after == gone {
                self.entries[at as usize].next = next;
                return;
            }
            at = after;
        }
    }

    fn leave_order(&mut self, at: u32) {
        let (older, newer) = {
            let entry = &self.entries[at as usize];
            (entry.older, entry.newer)
        };
        match older {
            NONE => self.oldest = newer,
            older => self.entries[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.entries[newer as usize].older = older,
        }
    }

    fn enter_order(&mut self, at: u32) {
        let newest = self.newest;
        let entry = &mut self.entries[at as usize];
        (entry.older, entry.newer) = (newest, NONE);
        match newest {
            NONE => self.oldest = at,
            newest => self.entries[newest as usize].newer = at,
        }
        self.newest = at;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hash(key: u8) -> u64 {
        u64::from(key % 5)
    }

    proptest! {
        /// Held against a list that is searched from end to end. Keys collide.
        #[test]
        fn equals_a_list(steps in proptest::collection::vec((0..4u8, 0..12u8), 1..300)) {
            let mut table = Table::new(6);
            let mut list: Vec<(u8, usize)> = Vec::new();
            for (number, (what, key)) in steps.into_iter().enumerate() {
                let known = list.iter().position(|(k, _)| *k == key);
                match what {
                    0 => {
                        table.remove_where(|k| *k == key);
                        list.retain(|(k, _)| *k != key);
                    }
                    1 => prop_assert_eq!(table.look(hash(key), &key).copied(), known.map(|at| list[at].1)),
                    _ => if let Some(at) = known {
                        let entry = list.remove(at);
                        list.push(entry);
                        prop_assert_eq!(table.get(hash(key), &key).copied(), Some(entry.1));
                    } else {
                        let gone = (list.len() == 6).then(|| list.remove(0).1);
                        list.push((key, number));
                        prop_assert_eq!(table.insert(hash(key), key, number).1, gone);
                    },
                }
                prop_assert_eq!(table.len(), list.len());
            }
        }
    }
}
