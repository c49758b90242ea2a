//! What is only reported: very many ports by one source whatever came of them, and failed ports of one
//! host by many sources.
//!
//! Pure. Ports and sources are counted as bits of hashes: that is enough for "very many".

use crate::detect::balanced::thresholds::{MANY_PORTS, MANY_SOURCES, MANY_SOURCES_AT_LEAST};
use crate::types::clock::Moment;
use crate::types::segment::Port;

/// Sources, or hosts, followed at a time; each has one place.
const PLACES: usize = 512;
const BITS: usize = 512;

#[derive(Clone, Copy)]
struct Place {
    tag: u64,
    begun: Moment,
    ports: [u64; BITS / 64],
    sources: u64,
    told: bool,
}

const EMPTY: Place =
    Place { tag: 0, begun: Moment::from_nanos(0), ports: [0; BITS / 64], sources: 0, told: false };

impl Place {
    /// So many distinct ports at the least.
    fn ports(&self) -> usize {
        self.ports.iter().map(|word| word.count_ones() as usize).sum()
    }

    fn set(&mut self, port: Port) {
        // Two ports may share a bit: then there are more than were counted, never fewer.
        let bit = usize::from(port.0.wrapping_mul(0x9e37) >> 7);
        self.ports[bit / 64] |= 1 << (bit % 64);
    }
}

/// Those that are followed.
pub struct Crowds {
    by_pair: Vec<Place>,
    by_host: Vec<Place>,
}

impl Crowds {
    pub fn new() -> Self {
        Self { by_pair: vec![EMPTY; PLACES], by_host: vec![EMPTY; PLACES] }
    }

    /// A source, of this hash together with the host, was answered on a port. True once, when its ports
    /// are very many.
    pub fn answered(&mut self, pair: u64, port: Port, now: Moment) -> bool {
        let place = &mut self.by_pair[(pair >> 32) as usize % PLACES];
        if place.tag != pair || now.is_past(place.begun, MANY_PORTS.within) {
            // Whoever has had many already is not pushed out by somebody with one.
            let busy = place.tag != pair && place.ports() > MANY_PORTS.more_than / 4;
            if busy && !now.is_past(place.begun, MANY_PORTS.within) {
                return false;
            }
            *place = Place { tag: pair, begun: now, ..EMPTY };
        }
        place.set(port);
        let many = !place.told && place.ports() > MANY_PORTS.more_than;
        place.told |= many;
        many
    }

    /// A source failed on a port of the host of this hash. True once, when there are too many of both.
    pub fn failed(&mut self, host: u64, source: u64, port: Port, now: Moment) -> bool {
        let place = &mut self.by_host[(host >> 32) as usize % PLACES];
        if place.tag != host || now.is_past(place.begun, MANY_SOURCES.within) {
            *place = Place { tag: host, begun: now, ..EMPTY };
        }
        place.set(port);
        place.sources |= 1 << (source & 63);
        let many = !place.told
            && place.sources.count_ones() >= MANY_SOURCES_AT_LEAST
            && place.ports() > MANY_SOURCES.more_than;
        place.told |= many;
        many
    }
}
