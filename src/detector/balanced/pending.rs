//! Connections that have begun: what became of them is not known yet, or may still change.
//!
//! Pure. A ring in the order in which they began, so that who is due is always at a known place, and an
//! index by addresses and ports. When it is full the oldest goes, and is counted if nobody knows yet what
//! became of it.

#![expect(
    clippy::cast_possible_truncation,
    reason = "hashes are cut to the bits that are needed, places fit by construction"
)]

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::numbers::{ANSWERS_ITSELF_WITHIN, ANSWERS_WITHIN, REPEATED_AFTER, SETTLED_AFTER};
use crate::clock::Moment;
use crate::probe::{Port, Probe};

/// The end of time.
const NEVER: Moment = Moment::from_nanos(u64::MAX);

/// A connection by its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flow {
    pub(super) client: IpAddr,
    pub(super) server: IpAddr,
    pub(super) client_port: Port,
    pub(super) port: Port,
}

impl Flow {
    /// The flow of which the sender of this segment is the client.
    pub(super) fn from_client(segment: &Probe) -> Self {
        Self {
            client: segment.source,
            server: segment.destination,
            client_port: segment.source_port,
            port: segment.port,
        }
    }

    /// The flow of which the sender of this segment is the server.
    pub(super) fn from_server(segment: &Probe) -> Self {
        Self {
            client: segment.destination,
            server: segment.source,
            client_port: segment.port,
            port: segment.source_port,
        }
    }
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing was heard.
    Begun,
    /// Nothing was heard in time: it has been counted as failed.
    GivenUp,
    /// The server has answered.
    Answered,
    /// There is no more to learn.
    Over,
}

/// A connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    pub(super) flow: Flow,
    pub(super) moment: Moment,
    /// The hash of its source and host; and of all of it, as far as the index wants it.
    pub(super) pair: u64,
    hash: u32,
    /// When it was answered, in milliseconds after its begin.
    pub(super) answered_after: u16,
    pub(super) stage: Stage,
    /// The lowest byte of the client's sequence number, and of the server's.
    pub(super) sequence: u8,
    pub(super) answer: u8,
    /// The client is no operating system's, see [`Probe::bare`].
    pub(super) bare: bool,
    /// Nothing listens on the port, as far as is known.
    pub(super) closed: bool,
    /// The client has asked again.
    pub(super) repeated: bool,
    next: u32,
}

/// The time of a connection is up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    pub(super) begun: Begun,
    /// Since when it is: perhaps long ago, if nothing was seen meanwhile.
    pub(super) at: Moment,
    /// It was answered, and nothing bad was seen since; else nothing was heard in time.
    pub(super) answered: bool,
}

/// The connections.
pub(super) struct Pending {
    ring: Vec<Begun>,
    heads: Vec<u32>,
    /// Numbers of the oldest; of the next; and of the next to be looked at for each time.
    first: u64,
    end: u64,
    itself: u64,
    others: u64,
    evicted: u64,
}

impl Pending {
    /// Room for so many: a power of two.
    pub(super) fn new(capacity: usize) -> Self {
        let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let none = Begun {
            flow: Flow { client: nobody, server: nobody, client_port: Port(0), port: Port(0) },
            moment: Moment::default(),
            pair: 0,
            hash: 0,
            answered_after: 0,
            stage: Stage::Over,
            sequence: 0,
            answer: 0,
            bare: false,
            closed: false,
            repeated: false,
            next: 0,
        };
        let capacity = capacity.next_power_of_two();
        Self {
            ring: vec![none; capacity],
            heads: vec![0; capacity * 2],
            first: 0,
            end: 0,
            itself: 0,
            others: 0,
            evicted: 0,
        }
    }

