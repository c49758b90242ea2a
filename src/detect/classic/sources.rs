//! What the detector remembers of sources, in fixed memory.
//!
//! Pure. Two stages: sources that have tried a single port ([`Candidates`]), and sources that have tried
//! several ([`MultiPortSources`]). Only the second stage is an LRU, so forged single probes cannot evict a
//! scanner, however many there are. One [`Index`] finds a source in either stage.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::IpNet;

use crate::detect::classic::candidates::{Candidate, Candidates};
use crate::detect::classic::lru::{Memory, MultiPortSources};
use crate::detect::index::{Index, Tag};
use crate::detect::key::Key;
use crate::types::{Attempt, Moment, Segment, overlap};

/// Candidates per source of the second stage. At the default of 131,072 sources, the candidates cover two
/// seconds of a flood of 200,000 forged sources a second. A scanner that sends one probe a second is then
/// still present when its second probe arrives.
const CANDIDATES_PER_SOURCE: usize = 3;

/// Where a source is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Candidate(u32),
    MultiPort(u32),
}

impl Place {
    /// The place as a number for the index. Configuration limits both kinds to 2^26 places.
    fn number(self) -> u32 {
        match self {
            Self::Candidate(at) => at << 1,
            Self::MultiPort(at) => at << 1 | 1,
        }
    }

    fn of(number: u32) -> Self {
        if number & 1 == 0 { Self::Candidate(number >> 1) } else { Self::MultiPort(number >> 1) }
    }
}

/// The result of looking up the source of a probe.
#[derive(Clone, Copy, Debug)]
pub struct Lookup {
    tag: Tag,
    /// Where the source seemed to be at the time of the lookup.
    place: Option<Place>,
}

/// The sources.
pub struct Sources {
    index: Index,
    several_ports: MultiPortSources,
    one_port: Candidates,
    hasher: RandomState,
    span: Duration,
    evicted: u64,
}

impl Sources {
    /// Room for `capacity` sources that have tried several ports, and several times as many candidates, under
    /// a rule of `ports` within `span`.
    pub fn new(capacity: usize, ports: usize, span: Duration) -> Self {
        let capacity = capacity.max(1);
        let candidates = capacity.saturating_mul(CANDIDATES_PER_SOURCE);
        Self {
            index: Index::new(),
            several_ports: MultiPortSources::new(capacity, ports, span),
            one_port: Candidates::new(candidates),
            hasher: RandomState::new(),
            span,
            evicted: 0,
        }
    }

    /// Applies another rule and keeps all sources.
    pub fn set_rule(&mut self, ports: usize, span: Duration) {
        self.span = span;
        self.several_ports.set_rule(ports, span);
    }

    /// Continues the count of evicted sources from another instance.
    pub fn set_evicted(&mut self, evicted: u64) {
        self.evicted = evicted;
    }

    /// A lookup that has yet to be carried out by [`Self::seek`].
    pub fn lookup(&self, key: &Key) -> Lookup {
        Lookup { tag: self.tag(key), place: None }
    }

    /// Equals [`Self::lookup`] for a key that is a single IPv4 address, which is by far the most common key.
    #[inline]
    pub fn lookup_ipv4(&self, source: Ipv4Addr) -> Lookup {
        Lookup { tag: self.tag_ipv4(source), place: None }
    }

    /// Carries out several lookups, one step at a time for all of them. The processor then waits for memory
    /// once per step instead of once per source, and waiting for memory is most of the cost.
    pub fn seek(&self, all: &mut [Lookup]) {
        let touched = all.iter().fold(0, |sum, lookup| sum ^ self.index.touch(lookup.tag));
        black_box(touched);
        for lookup in &mut *all {
            lookup.place = self.index.candidate(lookup.tag).map(Place::of);
        }
        let touched = all.iter().fold(0, |sum, lookup| {
            sum ^ match lookup.place {
                Some(Place::MultiPort(at)) => self.several_ports.touch(at),
                Some(Place::Candidate(at)) => self.one_port.touch(at),
                None => 0,
            }
        });
        black_box(touched);
        // New sources evict the oldest candidates, which the index must find as well.
        let new = all.iter().filter(|lookup| lookup.place.is_none()).count();
        let oldest = self.one_port.next_to_evict(new);
        black_box(oldest.fold(0, |sum, old| sum ^ self.index.touch(old.tag)));
    }

