//! What is remembered of sources, in fixed memory.
//!
//! Pure. Two stages: those that have tried a single port ([`FirstContacts`]), and those that have
//! tried several, in an LRU. Only a source of the second kind can take a place in the LRU, so forged
//! single probes, however many, cannot push a scanner out of it.

use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use ipnet::IpNet;
use lru::LruCache;

use super::first_contact::{FirstContacts, Meeting, Newcomer, Tag};
use super::window::Window;
use crate::clock::Moment;
use crate::network::overlap;
use crate::probe::Probe;

/// Places for first contacts per source of the second kind. At the default of 131,072 sources that
/// is room for two seconds of a flood of 200,000 forged sources a second: a scanner of one probe a
/// second is still there when its second comes.
const FIRST_CONTACTS_PER_SOURCE: usize = 3;

/// How often at most, in the length of a window, a source is moved to the front of the LRU. To move it
/// touches its neighbours in the list, which costs more than all the rest; so the order of the LRU is
/// true to about a second only.
const PROMOTIONS_PER_SPAN: u32 = 64;

/// Whose ports are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) source: IpNet,
    pub(super) destination: Option<IpAddr>,
}

/// A key with its hash, taken once for both stages.
#[derive(Clone, Copy, PartialEq, Eq)]
struct HashedKey {
    tag: Tag,
    key: Key,
}

impl Hash for HashedKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.tag);
    }
}

/// Passes a hash through that was taken before, with a key nobody knows.
#[derive(Clone, Default)]
struct AlreadyHashed(u64);

impl Hasher for AlreadyHashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Never called by `HashedKey`; right all the same.
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

impl BuildHasher for AlreadyHashed {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        Self(0)
    }
}

/// What is remembered of a source that has tried several ports.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) window: Window,
    /// Its probes since it was first remembered.
    pub(super) probes: u64,
    /// One of them was no ordinary connection attempt.
    pub(super) stealthy: bool,
    /// When it was last reported.
    pub(super) reported: Option<Moment>,
    /// When it was last moved to the front of the LRU.
    promoted: Moment,
}

impl Memory {
    fn new(ports: usize) -> Self {
        Self {
            window: Window::for_threshold(ports),
            probes: 0,
            stealthy: false,
            reported: None,
            promoted: Moment::default(),
        }
    }
}

/// All that is remembered.
pub(super) struct Sources {
    several_ports: LruCache<HashedKey, Memory, AlreadyHashed>,
    one_port: FirstContacts,
    hasher: RandomState,
    promote_after: Duration,
    evicted: u64,
}

impl Sources {
    /// Room for so many sources that have tried several ports, and some times as many others, for a
    /// window of this length.
    pub(super) fn new(capacity: usize, span: Duration) -> Self {
        let several = NonZeroUsize::new(capacity).unwrap_or(NonZeroUsize::MIN);
        Self {
            several_ports: LruCache::unbounded_with_hasher(AlreadyHashed::default()),
            one_port: FirstContacts::new(several.get().saturating_mul(FIRST_CONTACTS_PER_SOURCE)),
            hasher: RandomState::new(),
            promote_after: span / PROMOTIONS_PER_SPAN,
            evicted: 0,
        }
        .bounded(several)
    }

    fn bounded(mut self, capacity: NonZeroUsize) -> Self {
        // Made without a bound first: with one, the table would take all its memory at once.
        self.several_ports.resize(capacity);
        self
    }

