//! Sources that have tried several ports, in an LRU of fixed size.
//!
//! Pure. Owns their memory: what every probe needs lies in 32 bytes and in the window's few attempts
//! behind them, in places that are used over and over. The order of the LRU is a list through the
//! places. (The crate `lru` keeps each entry in an allocation of its own, which costs a flood of many
//! sources more in cache misses than all the rest of the detector.)

use std::time::Duration;

use crate::detect::classic::index::Tag;
use crate::detect::classic::window::{Packed, Window};
use crate::detect::key::Key;
use crate::types::clock::Moment;
use crate::types::scan::Attempt;

/// How often at most, in the length of a window, a source is moved to the front of the LRU. To move it
/// touches its neighbours in the list, which costs as much as all the rest; so the order of the LRU is
/// true to a sixteenth of the window only.
const PROMOTIONS_PER_SPAN: u32 = 16;

/// No place: the end of the list.
const NONE: u32 = u32::MAX;

/// What every probe of a source needs: half a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(align(32))]
struct Record {
    tag: Tag,
    /// When it was last seen.
    latest: Moment,
    newer: u32,
    older: u32,
    probes: u32,
    /// When it was last moved to the front of the LRU, in ticks.
    tick: u8,
    /// Attempts in its window; none if the place is free.
    taken: u8,
    stealthy: bool,
    reported: bool,
}

/// What is needed of few sources or seldom.
struct Rest {
    key: Key,
    reported: Moment,
}

/// What is remembered of a source.
pub struct Memory<'a> {
    record: &'a mut Record,
    room: &'a mut [Packed],
    rest: &'a mut Rest,
}

impl Memory<'_> {
    /// Its latest ports.
    pub fn window(&mut self) -> Window<'_> {
        Window::new(self.room, &mut self.record.taken, &mut self.record.latest)
    }

    /// One more probe; how many it is in all since the source was first remembered.
    pub fn count(&mut self, probes: u32) -> u64 {
        self.record.probes = self.record.probes.saturating_add(probes);
        self.record.probes.into()
    }

    /// Whether one of its probes was no ordinary connection attempt.
    pub fn stealthy(&mut self) -> &mut bool {
        &mut self.record.stealthy
    }

    /// When it was last reported.
    pub fn reported(&self) -> Option<Moment> {
        self.record.reported.then_some(self.rest.reported)
    }

    /// It has been reported, or has not been after all.
    pub fn set_reported(&mut self, moment: Option<Moment>) {
        self.record.reported = moment.is_some();
        if let Some(moment) = moment {
            self.rest.reported = moment;
        }
    }
}

/// A source that had to go.
pub struct Gone {
    pub tag: Tag,
    /// When it was last seen.
    pub latest: Moment,
}

/// The LRU.
pub struct SeveralPorts {
    records: Vec<Record>,
    /// As many for each record as the rule needs.
    attempts: Vec<Packed>,
    rest: Vec<Rest>,
    /// Places whose sources were forgotten.
    free: Vec<u32>,
    newest: u32,
    oldest: u32,
    capacity: usize,
    room: usize,
    /// The time, as coarse as the order of the LRU.
    tick: u8,
    tick_began: Moment,
    tick_length: Duration,
}

impl SeveralPorts {
    /// Room for so many sources of so many ports within a span. The system gives it as it fills.
    pub fn new(capacity: usize, ports: usize, span: Duration) -> Self {
        let room = ports + 1;
        Self {
            records: Vec::with_capacity(capacity),
            attempts: Vec::with_capacity(capacity * room),
            rest: Vec::with_capacity(capacity),
            free: Vec::new(),
            newest: NONE,
            oldest: NONE,
            capacity,
            room,
            tick: 0,
            tick_began: Moment::default(),
            tick_length: span / PROMOTIONS_PER_SPAN,
        }
    }

    /// Goes on for so many ports within another span. Of each source the latest ports stay that there is
    /// room for.
    pub fn follow_rule(&mut self, ports: usize, span: Duration) {
        self.tick_length = span / PROMOTIONS_PER_SPAN;
        let room = ports + 1;
        if room == self.room {
            return;
        }
        let mut attempts = Vec::with_capacity(self.capacity * room);
        for (record, old) in self.records.iter_mut().zip(self.attempts.chunks_exact(self.room)) {
            // The configuration allows 64 ports at the most.
            record.taken = record.taken.min(u8::try_from(room).unwrap_or(u8::MAX));
            attempts.extend(old.iter().take(room));
            attempts.extend(std::iter::repeat_n(Packed::default(), room.saturating_sub(self.room)));
        }
        (self.attempts, self.room) = (attempts, room);
    }

    /// Sources remembered.
    pub fn len(&self) -> usize {
        self.records.len() - self.free.len()
    }

    /// Reads a place, to have it at hand later.
    pub fn touch(&self, at: u32) -> u64 {
        let record = self.records.get(at as usize).map_or(0, |record| record.tag);
        let first = at as usize * self.room;
        let of = |at: usize| self.attempts.get(at).map_or(0, |packed| packed.bits());
        record ^ of(first) ^ of(first + self.room - 1)
    }

    /// Whether a place is that of a source with this hash.
    pub fn is_at(&self, at: u32, tag: Tag) -> bool {
        self.records.get(at as usize).is_some_and(|record| record.taken > 0 && record.tag == tag)
    }

