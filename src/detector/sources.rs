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
use crate::probe::Probe;

/// Places for first contacts per source of the second kind. At the default of 131,072 sources that
/// is room for two seconds of a flood of 200,000 forged sources a second: a scanner of one probe a
/// second is still there when its second comes.
const FIRST_CONTACTS_PER_SOURCE: usize = 3;

/// Whose ports are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
}

/// All that is remembered.
pub(super) struct Sources {
    several_ports: LruCache<HashedKey, Memory, AlreadyHashed>,
    one_port: FirstContacts,
    hasher: RandomState,
    evicted: u64,
}

impl Sources {
    /// Room for so many sources that have tried several ports, and some times as many others.
    pub(super) fn new(capacity: usize) -> Self {
        let several = NonZeroUsize::new(capacity).unwrap_or(NonZeroUsize::MIN);
        Self {
            several_ports: LruCache::unbounded_with_hasher(AlreadyHashed::default()),
            one_port: FirstContacts::new(several.get().saturating_mul(FIRST_CONTACTS_PER_SOURCE)),
            hasher: RandomState::new(),
            evicted: 0,
        }
        .bounded(several)
    }

    fn bounded(mut self, capacity: NonZeroUsize) -> Self {
        // Made without a bound first: with one, the table would take all its memory at once.
        self.several_ports.resize(capacity);
        self
    }

    /// The memory of a source that tries a port; none as long as it is its only one. A memory that is
    /// new holds the first port already, but not this one.
    pub(super) fn on_probe(
        &mut self,
        key: Key,
        probe: &Probe,
        now: Moment,
        ports: usize,
        span: Duration,
    ) -> Option<&mut Memory> {
        let key = HashedKey { tag: self.tag(&key), key };
        if !self.several_ports.contains(&key) {
            let stealthy = !probe.kind.opens_connection();
            let newcomer = Newcomer { tag: key.tag, port: probe.port, stealthy };
            let first = match self.one_port.meet(newcomer, now, span) {
                Meeting::Waits { evicted } => {
                    self.evicted += u64::from(evicted);
                    return None;
                }
                Meeting::SecondPort(first) => first,
            };
            // The memory of a source that has to go serves the new one: a flood allocates nothing.
            let full = self.several_ports.len() == self.several_ports.cap().get();
            let recycled = if full { self.several_ports.pop_lru() } else { None };
            let mut window = Window::for_threshold(ports);
            if let Some((_, old)) = recycled {
                let of_use = old.window.latest().is_some_and(|latest| now.since(latest) < span);
                self.evicted += u64::from(of_use);
                window = old.window;
                window.clear();
            }
            window.record(first.port, first.moment, ports, span);
            let probes = first.probes.into();
            let memory = Memory { window, probes, stealthy: first.stealthy, reported: None };
            self.several_ports.push(key, memory);
        }
        self.several_ports.get_mut(&key)
    }

    /// Forgets all that is known of the sources in a network.
    pub(super) fn forget(&mut self, network: IpNet) {
        let known: Vec<HashedKey> = self
            .several_ports
            .iter()
            .map(|(key, _)| *key)
            .filter(|hashed| {
                let source = hashed.key.source;
                network.contains(&source) || source.contains(&network)
            })
            .collect();
        for key in known {
            self.several_ports.pop(&key);
        }
        // A single port is no evidence worth forgetting, except that of the network itself.
        self.one_port.forget(self.tag(&Key { source: network, destination: None }));
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
        let mut bytes = [0u8; 36];
        let (source, rest) = bytes.split_at_mut(18);
        write_address(source, Some(key.source.addr()));
        source[17] = key.source.prefix_len();
        write_address(rest, key.destination);
        self.hasher.hash_one(bytes)
    }
}

/// An address as 17 bytes, different for any two.
fn write_address(bytes: &mut [u8], address: Option<IpAddr>) {
    match address {
        None => {}
        Some(IpAddr::V4(address)) => {
            bytes[0] = 4;
            bytes[1..5].copy_from_slice(&address.octets());
        }
        Some(IpAddr::V6(address)) => {
            bytes[0] = 6;
            bytes[1..17].copy_from_slice(&address.octets());
        }
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
        let mut sources = Sources::new(1024);
        assert!(sources.on_probe(key(7), &probe(1), at(0), 3, SPAN).is_none());
        let memory = sources.on_probe(key(7), &probe(2), at(0), 3, SPAN).unwrap();
        memory.window.record(Port(2), at(0), 3, SPAN);
        for number in 1000..1_000_000 {
            assert!(sources.on_probe(key(number), &probe(80), at(1), 3, SPAN).is_none());
        }
        let memory = sources.on_probe(key(7), &probe(3), at(2), 3, SPAN).unwrap();
        let ports: Vec<u16> = memory.window.attempts().map(|attempt| attempt.port.0).collect();
        assert_eq!(ports, [1, 2], "the third is for the caller to record");
        assert_eq!(sources.len(), 1 + 3 * 1024);
        assert_eq!(sources.evicted(), 999_000 - 3 * 1024);
    }

    #[test]
    fn every_key_has_its_own_bytes() {
        let sources = Sources::new(1024);
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
