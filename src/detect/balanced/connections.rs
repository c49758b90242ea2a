//! Connections that have begun: what became of them is not known yet, or may still change.
//!
//! Pure. A ring in the order in which they began, so that who is due is always at a known place, and an
//! index by addresses and ports. When it is full the oldest goes, and is counted if nobody knows yet what
//! became of it.
//!
//! The index is one of chains, the latest first. Who goes is the oldest, and so the last of its chain:
//! its end is where links become too old, and nothing need be unlinked.

#![expect(
    clippy::cast_possible_truncation,
    reason = "hashes are cut to the bits that are needed, places fit by construction"
)]

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::detect::balanced::thresholds::{
    ANSWERS_ITSELF_WITHIN, ANSWERS_WITHIN, REPEATED_AFTER, SETTLED_AFTER,
};
use crate::types::clock::Moment;
use crate::types::segment::{Port, Segment};

/// The end of time.
const NEVER: Moment = Moment::from_nanos(u64::MAX);

/// A connection by its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    pub client: IpAddr,
    pub server: IpAddr,
    pub client_port: Port,
    pub port: Port,
}

impl Flow {
    /// The flow of which the sender of this segment is the client.
    pub fn from_client(segment: &Segment) -> Self {
        Self {
            client: segment.source,
            server: segment.destination,
            client_port: segment.source_port,
            port: segment.port,
        }
    }

    /// The flow of which the sender of this segment is the server.
    pub fn from_server(segment: &Segment) -> Self {
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
pub enum Stage {
    /// Nothing was heard.
    Begun,
    /// Nothing was heard in time: it has been counted as failed.
    GivenUp,
    /// The server has answered.
    Answered,
    /// There is no more to learn.
    Over,
}

/// A connection: a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub struct Begun {
    pub flow: Flow,
    pub moment: Moment,
    /// The hash of its source and host.
    pub pair: u64,
    /// When it was answered, in milliseconds after its begin.
    pub answered_after: u16,
    pub stage: Stage,
    /// The lowest byte of the client's sequence number, and of the server's.
    pub sequence: u8,
    pub answer: u8,
    /// The client is no operating system's, see [`Segment::bare`].
    pub crafted: bool,
    /// Nothing listens on the port, as far as is known.
    pub closed: bool,
    /// The client has asked again.
    pub repeated: bool,
}

/// The way to a connection: the lower bits of its number, and a few of its hash, so that most that are
/// looked for in vain are not even looked at.
///
/// Numbers come again. What is found by a link of long ago is another connection, which is seen by its ends.
#[derive(Clone, Copy, Default)]
struct Link(u32);

impl Link {
    const NUMBERS: u32 = (1 << 24) - 1;

    fn to(number: u64, hash: u64) -> Self {
        Self(number as u32 & Self::NUMBERS | Self::tag(hash))
    }

    fn may_be_of(self, hash: u64) -> bool {
        self.0 & !Self::NUMBERS == Self::tag(hash)
    }

    /// How many have begun since, itself among them.
    fn age(self, end: u64) -> u64 {
        u64::from((end as u32).wrapping_sub(self.0) & Self::NUMBERS)
    }

    /// Not of those bits that choose the chain.
    fn tag(hash: u64) -> u32 {
        (hash >> 32) as u32 & !Self::NUMBERS
    }
}

/// The time of a connection is up.
#[derive(Clone, Copy, Debug)]
pub struct Due {
    pub begun: Begun,
    /// Since when it is: perhaps long ago, if nothing was seen meanwhile.
    pub at: Moment,
    /// It was answered, and nothing bad was seen since; else nothing was heard in time.
    pub answered: bool,
}

/// The connections.
pub struct Pending {
    ring: Vec<Begun>,
    /// The latest of each chain, and the one before each.
    heads: Vec<Link>,
    before: Vec<Link>,
    /// Numbers of the oldest; of the next; and of the next to be looked at for each time.
    first: u64,
    end: u64,
    itself: u64,
    others: u64,
    evicted: u64,
}

impl Pending {
    /// Room for so many: a power of two.
    pub fn new(capacity: usize) -> Self {
        let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let none = Begun {
            flow: Flow { client: nobody, server: nobody, client_port: Port(0), port: Port(0) },
            moment: Moment::default(),
            pair: 0,
            answered_after: 0,
            stage: Stage::Over,
            sequence: 0,
            answer: 0,
            crafted: false,
            closed: false,
            repeated: false,
        };
        let capacity = capacity.next_power_of_two();
        Self {
            ring: vec![none; capacity],
            heads: vec![Link::default(); capacity * 2],
            before: vec![Link::default(); capacity],
            first: 0,
            end: 0,
            itself: 0,
            others: 0,
            evicted: 0,
        }
    }

