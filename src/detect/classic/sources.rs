//! What is remembered of sources, in fixed memory.
//!
//! Pure. Two stages: those that have tried a single port ([`FirstContacts`]), and those that have
//! tried several, in an LRU ([`SeveralPorts`]). Only a source of the second kind can take a place in the
//! LRU, so forged single probes, however many, cannot push a scanner out of it. One [`Index`] knows
//! where a source is.

use crate::detect::key::Key;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::IpNet;

use crate::detect::classic::candidates::{Contact, FirstContacts};
use crate::detect::classic::index::{Index, Place, Tag};
use crate::detect::classic::lru::{Memory, SeveralPorts};
use crate::types::clock::Moment;
use crate::types::network::overlap;
use crate::types::scan::Attempt;
use crate::types::segment::Direction;
use crate::types::segment::Segment;

/// Places for first contacts per source of the second kind. At the default of 131,072 sources that
/// is room for two seconds of a flood of 200,000 forged sources a second: a scanner of one probe a
/// second is still there when its second comes.
const FIRST_CONTACTS_PER_SOURCE: usize = 3;

/// A probe whose source has been looked for.
#[derive(Clone, Copy, Debug)]
pub struct Lookup {
    /// Which way the probe goes.
    pub direction: Direction,
    tag: Tag,
    /// Where it seemed to be at that time.
    place: Option<Place>,
}

/// All that is remembered.
pub struct Sources {
    index: Index,
    several_ports: SeveralPorts,
    one_port: FirstContacts,
    hasher: RandomState,
    span: Duration,
    evicted: u64,
}

impl Sources {
    /// Room for so many sources that have tried several ports, and some times as many others, for a rule
    /// of so many ports within a span.
    pub fn new(capacity: usize, ports: usize, span: Duration) -> Self {
        let capacity = capacity.max(1);
        let first_contacts = capacity.saturating_mul(FIRST_CONTACTS_PER_SOURCE);
        Self {
            index: Index::new(),
            several_ports: SeveralPorts::new(capacity, ports, span),
            one_port: FirstContacts::new(first_contacts),
            hasher: RandomState::new(),
            span,
            evicted: 0,
        }
    }

    /// Goes on for a rule of so many ports within another span, with all that is remembered.
    pub fn follow_rule(&mut self, ports: usize, span: Duration) {
        self.span = span;
        self.several_ports.follow_rule(ports, span);
    }

    /// Goes on with the number of sources that had to go.
    pub fn count_on_from(&mut self, evicted: u64) {
        self.evicted = evicted;
    }

    /// What to look for.
    pub fn sought(&self, direction: Direction, key: &Key) -> Lookup {
        Lookup { direction, tag: self.tag(key), place: None }
    }

    /// The same for the key that is a single IPv4 address: nearly always so, and much quicker.
    #[inline]
    pub fn sought_ipv4(&self, direction: Direction, source: Ipv4Addr) -> Lookup {
        Lookup { direction, tag: self.tag_ipv4(source), place: None }
    }

    /// Looks for several sources. Each step is taken for all of them before the next: the processor then
    /// waits for the memory of all at the same time, and to wait for memory is most of what there is to
    /// do. Changes nothing.
    pub fn seek(&self, all: &mut [Lookup]) {
        let touched = all.iter().fold(0, |sum, sought| sum ^ self.index.touch(sought.tag));
        black_box(touched);
        for sought in &mut *all {
            sought.place = self.index.candidate(sought.tag);
        }
        let touched = all.iter().fold(0, |sum, sought| {
            sum ^ match sought.place {
                Some(Place::SeveralPorts(at)) => self.several_ports.touch(at),
                Some(Place::FirstContact(at)) => self.one_port.touch(at),
                None => 0,
            }
        });
        black_box(touched);
        // Whoever has to go for the new ones is looked up as well.
        let new = all.iter().filter(|sought| sought.place.is_none()).count();
        let oldest = self.one_port.next_to_go(new);
        black_box(oldest.fold(0, |sum, old| sum ^ self.index.touch(old.tag)));
    }