    /// Connections that had to go before it was known what became of them.
    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }

    /// A connection begins, or its client asks again. `pair` is the hash of its source and host.
    pub(super) fn begin(&mut self, probe: &Probe, hash: u64, pair: u64, now: Moment, closed: bool) {
        let flow = Flow::from_client(probe);
        if let Some(known) = self.find(hash, &flow)
            && (known.stage != Stage::Over || known.sequence == probe.sequence)
        {
            known.repeated |= now.is_past(known.moment, REPEATED_AFTER);
            return;
        }
        if self.end - self.first == self.ring.len() as u64 {
            let oldest = self.slot(self.first);
            self.evicted += u64::from(self.ring[oldest].stage == Stage::Begun);
            self.drop_first();
        }
        let (slot, home) = (self.slot(self.end), self.home(hash as u32));
        self.ring[slot] = Begun {
            flow,
            moment: now,
            pair,
            hash: hash as u32,
            answered_after: 0,
            stage: Stage::Begun,
            sequence: probe.sequence,
            answer: 0,
            bare: probe.bare,
            closed,
            repeated: false,
            next: self.heads[home],
        };
        self.heads[home] = slot as u32 + 1;
        self.end += 1;
    }

    /// The latest connection between these ends, whose hash this is.
    pub(super) fn find(&mut self, hash: u64, flow: &Flow) -> Option<&mut Begun> {
        let mut at = self.heads[self.home(hash as u32)];
        while let Some(slot) = at.checked_sub(1) {
            if self.ring[slot as usize].flow == *flow {
                return Some(&mut self.ring[slot as usize]);
            }
            at = self.ring[slot as usize].next;
        }
        None
    }

    /// What is due by now, one after the other, in the order in which it is.
    pub(super) fn due(&mut self, now: Moment) -> Option<Due> {
        loop {
            let (first, itself, others) = (
                self.time_of(self.first, SETTLED_AFTER),
                self.time_of(self.itself, ANSWERS_ITSELF_WITHIN),
                self.time_of(self.others, ANSWERS_WITHIN),
            );
            let at = first.min(itself).min(others);
            if at > now {
                return None;
            }
            if at == first {
                let begun = self.ring[self.slot(self.first)];
                self.drop_first();
                if begun.stage == Stage::Answered {
                    return Some(Due { begun, at, answered: true });
                }
                continue;
            }
            let number = if at == itself { &mut self.itself } else { &mut self.others };
            *number += 1;
            let slot = self.slot(if at == itself { self.itself } else { self.others } - 1);
            let begun = &mut self.ring[slot];
            if begun.stage == Stage::Begun && (begun.closed || at != itself) {
                begun.stage = Stage::GivenUp;
                return Some(Due { begun: *begun, at, answered: false });
            }
        }
    }

    /// Reads what leads to a connection of this hash.
    pub(super) fn read(&self, hash: u64) -> u64 {
        self.heads[self.home(hash as u32)].into()
    }

    /// Reads what leads to so many of the oldest.
    pub(super) fn read_oldest(&self, count: usize) -> u64 {
        let oldest = (self.first..self.end).take(count).map(|number| &self.ring[self.slot(number)]);
        oldest.fold(0, |read, begun| read ^ self.read(begun.hash.into()))
    }

    /// So many of those whose answers this host itself would have to give next.
    pub(super) fn soon_due(&self, count: usize) -> impl Iterator<Item = &Begun> {
        (self.itself..self.end).take(count).map(|number| &self.ring[self.slot(number)])
    }

    /// Connections of which nothing was heard, the oldest first.
    pub(super) fn unanswered(&self) -> impl Iterator<Item = Begun> {
        let begun = (self.first..self.end).map(|number| self.ring[self.slot(number)]);
        begun.filter(|begun| matches!(begun.stage, Stage::Begun | Stage::GivenUp))
    }

    /// Whether anything waits for its time.
    pub(super) fn is_waiting(&self) -> bool {
        self.first < self.end
    }

    /// Forgets all that have begun and not been heard of: what was lost may have been their answers.
    pub(super) fn give_nobody_up(&mut self) {
        for number in self.first..self.end {
            let slot = self.slot(number);
            if self.ring[slot].stage == Stage::Begun {
                self.ring[slot].stage = Stage::Over;
            }
        }
    }

    /// When the time of a connection is up; never, for the next one.
    fn time_of(&self, number: u64, after: Duration) -> Moment {
        if number < self.end { self.ring[self.slot(number)].moment + after } else { NEVER }
    }

    fn drop_first(&mut self) {
        let slot = self.slot(self.first);
        let (home, next) = (self.home(self.ring[slot].hash), self.ring[slot].next);
        let wanted = slot as u32 + 1;
        if self.heads[home] == wanted {
            self.heads[home] = next;
        } else {
            let mut at = self.heads[home];
            while let Some(before) = at.checked_sub(1) {
                at = self.ring[before as usize].next;
                if at == wanted {
                    self.ring[before as usize].next = next;
                    break;
                }
            }
        }
        self.first += 1;
        self.itself = self.itself.max(self.first);
        self.others = self.others.max(self.first);
    }

    fn slot(&self, number: u64) -> usize {
        number as usize & (self.ring.len() - 1)
    }

    fn home(&self, hash: u32) -> usize {
        hash as usize & (self.heads.len() - 1)
    }
}
