//! Sources that have tried a single port so far: what nearly all of them are, and ever will be.
//!
//! Pure. A flood of forged sources, one probe each, must not push out a source that has tried
//! several, so that newcomers wait here, in a ring of fixed size, first in, first out. An entry is
//! 24 bytes: instead of the source it keeps a keyed 64-bit hash of it, whose key nobody outside
//! knows. (Two of a ring's sources share one by chance once in many million years of full flood.)

use std::time::Duration;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::clock::Moment;
use crate::probe::Port;

/// A source's hash, keyed anew in each process.
pub(super) type Tag = u64;

/// What is known of a source that has tried one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Contact {
    tag: Tag,
    /// When it last tried it.
    pub(super) moment: Moment,
    /// The port.
    pub(super) port: Port,
    /// How often; stops counting at the top.
    pub(super) probes: u32,
    /// One of its probes was no ordinary connection attempt.
    pub(super) stealthy: bool,
}

/// A probe by a source that may be new.
#[derive(Clone, Copy, Debug)]
pub(super) struct Newcomer {
    pub(super) tag: Tag,
    pub(super) port: Port,
    pub(super) stealthy: bool,
}

/// What becomes of a probe by a source that is not known to have tried several ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meeting {
    /// The source's first port, or the same again.
    Waits {
        /// An entry that was still of use had to go.
        evicted: bool,
    },
    /// A second port: the first, no longer kept here.
    SecondPort(Contact),
}

/// The ring.
pub(super) struct FirstContacts {
    /// Positions in the ring by tag.
    index: HashTable<u32>,
    ring: Vec<Contact>,
    capacity: usize,
    /// Where the next entry goes, once the ring is full: the oldest's place.
    next: usize,
}

impl FirstContacts {
    /// A ring of at most `capacity` sources. The system gives the memory as it fills.
    pub(super) fn new(capacity: usize) -> Self {
        Self { index: HashTable::new(), ring: Vec::with_capacity(capacity), capacity, next: 0 }
    }

    /// A source has tried a port. An entry as old as `span` no longer counts for anything.
    pub(super) fn meet(&mut self, newcomer: Newcomer, now: Moment, span: Duration) -> Meeting {
        let Newcomer { tag, port, stealthy } = newcomer;
        let ring = &mut self.ring;
        let same = |at: &u32| ring[*at as usize].tag == tag;
        if let Ok(known) = self.index.find_entry(tag, same) {
            let contact = &mut ring[*known.get() as usize];
            if contact.port == port {
                // It keeps its place: whoever only ever tries one port needs no better one.
                // After a silent window it begins anew, as a source of several ports does.
                contact.stealthy &= !now.is_past(contact.moment, span);
                contact.stealthy |= stealthy;
                contact.moment = now;
                contact.probes = contact.probes.saturating_add(1);
                return Meeting::Waits { evicted: false };
            }
            let contact = *contact;
            known.remove();
            return Meeting::SecondPort(contact);
        }
        let contact = Contact { tag, moment: now, port, probes: 1, stealthy };
        Meeting::Waits { evicted: self.add(contact, now, span) }
    }

    /// Forgets a source.
    pub(super) fn forget(&mut self, tag: Tag) {
        let ring = &self.ring;
        if let Ok(known) = self.index.find_entry(tag, |at| ring[*at as usize].tag == tag) {
            known.remove();
        }
    }

    /// How many sources wait here.
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    fn add(&mut self, contact: Contact, now: Moment, span: Duration) -> bool {
        let mut evicted = false;
        let at = if self.ring.len() < self.capacity {
            self.ring.push(contact);
            self.ring.len() - 1
        } else {
            let at = self.next;
            self.next = (at + 1) % self.capacity;
            let oldest = std::mem::replace(&mut self.ring[at], contact);
            let position = |found: &u32| *found as usize == at;
            // Gone already if it went on to a second port.
            if let Ok(entry) = self.index.find_entry(oldest.tag, position) {
                entry.remove();
                evicted = !now.is_past(oldest.moment, span);
            }
            at
        };
        let Ok(position) = u32::try_from(at) else { return evicted };
        let ring = &self.ring;
        let hash_of = |at: &u32| ring[*at as usize].tag;
        if let Entry::Vacant(place) =
            self.index.entry(contact.tag, |found| *found == position, hash_of)
        {
            place.insert(position);
        }
        evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    const SPAN: Duration = Duration::from_secs(60);

    fn newcomer(tag: Tag, port: u16) -> Newcomer {
        Newcomer { tag, port: Port(port), stealthy: false }
    }

    fn at(seconds: u64) -> Moment {
        Moment::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn a_second_port_brings_the_first_back() {
        let mut contacts = FirstContacts::new(10);
        assert_eq!(contacts.meet(newcomer(7, 1), at(0), SPAN), Meeting::Waits { evicted: false });
        assert_eq!(contacts.meet(newcomer(7, 1), at(5), SPAN), Meeting::Waits { evicted: false });
        let Meeting::SecondPort(first) = contacts.meet(newcomer(7, 2), at(6), SPAN) else {
            panic!()
        };
        assert_eq!((first.port, first.moment, first.probes), (Port(1), at(5), 2));
        assert_eq!(contacts.len(), 0);
    }

    #[test]
    fn the_oldest_goes_and_counts_only_while_it_was_of_use() {
        let mut contacts = FirstContacts::new(2);
        contacts.meet(newcomer(1, 1), at(0), SPAN);
        contacts.meet(newcomer(2, 1), at(30), SPAN);
        assert_eq!(contacts.meet(newcomer(3, 1), at(60), SPAN), Meeting::Waits { evicted: false });
        assert_eq!(contacts.meet(newcomer(4, 1), at(61), SPAN), Meeting::Waits { evicted: true });
        assert_eq!(contacts.len(), 2);
        contacts.forget(3);
        assert_eq!(contacts.len(), 1);
    }

    proptest! {
        /// Against a queue searched from end to end.
        #[test]
        fn equals_a_plain_queue(
            capacity in 1..20usize,
            steps in proptest::collection::vec((0..40u64, 0..3u16), 1..300),
        ) {
            let mut contacts = FirstContacts::new(capacity);
            // Places in the order they were taken; a place stays taken when its source moves on.
            let mut queue: VecDeque<Option<(u64, u16)>> = VecDeque::new();
            for (tag, port) in steps {
                // Equal low bits make the table's slots collide.
                let spread = (tag << 57) | (tag % 4);
                let known = queue.iter().position(|place| place.is_some_and(|(t, _)| t == tag));
                let expected = match known {
                    Some(place) if queue[place] == Some((tag, port)) => None,
                    Some(place) => queue[place].take().map(|(_, first)| Port(first)),
                    None => {
                        if queue.len() == capacity {
                            queue.pop_front();
                        }
                        queue.push_back(Some((tag, port)));
                        None
                    }
                };
                let found = match contacts.meet(newcomer(spread, port), at(1), SPAN) {
                    Meeting::SecondPort(first) => Some(first.port),
                    Meeting::Waits { .. } => None,
                };
                prop_assert_eq!(found, expected);
                prop_assert_eq!(contacts.len(), queue.iter().flatten().count());
            }
        }
    }
}