    /// Lets `consider` look at the memory of a source that tries a port; does not, as long as it is the
    /// source's only one. A memory that is new holds the first port already, but not this one.
    pub(super) fn on_probe<T>(
        &mut self,
        key: Key,
        probe: &Probe,
        now: Moment,
        ports: usize,
        span: Duration,
        consider: impl FnOnce(&mut Memory) -> Option<T>,
    ) -> Option<T> {
        let key = HashedKey { tag: self.tag(&key), key };
        if let Some(memory) = self.several_ports.peek_mut(&key) {
            let long_ago = now.is_past(memory.promoted, self.promote_after);
            let result = consider(memory);
            if long_ago {
                memory.promoted = now;
                self.several_ports.promote(&key);
            }
            return result;
        }
        let stealthy = !probe.kind.opens_connection();
        let newcomer = Newcomer { tag: key.tag, port: probe.port, stealthy };
        let first = match self.one_port.meet(newcomer, now, span) {
            Meeting::Waits { evicted } => {
                self.evicted += u64::from(evicted);
                return None;
            }
            Meeting::SecondPort(first) => first,
        };
        let mut memory = self.recycled_memory(now, ports, span);
        memory.window.record(first.port, first.moment, ports, span);
        memory.probes = first.probes.into();
        memory.stealthy = first.stealthy;
        memory.promoted = now;
        let result = consider(&mut memory);
        self.several_ports.push(key, memory);
        result
    }

    /// An empty memory. That of a source that has to go serves again: a flood allocates nothing.
    fn recycled_memory(&mut self, now: Moment, ports: usize, span: Duration) -> Memory {
        let full = self.several_ports.len() == self.several_ports.cap().get();
        let Some((_, mut old)) = full.then(|| self.several_ports.pop_lru()).flatten() else {
            return Memory::new(ports);
        };
        let of_use = old.window.latest().is_some_and(|latest| !now.is_past(latest, span));
        self.evicted += u64::from(of_use);
        old.window.clear();
        Memory { window: old.window, ..Memory::new(0) }
    }

    /// A source has not been reported after all.
    pub(super) fn not_reported(&mut self, key: Key) {
        let key = HashedKey { tag: self.tag(&key), key };
        if let Some(memory) = self.several_ports.peek_mut(&key) {
            memory.reported = None;
        }
    }

    /// Forgets all that is known of a network, and of what lies in it or around it.
    pub(super) fn forget(&mut self, network: IpNet) {
        let key = Key { source: network, destination: None };
        let exact = HashedKey { tag: self.tag(&key), key };
        // A single port is no evidence worth forgetting, except that of the network itself.
        self.one_port.forget(exact.tag);
        if self.several_ports.pop(&exact).is_some() {
            return;
        }
        let known: Vec<HashedKey> = self
            .several_ports
            .iter()
            .map(|(key, _)| *key)
            .filter(|hashed| overlap(&hashed.key.source, &network))
            .collect();
        for key in known {
            self.several_ports.pop(&key);
        }
    }

    /// Sources remembered at the moment.
    pub(super) fn len(&self) -> usize {
        self.several_ports.len() + self.one_port.len()
    }

    /// Sources that had to go for others while what was known of them was still of use.
    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }

    fn tag(&self, key: &Key) -> Tag {
        let mut hasher = self.hasher.build_hasher();
        let (source, family) = bits(key.source.addr());
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
    use crate::probe::{Port, ProbeKind};

    const SPAN: Duration = Duration::from_secs(60);

    fn key(number: u32) -> Key {
        Key { source: IpAddr::from(number.to_be_bytes()).into(), destination: None }
    }

    fn at(seconds: u64) -> Moment {
        Moment::from_nanos(seconds * 1_000_000_000)
    }

    fn probe(port: u16) -> Probe {
        Probe {
            moment: Moment::default(),
            source: [0, 0, 0, 0].into(),
            destination: [0, 0, 0, 0].into(),
            source_port: Port(1),
            port: Port(port),
            kind: ProbeKind::Syn,
        }
    }

    #[test]
    fn a_flood_of_single_probes_pushes_nobody_out_who_tried_two() {
        let mut sources = Sources::new(1024, SPAN);
        let mut meet = |source, port, second| {
            sources.on_probe(key(source), &probe(port), at(second), 3, SPAN, |memory| {
                memory.window.record(Port(port), at(second), 3, SPAN);
                Some(memory.window.attempts().map(|attempt| attempt.port.0).collect::<Vec<_>>())
            })
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
    fn every_key_has_its_own_bytes() {
        let sources = Sources::new(1024, SPAN);
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
    }
}