    /// What the detector remembers of the source of a probe. Returns nothing while the source has tried a
    /// single port. Memory that is new contains the first port already, but not the port of this probe.
    pub fn on_probe(
        &mut self,
        lookup: &Lookup,
        key: impl Fn() -> Key,
        probe: &Segment,
        now: Moment,
    ) -> Option<Memory<'_>> {
        let tag = lookup.tag;
        let still_there = lookup.place.filter(|place| self.is_at(*place, tag));
        let at = match still_there.or_else(|| self.find(tag)) {
            Some(Place::MultiPort(at)) => at,
            Some(Place::Candidate(at)) => self.on_probe_of_candidate(at, key, probe, now)?,
            None => {
                self.add_candidate(tag, probe, now);
                return None;
            }
        };
        self.several_ports.visit(at, now)
    }

    fn add_candidate(&mut self, tag: Tag, probe: &Segment, now: Moment) {
        let stealthy = !probe.kind.opens_connection();
        let (at, oldest) = self.one_port.add(Candidate {
            tag,
            latest: now,
            probes: 1,
            port: probe.port,
            stealthy,
        });
        if let Some(oldest) = oldest {
            self.index.remove(oldest.tag, Place::Candidate(at).number());
            self.count_evicted(oldest.latest, now);
        }
        self.index.insert(tag, Place::Candidate(at).number());
    }

    /// Moves a candidate to the second stage when it tries a second port.
    fn on_probe_of_candidate(
        &mut self,
        at: u32,
        key: impl Fn() -> Key,
        probe: &Segment,
        now: Moment,
    ) -> Option<u32> {
        let candidate = self.one_port.get_mut(at)?;
        if candidate.port == probe.port {
            // The candidate keeps its place in the ring. A source that only ever tries one port needs no
            // better one.
            // A source that was silent for a whole span starts over.
            candidate.stealthy &= !now.is_past(candidate.latest, self.span);
            candidate.stealthy |= !probe.kind.opens_connection();
            candidate.latest = now;
            candidate.probes = candidate.probes.saturating_add(1);
            return None;
        }
        let candidate = *candidate;
        self.one_port.remove(at);
        let first = Attempt::at(candidate.port, candidate.latest);
        let (to, evicted) = self.several_ports.add(candidate.tag, key(), first);
        if let Some((tag, latest)) = evicted {
            self.index.remove(tag, Place::MultiPort(to).number());
            self.count_evicted(latest, now);
        }
        let (from, place) = (Place::Candidate(at), Place::MultiPort(to));
        self.index.replace(candidate.tag, from.number(), place.number());
        let mut memory = self.several_ports.get(to)?;
        memory.count(candidate.probes);
        *memory.stealthy() = candidate.stealthy;
        Some(to)
    }

    /// Counts an evicted source if what was known of it could still lead to a scan.
    fn count_evicted(&mut self, latest: Moment, now: Moment) {
        self.evicted += u64::from(!now.is_past(latest, self.span));
    }

    /// What the detector remembers of a source that has tried several ports.
    pub fn get(&mut self, key: &Key) -> Option<Memory<'_>> {
        match self.find(self.tag(key)) {
            Some(Place::MultiPort(at)) => self.several_ports.get(at),
            _ => None,
        }
    }

    /// The ports that a source has tried, the oldest first.
    pub fn attempts(&mut self, key: &Key) -> Vec<Attempt> {
        match self.find(self.tag(key)) {
            Some(Place::MultiPort(at)) => {
                let memory = self.several_ports.get(at);
                memory.map_or_else(Vec::new, |mut memory| memory.window().attempts().collect())
            }
            Some(Place::Candidate(at)) => {
                let candidate = self.one_port.get(at).into_iter();
                candidate.map(|only| Attempt::at(only.port, only.latest)).collect()
            }
            None => Vec::new(),
        }
    }

    /// Forgets all sources that overlap a network.
    pub fn forget(&mut self, network: IpNet) {
        let tag = self.tag(&Key { source: network, destination: None });
        let known = self.find(tag);
        if let Some(place) = known {
            self.remove(place, tag);
        }
        // A single port is no evidence worth a search, except that of the network itself.
        if matches!(known, Some(Place::MultiPort(_))) {
            return;
        }
        let sources = self.several_ports.iter();
        let known: Vec<(u32, Tag)> = sources
            .filter(|(_, _, key)| overlap(&key.source, &network))
            .map(|(at, tag, _)| (at, tag))
            .collect();
        for (at, tag) in known {
            self.remove(Place::MultiPort(at), tag);
        }
    }

    fn remove(&mut self, place: Place, tag: Tag) {
        match place {
            Place::Candidate(at) => self.one_port.remove(at),
            Place::MultiPort(at) => self.several_ports.forget(at),
        }
        self.index.remove(tag, place.number());
    }

    /// How many sources are remembered.
    pub fn len(&self) -> usize {
        self.several_ports.len() + self.one_port.len()
    }

    /// How many sources were evicted while what was known of them could still lead to a scan.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    fn find(&self, tag: Tag) -> Option<Place> {
        self.index.find(tag, |number| self.is_at(Place::of(number), tag)).map(Place::of)
    }

    fn is_at(&self, place: Place, tag: Tag) -> bool {
        match place {
            Place::Candidate(at) => {
                self.one_port.get(at).is_some_and(|candidate| candidate.tag == tag)
            }
            Place::MultiPort(at) => self.several_ports.is_at(at, tag),
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
        // The families, and the absence of a destination, are hashed beside the addresses.
        let mut kinds = u64::from(family) << 8 | u64::from(key.source.prefix_len());
        if let Some(destination) = key.destination {
            let (destination, family) = bits(destination);
            hasher.write_u128(destination);
            kinds |= u64::from(family) << 16;
        }
        hasher.write_u64(kinds);
        hasher.finish()
    }

    /// The tag of four bytes. No other key is as short.
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
    use crate::types::{Port, SegmentKind};

    const SPAN: Duration = Duration::from_secs(60);

    fn key(number: u32) -> Key {
        Key { source: IpAddr::from(number.to_be_bytes()).into(), destination: None }
    }

    fn at(seconds: u64) -> Moment {
        Moment::from_nanos(seconds * 1_000_000_000)
    }

    fn look_up(sources: &Sources, key: Key) -> Lookup {
        let mut lookup = [sources.lookup(&key)];
        sources.seek(&mut lookup);
        lookup[0]
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
            sender: 0,
        }
    }

    #[test]
    fn flood_of_single_probes_does_not_evict_source_with_two_ports() {
        let mut sources = Sources::new(1024, 3, SPAN);
        let mut meet = |source, port, second| {
            let lookup = look_up(&sources, key(source));
            let mut memory = sources.on_probe(&lookup, || key(source), &probe(port), at(second))?;
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
    fn second_port_recalls_the_first() {
        let mut sources = Sources::new(1024, 3, SPAN);
        let mut meet = |port, second| {
            let lookup = look_up(&sources, key(7));
            let mut memory = sources.on_probe(&lookup, || key(7), &probe(port), at(second))?;
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
    fn source_is_found_after_it_moved_since_the_lookup() {
        let mut sources = Sources::new(1, 3, SPAN);
        let unknown = look_up(&sources, key(1));
        assert!(sources.on_probe(&unknown, || key(1), &probe(1), at(0)).is_none());
        let waiting = look_up(&sources, key(1));
        assert!(
            sources.on_probe(&unknown, || key(1), &probe(2), at(0)).is_some(),
            "another lookup finds it"
        );
        assert!(sources.on_probe(&waiting, || key(1), &probe(3), at(0)).is_some(), "it has moved");
        let known = look_up(&sources, key(1));
        for port in [1, 2] {
            let other = look_up(&sources, key(2));
            sources.on_probe(&other, || key(2), &probe(port), at(1));
        }
        assert_eq!(sources.evicted(), 1);
        assert!(
            sources.on_probe(&known, || key(1), &probe(4), at(1)).is_none(),
            "it was evicted and starts over"
        );
    }

    #[test]
    fn eviction_counts_only_within_the_span() {
        let mut sources = Sources::new(1, 3, SPAN);
        for (number, second) in [(1, 0), (2, 30), (3, 30), (4, 60), (5, 61)] {
            let lookup = look_up(&sources, key(number));
            sources.on_probe(&lookup, || key(number), &probe(1), at(second));
        }
        assert_eq!((sources.len(), sources.evicted()), (3, 1));
        sources.forget("0.0.0.5/32".parse().unwrap());
        assert_eq!(sources.len(), 2);
    }

    #[test]
    fn every_key_has_its_own_tag() {
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
        let short = sources.lookup_ipv4(Ipv4Addr::new(0, 0, 0, 1));
        assert_eq!(short.tag, sources.tag(&key(1)));
    }
}
