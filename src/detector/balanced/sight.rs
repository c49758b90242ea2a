//! Whether answers can be seen at all, and on which ports somebody is known to answer.
//!
//! Pure. A mirror port may show one direction only, and an asymmetric route hides the answers of a part of
//! the connections. Then silence means nothing. Owns noticing it; a single source cannot feign it.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

use super::numbers::{
    KNOWN_OPEN_FOR, OPEN_PORTS, UNANSWERED_IN_A_ROW, UNANSWERED_SOURCES, UNSEEN_FOR, UNSEEN_SOURCES,
};
use crate::clock::Moment;
use crate::probe::Port;

/// What can be seen.
pub(super) struct Sight {
    hasher: RandomState,
    /// Probes since the last answer, and a bit for each of their sources.
    unanswered: u32,
    sources: u64,
    /// A bit for each source whose connections went on though they seemed unanswered, since when.
    unseen: u64,
    since: Moment,
    one_sided: Option<Moment>,
}

impl Sight {
    pub(super) fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            unanswered: 0,
            sources: 0,
            unseen: 0,
            since: Moment::default(),
            one_sided: None,
        }
    }

    /// Whether silence means anything.
    pub(super) fn is_one_sided(&self) -> bool {
        self.one_sided.is_some()
    }

    /// Somebody has answered.
    pub(super) fn answered(&mut self, now: Moment) {
        (self.unanswered, self.sources) = (0, 0);
        if self.one_sided.is_some_and(|since| now.is_past(since, UNSEEN_FOR) || self.unseen == 0) {
            self.one_sided = None;
        }
    }

    /// A probe has stayed unanswered.
    pub(super) fn unanswered(&mut self, source: IpAddr, now: Moment) {
        self.unanswered = self.unanswered.saturating_add(1);
        self.sources |= self.bit(source);
        if self.unanswered >= UNANSWERED_IN_A_ROW && many(self.sources, UNANSWERED_SOURCES) {
            self.one_sided.get_or_insert(now);
        }
    }

    /// A connection went on whose answer was not seen.
    pub(super) fn unseen(&mut self, source: IpAddr, now: Moment) {
        if now.is_past(self.since, UNSEEN_FOR) {
            (self.since, self.unseen) = (now, 0);
        }
        self.unseen |= self.bit(source);
        if many(self.unseen, UNSEEN_SOURCES) {
            self.one_sided = Some(now);
        }
    }

    fn bit(&self, source: IpAddr) -> u64 {
        1 << (self.hasher.hash_one(source) & 63)
    }
}

/// Whether a set of bits, chosen by chance, is of so many at least.
fn many(bits: u64, sources: u32) -> bool {
    bits.count_ones() >= sources
}

/// The ports on which somebody answers. Each has one place, which the latest takes.
pub(super) struct OpenPorts {
    places: Vec<(u64, Moment)>,
    hasher: RandomState,
}

impl OpenPorts {
    pub(super) fn new() -> Self {
        Self { places: vec![(0, Moment::default()); OPEN_PORTS], hasher: RandomState::new() }
    }

    /// A host has answered on a port.
    pub(super) fn note(&mut self, host: IpAddr, port: Port, now: Moment) {
        let (tag, at) = self.place(host, port);
        self.places[at] = (tag, now);
    }

    /// Whether a host has answered anybody on a port lately.
    pub(super) fn knows(&self, host: IpAddr, port: Port, now: Moment) -> bool {
        let (tag, at) = self.place(host, port);
        let (known, moment) = self.places[at];
        known == tag && !now.is_past(moment, KNOWN_OPEN_FOR)
    }

    fn place(&self, host: IpAddr, port: Port) -> (u64, usize) {
        let tag = self.hasher.hash_one((host, port)) | 1;
        (tag, (tag >> 32) as usize & (OPEN_PORTS - 1))
    }
}
