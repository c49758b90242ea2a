//! The rules that only report: very many ports by one source, whatever the outcome, and failed ports of one
//! host by many sources (a distributed scan).
//!
//! Pure. Owns a fixed number of places. Counts ports and sources as bits of hashes, which is exact enough for
//! "very many".

use crate::detect::balanced::thresholds::{MANY_PORTS, MANY_SOURCES, MANY_SOURCES_AT_LEAST};
use crate::types::{Moment, Port};

/// How many sources, or hosts, are followed at a time.
const PLACES: usize = 512;
const BITS: usize = 512;

#[derive(Clone, Copy)]
struct Place {
    tag: u64,
    begun: Moment,
    ports: [u64; BITS / 64],
    sources: u64,
    reported: bool,
}

const EMPTY: Place = Place {
    tag: 0,
    begun: Moment::from_nanos(0),
    ports: [0; BITS / 64],
    sources: 0,
    reported: false,
};

impl Place {
    /// How many distinct ports there are at least.
    fn ports(&self) -> usize {
        self.ports.iter().map(|word| word.count_ones() as usize).sum()
    }

    fn set(&mut self, port: Port) {
        // Two ports may share a bit. The count is then too low, never too high.
        let bit = usize::from(port.0.wrapping_mul(0x9e37) >> 7);
        self.ports[bit / 64] |= 1 << (bit % 64);
    }
}

/// The sources and hosts that are followed.
pub struct ReportOnly {
    by_pair: Vec<Place>,
    by_host: Vec<Place>,
}

impl ReportOnly {
    pub fn new() -> Self {
        Self { by_pair: vec![EMPTY; PLACES], by_host: vec![EMPTY; PLACES] }
    }

    /// Takes note of a port that has replied, given the hash of source and host. Returns true once, when there
    /// are very many ports.
    pub fn answered(&mut self, pair: u64, port: Port, now: Moment) -> bool {
        let place = &mut self.by_pair[(pair >> 32) as usize % PLACES];
        if place.tag != pair || now.is_past(place.begun, MANY_PORTS.within) {
            // A source with one port does not evict a source with many.
            let busy = place.tag != pair && place.ports() > MANY_PORTS.more_than / 4;
            if busy && !now.is_past(place.begun, MANY_PORTS.within) {
                return false;
            }
            *place = Place { tag: pair, begun: now, ..EMPTY };
        }
        place.set(port);
        let many = !place.reported && place.ports() > MANY_PORTS.more_than;
        place.reported |= many;
        many
    }

    /// Takes note of a failed port of the host with this hash. Returns true once, when there are too many ports
    /// and too many sources.
    pub fn failed(&mut self, host: u64, source: u64, port: Port, now: Moment) -> bool {
        let place = &mut self.by_host[(host >> 32) as usize % PLACES];
        if place.tag != host || now.is_past(place.begun, MANY_SOURCES.within) {
            *place = Place { tag: host, begun: now, ..EMPTY };
        }
        place.set(port);
        place.sources |= 1 << (source & 63);
        let many = !place.reported
            && place.sources.count_ones() >= MANY_SOURCES_AT_LEAST
            && place.ports() > MANY_SOURCES.more_than;
        place.reported |= many;
        many
    }
}