    /// What is remembered of the source with this key, which tries a port; nothing, as long as it is its only one. A memory
    /// that is new holds the first port already, but not this one.
    pub fn on_probe(
        &mut self,
        sought: &Lookup,
        key: impl Fn() -> Key,
        probe: &Segment,
        now: Moment,
    ) -> Option<Memory<'_>> {
        let tag = sought.tag;
        let still_there = sought.place.filter(|place| self.is_at(*place, tag));
        let at = match still_there.or_else(|| self.find(tag)) {
            Some(Place::SeveralPorts(at)) => at,
            Some(Place::FirstContact(at)) => self.second_probe(at, key, probe, now)?,
            None => {
                self.welcome(tag, probe, now);
                return None;
            }
        };
        self.several_ports.visit(at, now)
    }

    /// A source is there for the first time.
    fn welcome(&mut self, tag: Tag, probe: &Segment, now: Moment) {
        let stealthy = !probe.kind.opens_connection();
        let (at, oldest) = self.one_port.add(Contact::new(tag, probe.port, stealthy, now));
        if let Some(oldest) = oldest {
            self.index.remove(oldest.tag, Place::FirstContact(at));
            self.count_evicted(oldest.moment, now);
        }
        self.index.insert(tag, Place::FirstContact(at));
    }

    /// A source that has tried a single port is there again. With a second port it gets a place among
    /// those of several.
    fn second_probe(
        &mut self,
        at: u32,
        key: impl Fn() -> Key,
        probe: &Segment,
        now: Moment,
    ) -> Option<u32> {
        let contact = self.one_port.get_mut(at)?;
        if contact.port == probe.port {
            // It keeps its place: whoever only ever tries one port needs no better one.
            // After a silent window it begins anew, as a source of several ports does.
            contact.stealthy &= !now.is_past(contact.moment, self.span);
            contact.stealthy |= !probe.kind.opens_connection();
            contact.moment = now;
            contact.probes = contact.probes.saturating_add(1);
            return None;
        }
        let contact = *contact;
        self.one_port.leave(at);
        let first = Attempt::at(contact.port, contact.moment);
        let (place, gone) = self.several_ports.add(contact.tag, key(), first);
        if let Some(gone) = gone {
            self.index.remove(gone.tag, Place::SeveralPorts(place));
            self.count_evicted(gone.latest, now);
        }
        self.index.replace(contact.tag, Place::FirstContact(at), Place::SeveralPorts(place));
        let mut memory = self.several_ports.get(place)?;
        memory.count(contact.probes);
        *memory.stealthy() = contact.stealthy;
        Some(place)
    }

    /// A source had to go: that counts as long as what was known of it was still of use.
    fn count_evicted(&mut self, latest: Moment, now: Moment) {
        self.evicted += u64::from(!now.is_past(latest, self.span));
    }

    /// A source has not been reported after all.
    pub fn not_reported(&mut self, key: Key) {
        if let Some(Place::SeveralPorts(at)) = self.find(self.tag(&key))
            && let Some(mut memory) = self.several_ports.get(at)
        {
            memory.set_reported(None);
        }
    }

    /// Forgets all that is known of a network, and of what lies in it or around it.
    pub fn forget(&mut self, network: IpNet) {
        let tag = self.tag(&Key { source: network, destination: None });
        match self.find(tag) {
            Some(place @ Place::SeveralPorts(at)) => {
                self.several_ports.forget(at);
                self.index.remove(tag, place);
                return;
            }
            // A single port is no evidence worth forgetting, except that of the network itself.
            Some(place @ Place::FirstContact(at)) => {
                self.one_port.leave(at);
                self.index.remove(tag, place);
            }
            None => {}
        }
        let known: Vec<u32> = self
            .several_ports
            .iter()
            .filter(|(_, key)| overlap(&key.source, &network))
            .map(|(at, _)| at)
            .collect();
        for at in known {
            let tag = self.several_ports.forget(at);
            self.index.remove(tag, Place::SeveralPorts(at));
        }
    }

    /// Sources remembered at the moment.
    pub fn len(&self) -> usize {
        self.several_ports.len() + self.one_port.len()
    }

    /// Sources that had to go for others while what was known of them was still of use.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    fn find(&self, tag: Tag) -> Option<Place> {
        self.index.find(tag, |place| self.is_at(place, tag))
    }

    fn is_at(&self, place: Place, tag: Tag) -> bool {
        match place {
            Place::FirstContact(at) => self.one_port.get(at).is_some_and(|c| c.tag == tag),
            Place::SeveralPorts(at) => self.several_ports.is_at(at, tag),
        }
    }

    fn tag(&self, key: &Key) -> Tag {
        let (source, family) = match (key.source, key.destination) {
            (IpNet::V4(source), None) if source.prefix_len() == 32 => {
                return self.tag_ipv4(source.addr());
            }
            (source, _) => bits(source.addr()),
        };
        let mut hasher = self.hasher.build_hasher();
        hasher.write_u128(source);
        // Families and the absence of a destination are told apart beside the addresses.
        let mut kinds = u64::from(family) << 8 | u64::from(key.source.prefix_len());
        if let Some(destination) = key.destination {
            let (destination, family) = bits(destination);
            hasher.write_u128(destination);
            kinds |= u64::from(family) << 16;
        }
        hasher.write_u64(kinds);
        hasher.finish()
    }

    /// Four bytes: no other key has as few.
    #[inline]
    fn tag_ipv4(&self, source: Ipv4Addr) -> Tag {
        let mut hasher = self.hasher.build_hasher();
        hasher.write_u32(source.to_bits());
        hasher.finish()
    }
}