    /// Connections that had to go before it was known what became of them.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// A connection begins, or its client asks again. `pair` is the hash of its source and host.
    pub fn begin(&mut self, probe: &Segment, hash: u64, pair: u64, now: Moment, closed: bool) {
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
        let (slot, home) = (self.slot(self.end), self.home(hash));
        self.ring[slot] = Begun {
            flow,
            moment: now,
            pair,
            answered_after: 0,
            stage: Stage::Begun,
            sequence: probe.sequence,
            answer: 0,
            crafted: probe.crafted,
            closed,
            repeated: false,
        };
        self.before[slot] = std::mem::replace(&mut self.heads[home], Link::to(self.end, hash));
        self.end += 1;
    }

    /// The latest connection between these ends, whose hash this is.
    pub fn find(&mut self, hash: u64, flow: &Flow) -> Option<&mut Begun> {
        let (mut link, mut younger) = (self.heads[self.home(hash)], 0);
        loop {
            let age = link.age(self.end);
            if age <= younger || age > self.end - self.first {
                return None;
            }
            let slot = self.slot(self.end - age);
            if link.may_be_of(hash) && self.ring[slot].flow == *flow {
                return Some(&mut self.ring[slot]);
            }
            (link, younger) = (self.before[slot], age);
        }
    }

    /// What is due by now, one after the other, in the order in which it is.
    pub fn due(&mut self, now: Moment) -> Option<Due> {
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
    pub fn read(&self, hash: u64) -> u64 {
        self.heads[self.home(hash)].0.into()
    }

    /// So many of those whose answers this host itself would have to give next.
    pub fn soon_due(&self, count: usize) -> impl Iterator<Item = &Begun> {
        (self.itself..self.end).take(count).map(|number| &self.ring[self.slot(number)])
    }

    /// Connections of which nothing was heard, the oldest first.
    pub fn unanswered(&self) -> impl Iterator<Item = Begun> {
        let begun = (self.first..self.end).map(|number| self.ring[self.slot(number)]);
        begun.filter(|begun| matches!(begun.stage, Stage::Begun | Stage::GivenUp))
    }

    /// Whether anything waits for its time.
    pub fn is_waiting(&self) -> bool {
        self.first < self.end
    }

    /// Forgets all that have begun and not been heard of: what was lost may have been their answers.
    pub fn give_nobody_up(&mut self) {
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
        self.first += 1;
        self.itself = self.itself.max(self.first);
        self.others = self.others.max(self.first);
    }

    fn slot(&self, number: u64) -> usize {
        number as usize & (self.ring.len() - 1)
    }

    fn home(&self, hash: u64) -> usize {
        hash as usize & (self.heads.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::segment::SegmentKind;
    use proptest::prelude::*;

    fn probe(client_port: u16, sequence: u8) -> Segment {
        Segment {
            moment: Moment::default(),
            source: Ipv4Addr::new(192, 0, 2, 1).into(),
            destination: Ipv4Addr::new(192, 0, 2, 2).into(),
            source_port: Port(client_port),
            port: Port(80),
            kind: SegmentKind::Syn,
            sequence,
            acknowledged: 0,
            crafted: false,
        }
    }

    /// Some share a chain, and some of those what a link has of the hash.
    fn hash(client_port: u16) -> u64 {
        u64::from(client_port % 2) << 56 | u64::from(client_port % 3)
    }

    proptest! {
        /// Held against a list that is searched from end to end, where links' numbers begin anew.
        #[test]
        fn equals_a_list(
            begun_before in prop_oneof![Just(0), Just(u64::from(Link::NUMBERS) - 5)],
            steps in proptest::collection::vec((0..4u8, 0..9u16), 1..200),
        ) {
            let mut pending = Pending::new(8);
            (pending.first, pending.end) = (begun_before, begun_before);
            (pending.itself, pending.others) = (begun_before, begun_before);
            let mut list: Vec<(u16, u8, Moment)> = Vec::new();
            let mut now = Moment::from_nanos(1);
            for (number, (what, port)) in (0..).zip(steps) {
                if what == 0 {
                    now = now + SETTLED_AFTER / 4;
                    while pending.due(now).is_some() {}
                    list.retain(|(_, _, begun)| *begun + SETTLED_AFTER > now);
                } else {
                    let (probe, hash) = (probe(port, number), hash(port));
                    if let Some(known) = pending.find(hash, &Flow::from_client(&probe)) {
                        // The next is another connection.
                        known.stage = Stage::Over;
                    }
                    pending.begin(&probe, hash, 0, now, false);
                    list.push((port, number, now));
                    list = list.split_off(list.len().saturating_sub(8));
                }
                for port in 0..9 {
                    let found = pending.find(hash(port), &Flow::from_client(&probe(port, 0)));
                    let latest = list.iter().rev().find(|(known, ..)| *known == port);
                    prop_assert_eq!(found.map(|begun| begun.sequence), latest.map(|entry| entry.1));
                }
            }
        }
    }
}
