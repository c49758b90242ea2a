//! Sources that have tried several ports, in slots of fixed number in LRU order.
//!
//! Pure. Owns what the detector remembers of each source. What every probe needs takes 32 bytes, plus the
//! few attempts of the window.

use std::time::Duration;

use crate::detect::classic::window::{Packed, Window};
use crate::detect::effort::Effort;
use crate::detect::index::Tag;
use crate::detect::key::Key;
use crate::detect::slots::Slots;
use crate::types::{Attempt, Moment};

/// How often, per window, a source moves to the front of the LRU order at most. Each move touches its
/// neighbours in the list, which costs as much as the rest of a probe. The order is therefore exact to a
/// sixteenth of the window.
const PROMOTIONS_PER_SPAN: u32 = 16;

/// What every probe of a source needs: half a cache line together with the links of its slot.
#[derive(Clone, Copy, Debug, Default)]
struct Record {
    tag: Tag,
    /// When the source was last seen.
    latest: Moment,
    probes: u32,
    /// When the source last moved to the front of the LRU order, in ticks.
    tick: u8,
    /// How many attempts are in the window.
    taken: u8,
    stealthy: bool,
    reported: bool,
}

/// What only few probes need.
struct Rest {
    key: Key,
    reported: Moment,
    effort: Effort,
}

/// What the detector remembers of a source.
pub struct Memory<'a> {
    record: &'a mut Record,
    room: &'a mut [Packed],
    rest: &'a mut Rest,
}

impl Memory<'_> {
    /// The latest ports.
    pub fn window(&mut self) -> Window<'_> {
        Window::new(self.room, &mut self.record.taken, &mut self.record.latest)
    }

    /// Counts probes. Returns the total since the source was first remembered.
    pub fn count(&mut self, probes: u32) -> u64 {
        self.record.probes = self.record.probes.saturating_add(probes);
        self.record.probes.into()
    }

    /// Whether at least one probe was not an ordinary connection attempt.
    pub fn stealthy(&mut self) -> &mut bool {
        &mut self.record.stealthy
    }

    /// When the source was last reported.
    pub fn reported(&self) -> Option<Moment> {
        self.record.reported.then_some(self.rest.reported)
    }

    /// How far the source has gone on since it was reported.
    pub fn effort(&mut self) -> &mut Effort {
        &mut self.rest.effort
    }

    pub fn set_reported(&mut self, moment: Option<Moment>) {
        self.record.reported = moment.is_some();
        if let Some(moment) = moment {
            self.rest.reported = moment;
        }
    }
}

/// The sources.
pub struct MultiPortSources {
    records: Slots<Record>,
    /// For each slot as many as the rule needs.
    attempts: Vec<Packed>,
    /// One for each slot.
    rest: Vec<Rest>,
    capacity: usize,
    room: usize,
    /// The time, as coarse as the LRU order.
    tick: u8,
    tick_began: Moment,
    tick_length: Duration,
}

impl MultiPortSources {
    /// Room for `capacity` sources under a rule of `ports` within `span`. The kernel provides the memory when
    /// it is first used.
    pub fn new(capacity: usize, ports: usize, span: Duration) -> Self {
        let room = ports + 1;
        Self {
            records: Slots::new(capacity),
            attempts: Vec::with_capacity(capacity * room),
            rest: Vec::with_capacity(capacity),
            capacity,
            room,
            tick: 0,
            tick_began: Moment::default(),
            tick_length: span / PROMOTIONS_PER_SPAN,
        }
    }