/// An address as a number, and the number of its family.
fn bits(address: IpAddr) -> (u128, u8) {
    match address {
        IpAddr::V4(address) => (address.to_bits().into(), 4),
        IpAddr::V6(address) => (address.to_bits(), 6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::segment::{Port, SegmentKind};

    const SPAN: Duration = Duration::from_secs(60);

    fn key(number: u32) -> Key {
        Key { source: IpAddr::from(number.to_be_bytes()).into(), destination: None }
    }

    fn at(seconds: u64) -> Moment {
        Moment::from_nanos(seconds * 1_000_000_000)
    }

    fn look_for(sources: &Sources, key: Key) -> Lookup {
        let mut sought = [sources.sought(Direction::Inbound, &key)];
        sources.seek(&mut sought);
        sought[0]
    }

    fn probe(port: u16) -> Segment {
        Segment {
            moment: Moment::default(),
            source: [0, 0, 0, 0].into(),
            destination: [0, 0, 0, 0].into(),
            source_port: Port(1),
            port: Port(port),
            kind: SegmentKind::Syn,
            sequence: 0,
            acknowledged: 0,
            crafted: false,
        }
    }

    #[test]
    fn a_flood_of_single_probes_pushes_nobody_out_who_tried_two() {
        let mut sources = Sources::new(1024, 3, SPAN);
        let mut meet = |source, port, second| {
            let sought = look_for(&sources, key(source));
            let mut memory = sources.on_probe(&sought, || key(source), &probe(port), at(second))?;
            memory.window().record(Port(port), at(second), SPAN);
            Some(memory.window().attempts().map(|attempt| attempt.port.0).collect::<Vec<_>>())
        };
        assert_eq!(meet(7, 1, 0), None);
        assert_eq!(meet(7, 2, 0), Some(vec![1, 2]));
        for number in 1000..1_000_000 {
            assert_eq!(meet(number, 80, 1), None);
        }
        assert_eq!(meet(7, 3, 2), Some(vec![1, 2, 3]));
        assert_eq!(sources.len(), 1 + 3 * 1024);
        assert_eq!(sources.evicted(), 999_000 - 3 * 1024);
    }

    #[test]
    fn a_second_port_brings_the_first_back() {
        let mut sources = Sources::new(1024, 3, SPAN);
        let mut meet = |port, second| {
            let sought = look_for(&sources, key(7));
            let mut memory = sources.on_probe(&sought, || key(7), &probe(port), at(second))?;
            let earlier: Vec<_> = memory.window().attempts().collect();
            Some((earlier, memory.count(0)))
        };
        assert_eq!(meet(1, 0), None);
        assert_eq!(meet(1, 5), None);
        let first = Attempt::at(Port(1), at(5));
        assert_eq!(meet(2, 6), Some((vec![first], 2)));
        assert_eq!((sources.one_port.len(), sources.several_ports.len()), (0, 1));
    }

    #[test]
    fn what_was_looked_for_may_have_moved_or_gone() {
        let mut sources = Sources::new(1, 3, SPAN);
        let nobody = look_for(&sources, key(1));
        assert!(sources.on_probe(&nobody, || key(1), &probe(1), at(0)).is_none());
        let waiting = look_for(&sources, key(1));
        assert!(
            sources.on_probe(&nobody, || key(1), &probe(2), at(0)).is_some(),
            "found all the same"
        );
        assert!(sources.on_probe(&waiting, || key(1), &probe(3), at(0)).is_some(), "has moved");
        let known = look_for(&sources, key(1));
        for port in [1, 2] {
            let other = look_for(&sources, key(2));
            sources.on_probe(&other, || key(2), &probe(port), at(1));
        }
        assert_eq!(sources.evicted(), 1);
        assert!(sources.on_probe(&known, || key(1), &probe(4), at(1)).is_none(), "begins anew");
    }

    #[test]
    fn what_goes_counts_only_while_it_was_of_use() {
        let mut sources = Sources::new(1, 3, SPAN);
        for (number, second) in [(1, 0), (2, 30), (3, 30), (4, 60), (5, 61)] {
            let sought = look_for(&sources, key(number));
            sources.on_probe(&sought, || key(number), &probe(1), at(second));
        }
        assert_eq!((sources.len(), sources.evicted()), (3, 1));
        sources.forget("0.0.0.5/32".parse().unwrap());
        assert_eq!(sources.len(), 2);
    }

    #[test]
    fn every_key_has_its_own_bytes() {
        let sources = Sources::new(1024, 3, SPAN);
        let keys = [
            key(1),
            key(2),
            Key { source: "0.0.0.1/31".parse().unwrap(), destination: None },
            Key { source: "::1/128".parse().unwrap(), destination: None },
            Key { source: "::1/64".parse().unwrap(), destination: None },
            Key { destination: Some(IpAddr::from([0, 0, 0, 0])), ..key(1) },
            Key { destination: Some(IpAddr::from([0, 0, 0, 1])), ..key(1) },
            Key { destination: Some("::1".parse().unwrap()), ..key(1) },
        ];
        let tags: std::collections::HashSet<Tag> =
            keys.iter().map(|key| sources.tag(key)).collect();
        assert_eq!(tags.len(), keys.len());
        let short = sources.sought_ipv4(Direction::Inbound, Ipv4Addr::new(0, 0, 0, 1));
        assert_eq!(short.tag, sources.tag(&key(1)));
    }
}
