//! Sources that have tried a single port so far: what nearly all of them are, and ever will be.
//!
//! Pure. A flood of forged sources, one probe each, must not push out a source that has tried
//! several, so that newcomers wait here, in a ring of fixed size, first in, first out. An entry is
//! 24 bytes: instead of the source it keeps its [`Tag`], a keyed 64-bit hash whose key nobody outside
//! knows. (Two of a ring's sources share one by chance once in many million years of full flood.)

use crate::detect::classic::index::Tag;
use crate::types::clock::Moment;
use crate::types::segment::Port;

/// What is known of a source that has tried one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contact {
    pub tag: Tag,
    /// When it last tried it.
    pub moment: Moment,
    /// How often; stops counting at the top.
    pub probes: u32,
    /// The port.
    pub port: Port,
    /// One of its probes was no ordinary connection attempt.
    pub stealthy: bool,
    /// Not so once it has gone on to a second port; its place is taken until its turn comes.
    waits: bool,
}

impl Contact {
    /// The first probe of a source.
    pub fn new(tag: Tag, port: Port, stealthy: bool, moment: Moment) -> Self {
        Self { tag, moment, probes: 1, port, stealthy, waits: true }
    }
}

/// The ring.
pub struct FirstContacts {
    ring: Vec<Contact>,
    capacity: usize,
    /// Where the next entry goes, once the ring is full: the oldest's place.
    next: usize,
    waiting: usize,
}

impl FirstContacts {
    /// A ring of at most `capacity` sources. The system gives the memory as it fills.
    pub fn new(capacity: usize) -> Self {
        Self { ring: Vec::with_capacity(capacity), capacity, next: 0, waiting: 0 }
    }

    /// How many sources wait here.
    pub fn len(&self) -> usize {
        self.waiting
    }

    /// Reads a place, to have it at hand later.
    pub fn touch(&self, at: u32) -> u64 {
        self.ring.get(at as usize).map_or(0, |contact| contact.tag)
    }

    /// Those who have to go for so many new ones.
    pub fn next_to_go(&self, new: usize) -> impl Iterator<Item = &Contact> {
        let full = self.ring.len() == self.capacity;
        let next = if full { self.ring.get(self.next..).unwrap_or_default() } else { &[] };
        next.iter().take(new)
    }

    /// Who waits at a place.
    pub fn get(&self, at: u32) -> Option<&Contact> {
        self.ring.get(at as usize).filter(|contact| contact.waits)
    }

    /// Who waits at a place.
    pub fn get_mut(&mut self, at: u32) -> Option<&mut Contact> {
        self.ring.get_mut(at as usize).filter(|contact| contact.waits)
    }

    /// Adds a source. The oldest goes if there is no room; it is returned with its place, which the new
    /// one takes, unless it has left before.
    pub fn add(&mut self, contact: Contact) -> (u32, Option<Contact>) {
        self.waiting += 1;
        let mut oldest = None;
        let at = if self.ring.len() < self.capacity {
            self.ring.push(contact);
            self.ring.len() - 1
        } else {
            let at = self.next;
            self.next = if at + 1 == self.capacity { 0 } else { at + 1 };
            oldest = Some(std::mem::replace(&mut self.ring[at], contact)).filter(|old| old.waits);
            self.waiting -= usize::from(oldest.is_some());
            at
        };
        // The configuration's limit is far below.
        (u32::try_from(at).unwrap_or(u32::MAX), oldest)
    }

    /// A source leaves: it has tried a second port, or is to be forgotten.
    pub fn leave(&mut self, at: u32) {
        if let Some(contact) = self.get_mut(at) {
            contact.waits = false;
            self.waiting -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    fn contact(tag: Tag) -> Contact {
        Contact::new(tag, Port(80), false, Moment::default())
    }

    #[test]
    fn the_oldest_goes_and_leaves_its_place() {
        let mut contacts = FirstContacts::new(2);
        assert_eq!(contacts.add(contact(1)), (0, None));
        assert_eq!(contacts.add(contact(2)), (1, None));
        assert_eq!(contacts.add(contact(3)), (0, Some(contact(1))));
        contacts.leave(1);
        assert_eq!((contacts.len(), contacts.get(1)), (1, None));
        assert_eq!(contacts.add(contact(4)), (1, None), "2 has left before");
        assert_eq!(contacts.len(), 2);
    }

    proptest! {
        /// Against a queue: who is there, and who goes.
        #[test]
        fn equals_a_plain_queue(
            capacity in 1..20usize,
            steps in proptest::collection::vec((0..3u8, 0..40usize), 1..300),
        ) {
            let mut contacts = FirstContacts::new(capacity);
            // Places in the order they were taken; a place stays taken when its source leaves.
            let mut queue: VecDeque<(u32, Option<Tag>)> = VecDeque::new();
            for (tag, (step, which)) in (0..).zip(steps) {
                if step > 0 {
                    let expected = (queue.len() == capacity).then(|| queue.pop_front()).flatten();
                    let (at, gone) = contacts.add(contact(tag));
                    prop_assert_eq!(gone.map(|gone| gone.tag), expected.and_then(|old| old.1));
                    if let Some((place, _)) = expected {
                        prop_assert_eq!(at, place);
                    }
                    queue.push_back((at, Some(tag)));
                } else if let Some((at, waits)) = queue.get_mut(which) {
                    contacts.leave(*at);
                    *waits = None;
                }
                prop_assert_eq!(contacts.len(), queue.iter().filter(|place| place.1.is_some()).count());
                for (at, waits) in &queue {
                    prop_assert_eq!(contacts.get(*at).map(|contact| contact.tag), *waits);
                }
            }
        }
    }
}