    /// What is remembered at a place, which a probe has just come for.
    pub fn visit(&mut self, at: u32, now: Moment) -> Option<Memory<'_>> {
        if now.is_past(self.tick_began, self.tick_length) {
            self.tick_began = now;
            self.tick = self.tick.wrapping_add(1);
        }
        if self.records.get(at as usize)?.tick != self.tick {
            self.unlink(at);
            self.link(at);
        }
        self.get(at)
    }

    /// What is remembered at a place.
    pub fn get(&mut self, at: u32) -> Option<Memory<'_>> {
        let record = self.records.get_mut(at as usize)?;
        let room = self.attempts.get_mut(at as usize * self.room..)?.get_mut(..self.room)?;
        let rest = self.rest.get_mut(at as usize)?;
        Some(Memory { record, room, rest })
    }

    /// Adds a source with its first port. If there is no room, the one least recently seen goes.
    pub fn add(&mut self, tag: Tag, key: Key, first: Attempt) -> (u32, Option<Gone>) {
        let mut gone = None;
        let full = self.len() == self.capacity;
        let at = if full { self.oldest } else { self.free.pop().unwrap_or(NONE) };
        let at = if at == NONE {
            self.records.push(Record::default());
            self.rest.push(Rest { key, reported: Moment::default() });
            self.attempts.extend(std::iter::repeat_n(Packed::default(), self.room));
            // The configuration's limit is far below.
            u32::try_from(self.records.len() - 1).unwrap_or(NONE)
        } else {
            at
        };
        if full {
            let Record { tag, latest, .. } = self.records[at as usize];
            gone = Some(Gone { tag, latest });
            self.unlink(at);
        }
        self.records[at as usize] = Record { tag, ..Record::default() };
        self.rest[at as usize].key = key;
        if let Some(mut memory) = self.get(at) {
            memory.window().record(first.port, first.moment, Duration::MAX);
        }
        self.link(at);
        (at, gone)
    }

    /// Forgets the source at a place; its hash is returned.
    pub fn forget(&mut self, at: u32) -> Tag {
        self.unlink(at);
        self.free.push(at);
        self.records[at as usize].taken = 0;
        self.records[at as usize].tag
    }

    /// All sources and their places.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Key)> {
        let all = (0u32..).zip(self.records.iter().zip(&self.rest));
        all.filter(|(_, (record, _))| record.taken > 0).map(|(at, (_, rest))| (at, &rest.key))
    }

    /// Puts a place at the front of the list.
    fn link(&mut self, at: u32) {
        let second = std::mem::replace(&mut self.newest, at);
        let record = &mut self.records[at as usize];
        record.tick = self.tick;
        (record.newer, record.older) = (NONE, second);
        match self.records.get_mut(second as usize) {
            Some(second) => second.newer = at,
            None => self.oldest = at,
        }
    }

    /// Takes a place out of the list.
    fn unlink(&mut self, at: u32) {
        let Record { newer, older, .. } = self.records[at as usize];
        match self.records.get_mut(newer as usize) {
            Some(record) => record.older = older,
            None => self.newest = older,
        }
        match self.records.get_mut(older as usize) {
            Some(record) => record.newer = newer,
            None => self.oldest = newer,
        }
    }
}

impl Default for Record {
    fn default() -> Self {
        Self {
            tag: 0,
            latest: Moment::default(),
            newer: NONE,
            older: NONE,
            probes: 0,
            tick: 0,
            taken: 0,
            stealthy: false,
            reported: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::segment::Port;
    use lru::LruCache;
    use proptest::prelude::*;
    use std::num::NonZeroUsize;

    const SPAN: Duration = Duration::from_secs(16);

    fn at(seconds: u64) -> Moment {
        Moment::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn half_a_cache_line() {
        assert_eq!(size_of::<Record>(), 32);
    }

    proptest! {
        /// Against the crate `lru`, each step in a second of its own: who is there, and who goes.
        #[test]
        fn equals_the_crate_lru(
            capacity in 1..12usize,
            steps in proptest::collection::vec((0..4u8, 0..20u64), 1..300),
        ) {
            let mut sources = SeveralPorts::new(capacity, 3, SPAN);
            let mut model: LruCache<Tag, u32> = LruCache::new(NonZeroUsize::new(capacity).unwrap());
            for (second, (step, tag)) in (1..).zip(steps) {
                let now = at(second);
                let known = model.peek(&tag).copied();
                match (step, known) {
                    (0, Some(place)) => {
                        prop_assert_eq!(sources.forget(place), tag);
                        model.pop(&tag);
                    }
                    (_, Some(place)) => {
                        prop_assert!(sources.visit(place, now).is_some());
                        model.promote(&tag);
                    }
                    (_, None) => {
                        let oldest = (model.len() == capacity).then(|| model.pop_lru()).flatten();
                        let key = Key {
                            source: std::net::IpAddr::from([0, 0, 0, 1]).into(),
                            destination: None,
                        };
                        let first = Attempt::at(Port(80), now);
                        // The tick of a source is that of the last visit to any.
                        let (place, gone) = sources.add(tag, key, first);
                        prop_assert_eq!(gone.map(|gone| gone.tag), oldest.map(|(tag, _)| tag));
                        prop_assert!(sources.visit(place, now).is_some());
                        model.push(tag, place);
                    }
                }
                prop_assert_eq!(sources.len(), model.len());
                prop_assert_eq!(sources.iter().count(), model.len());
                for (tag, place) in &model {
                    prop_assert!(sources.is_at(*place, *tag));
                }
            }
        }
    }
}