    /// Applies another rule. Keeps the latest ports of each source that the new rule has room for.
    pub fn set_rule(&mut self, ports: usize, span: Duration) {
        self.tick_length = span / PROMOTIONS_PER_SPAN;
        let room = ports + 1;
        if room == self.room {
            return;
        }
        let mut attempts = Vec::with_capacity(self.capacity * room);
        for (record, old) in self.records.values_mut().zip(self.attempts.chunks_exact(self.room)) {
            // Configuration allows 64 ports at most.
            record.taken = record.taken.min(u8::try_from(room).unwrap_or(u8::MAX));
            attempts.extend(old.iter().take(room));
            attempts.extend(std::iter::repeat_n(Packed::default(), room.saturating_sub(self.room)));
        }
        (self.attempts, self.room) = (attempts, room);
    }

    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Reads a slot, so that it is in the cache for a later lookup.
    pub fn touch(&self, at: u32) -> u64 {
        let record = self.records.get(at).map_or(0, |record| record.tag);
        let first = at as usize * self.room;
        let of = |at: usize| self.attempts.get(at).map_or(0, |packed| packed.bits());
        record ^ of(first) ^ of(first + self.room - 1)
    }

    /// Whether a slot that is used belongs to the source with this tag.
    pub fn is_at(&self, at: u32, tag: Tag) -> bool {
        self.records.get(at).is_some_and(|record| record.tag == tag)
    }

    /// The source of a slot, which has just sent a probe.
    pub fn visit(&mut self, at: u32, now: Moment) -> Option<Memory<'_>> {
        if now.is_past(self.tick_began, self.tick_length) {
            self.tick_began = now;
            self.tick = self.tick.wrapping_add(1);
        }
        let record = self.records.get_mut(at)?;
        if record.tick != self.tick {
            record.tick = self.tick;
            self.records.promote(at);
        }
        self.get(at)
    }

    pub fn get(&mut self, at: u32) -> Option<Memory<'_>> {
        let record = self.records.get_mut(at)?;
        let room = self.attempts.get_mut(at as usize * self.room..)?.get_mut(..self.room)?;
        let rest = self.rest.get_mut(at as usize)?;
        Some(Memory { record, room, rest })
    }

    /// Adds a source with its first port. If there is no room, the least recently seen source is evicted.
    /// Returns the tag of that source, and when it was last seen.
    pub fn add(&mut self, tag: Tag, key: Key, first: Attempt) -> (u32, Option<(Tag, Moment)>) {
        let (at, evicted) = self.records.add(Record { tag, tick: self.tick, ..Record::default() });
        if let Some(rest) = self.rest.get_mut(at as usize) {
            rest.key = key;
        } else {
            self.rest.push(Rest { key, reported: Moment::default(), effort: Effort::default() });
            self.attempts.extend(std::iter::repeat_n(Packed::default(), self.room));
        }
        if let Some(mut memory) = self.get(at) {
            memory.window().record(first.port, first.moment, Duration::MAX);
        }
        (at, evicted.map(|evicted| (evicted.tag, evicted.latest)))
    }

    /// Forgets the source of a slot that is used.
    pub fn forget(&mut self, at: u32) {
        self.records.remove(at);
    }

    /// The slot, tag and key of every source.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Tag, &Key)> {
        self.records.iter().map(|(at, record)| (at, record.tag, &self.rest[at as usize].key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Port;
    use lru::LruCache;
    use proptest::prelude::*;
    use std::num::NonZeroUsize;

    const SPAN: Duration = Duration::from_secs(16);

    fn at(seconds: u64) -> Moment {
        Moment::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn a_record_and_its_links_take_half_a_cache_line() {
        assert_eq!(size_of::<Record>(), 24);
    }

    proptest! {
        /// Compares the sources with the crate `lru`. Each step takes a second.
        #[test]
        fn sources_equal_the_crate_lru(
            capacity in 1..12usize,
            steps in proptest::collection::vec((0..4u8, 0..20u64), 1..300),
        ) {
            let mut sources = MultiPortSources::new(capacity, 3, SPAN);
            let mut model: LruCache<Tag, u32> = LruCache::new(NonZeroUsize::new(capacity).unwrap());
            for (second, (step, tag)) in (1..).zip(steps) {
                let now = at(second);
                let known = model.peek(&tag).copied();
                match (step, known) {
                    (0, Some(place)) => {
                        sources.forget(place);
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
                        // The tick of a source is that of the last visit to any source.
                        let (place, evicted) = sources.add(tag, key, first);
                        prop_assert_eq!(evicted.map(|old| old.0), oldest.map(|(tag, _)| tag));
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
