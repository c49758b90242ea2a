//! Connections whose outcome is not known yet or may still change.
//!
//! Pure. Owns the half-open connections, in a ring in the order in which they began. The connections whose
//! time is up are therefore always at a known position. When the ring is full, the oldest connection is
//! evicted, and returned if its outcome is unknown.
//!
//! The index consists of chains, latest connection first. The connection that is evicted is the oldest one,
//! and so the last of its chain. A chain ends where a link is too old, so nothing needs to be unlinked.

#![expect(
    clippy::cast_possible_truncation,
    reason = "hashes are cut to the bits that are needed, and the capacity fits"
)]

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::detect::balanced::thresholds::{
    ANSWERS_ITSELF_WITHIN, ANSWERS_WITHIN, REPEATED_AFTER, SERVICE_PORTS_BELOW, SETTLED_AFTER,
    SYSTEM_PORTS_BELOW,
};
use crate::types::{Host, Moment, Port, Segment};

/// The end of time.
const NEVER: Moment = Moment::from_nanos(u64::MAX);

/// Stands for this host.
pub const UNSPECIFIED: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// The two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    pub client: IpAddr,
    pub server: IpAddr,
    pub client_port: Port,
    pub port: Port,
}

impl Flow {
    /// The flow of a segment that the client has sent.
    pub fn from_client(segment: &Segment) -> Self {
        Self {
            client: segment.source,
            server: segment.destination,
            client_port: segment.source_port,
            port: segment.port,
        }
    }

    /// The flow of a segment that the server has sent.
    pub fn from_server(segment: &Segment) -> Self {
        Self {
            client: segment.destination,
            server: segment.source,
            client_port: segment.port,
            port: segment.source_port,
        }
    }

    /// The address under which open ports of the server are remembered. All addresses of this host share one,
    /// because a client that is refused over IPv6 continues with IPv4.
    pub fn server_key(&self, host: &Host) -> IpAddr {
        if host.owns(self.server) { UNSPECIFIED } else { self.server }
    }

    /// Whether an out-of-state segment of the client may be a probe. Otherwise it is what a server has sent to
    /// a client that was gone already.
    pub fn is_towards_a_service(&self) -> bool {
        let to_a_service = self.port.0 < SERVICE_PORTS_BELOW;
        let from_a_service = self.client_port.0 < SERVICE_PORTS_BELOW;
        self.port.0 < SYSTEM_PORTS_BELOW || to_a_service && !from_a_service
    }
}

/// A probe that has, or waits for, an outcome.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    pub flow: Flow,
    /// The hash of source and host.
    pub pair: u64,
    pub moment: Moment,
    /// See [`Segment::crafted`].
    pub crafted: bool,
}

/// The state of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// No reply so far.
    Opening,
    /// No reply in time: the connection was counted as failed.
    TimedOut,
    /// The server has replied.
    Answered,
    /// The outcome is final.
    Over,
}

/// What a reply of the server means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The first reply. The connection may have timed out before.
    First { timed_out: bool },
    /// The server repeats its reply because the client was silent: the connection stays half-open.
    Repeated,
    /// A copy, or a reply to a client that has asked again.
    Other,
}

/// A connection, which takes a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub struct Connection {
    probe: Probe,
    /// When the server replied, in milliseconds after the beginning.
    answered_after: u16,
    /// See [`Segment::sender`].
    sender: u16,
    stage: Stage,
    /// The lowest byte of the client's sequence number.
    sequence: u8,
    /// The lowest byte of the server's sequence number.
    reply_sequence: u8,
    /// [`CLOSED`], [`REPEATED`], [`CONTINUED`].
    flags: u8,
}

/// No service listens on the port, as far as known.
const CLOSED: u8 = 1;
/// The client has repeated its SYN.
const REPEATED: u8 = 2;
/// The client has gone on although no reply was seen.
const CONTINUED: u8 = 4;

impl Connection {
    const NONE: Self = Self {
        probe: Probe {
            flow: Flow {
                client: UNSPECIFIED,
                server: UNSPECIFIED,
                client_port: Port(0),
                port: Port(0),
            },
            pair: 0,
            moment: Moment::from_nanos(0),
            crafted: false,
        },
        answered_after: 0,
        sender: 0,
        stage: Stage::Over,
        sequence: 0,
        reply_sequence: 0,
        flags: 0,
    };

    pub fn probe(&self) -> Probe {
        self.probe
    }

    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Whether no service listens on the port, as far as known.
    pub fn is_closed(&self) -> bool {
        self.flags & CLOSED != 0
    }

    /// The hardware address that sent the SYN, as [`Segment::sender`].
    pub fn sender(&self) -> u16 {
        self.sender
    }

    /// Takes note that the client has gone on although no reply was seen.
    pub fn set_continued(&mut self) {
        self.flags |= CONTINUED;
    }

    /// Whether the client has gone on although no reply was seen.
    pub fn has_continued(&self) -> bool {
        self.flags & CONTINUED != 0
    }

    /// Whether the reply came so late that an honest client may have given up.
    pub fn was_answered_late(&self) -> bool {
        u128::from(self.answered_after) >= REPEATED_AFTER.as_millis()
    }

    /// Ends the connection. Returns its stage until now.
    pub fn finish(&mut self) -> Stage {
        std::mem::replace(&mut self.stage, Stage::Over)
    }

    /// Ends the connection if the server has replied. Returns its stage until now.
    pub fn finish_if_answered(&mut self) -> Stage {
        if self.stage == Stage::Answered { self.finish() } else { self.stage }
    }

    /// Takes note of a SYN-ACK with this lowest byte of its sequence number.
    pub fn on_reply(&mut self, sequence: u8, now: Moment) -> Reply {
        let after = now.since(self.probe.moment);
        match self.stage {
            Stage::Opening | Stage::TimedOut => {
                let timed_out = self.stage == Stage::TimedOut;
                self.stage = Stage::Answered;
                self.answered_after = u16::try_from(after.as_millis()).unwrap_or(u16::MAX);
                self.reply_sequence = sequence;
                Reply::First { timed_out }
            }
            Stage::Answered
                if self.flags & REPEATED == 0
                    && after.as_millis()
                        >= u128::from(self.answered_after) + REPEATED_AFTER.as_millis() =>
            {
                self.stage = Stage::Over;
                Reply::Repeated
            }
            Stage::Answered | Stage::Over => Reply::Other,
        }
    }

    /// Whether a segment of the client shows that it has sent nothing but its SYN, which takes one sequence
    /// number.
    pub fn has_sent_nothing(&self, segment: &Segment) -> bool {
        segment.sequence == self.sequence.wrapping_add(1)
    }

    /// Whether a segment of the client shows that it has sent nothing but its SYN and has received nothing but
    /// the SYN-ACK.
    pub fn is_idle(&self, segment: &Segment) -> bool {
        self.has_sent_nothing(segment)
            && segment.acknowledged == self.reply_sequence.wrapping_add(1)
    }

    /// Whether a reset of the server refuses the SYN, so that the reply before was none of its own.
    pub fn is_refused_by(&self, segment: &Segment) -> bool {
        segment.sequence == 0
            && self.reply_sequence != u8::MAX
            && segment.acknowledged == self.sequence.wrapping_add(1)
    }

    /// Whether a message that quotes a segment quotes the SYN of this connection. A forged message has to
    /// guess its sequence number.
    pub fn is_quoted_by(&self, segment: &Segment) -> bool {
        segment.sequence == self.sequence
    }
}

/// A link to a connection: the lower bits of its number, and 8 bits of its hash, so that most lookups of
/// absent connections do not even read one.
///
/// Numbers wrap around. A link that is very old leads to another connection, which has another flow.
#[derive(Clone, Copy, Default)]
struct Link(u32);

impl Link {
    const NUMBERS: u32 = (1 << 24) - 1;

    fn to(number: u64, hash: u64) -> Self {
        Self(number as u32 & Self::NUMBERS | Self::tag(hash))
    }

    fn may_match(self, hash: u64) -> bool {
        self.0 & !Self::NUMBERS == Self::tag(hash)
    }

    /// How many connections have begun since, including the linked one.
    fn age(self, end: u64) -> u64 {
        u64::from((end as u32).wrapping_sub(self.0) & Self::NUMBERS)
    }

    /// Bits of the hash that do not select the chain.
    fn tag(hash: u64) -> u32 {
        (hash >> 32) as u32 & !Self::NUMBERS
    }
}

/// A connection whose time is up.
#[derive(Clone, Copy, Debug)]
pub struct Timeout {
    pub connection: Connection,
    /// When the time was up. That may be long ago if no segment has arrived since.
    pub at: Moment,
    /// The server has replied, and nothing bad was seen since. Otherwise no reply arrived in time.
    pub answered: bool,
}

/// The connections.
pub struct Connections {
    ring: Vec<Connection>,
    /// The latest connection of each chain.
    heads: Vec<Link>,
    /// For each connection, the previous one of its chain.
    previous: Vec<Link>,
    /// The number of the oldest connection.
    first: u64,
    /// The number of the next connection.
    end: u64,
    /// The next connection to check for a missing reply of this host's kernel.
    own_check: u64,
    /// The next connection to check for a missing reply of any host.
    check: u64,
}

impl Connections {
    /// Room for `capacity` connections, rounded up to a power of two.
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.next_power_of_two();
        Self {
            ring: vec![Connection::NONE; capacity],
            heads: vec![Link::default(); capacity * 2],
            previous: vec![Link::default(); capacity],
            first: 0,
            end: 0,
            own_check: 0,
            check: 0,
        }
    }

    /// Adds a connection, or takes note that its client repeats the SYN. `hash` is the hash of the flow,
    /// `pair` the hash of source and host. Returns the connection that was evicted without a reply.
    pub fn open(
        &mut self,
        syn: &Segment,
        hash: u64,
        pair: u64,
        now: Moment,
        closed: bool,
    ) -> Option<Connection> {
        let flow = Flow::from_client(syn);
        if let Some(known) = self.find(hash, &flow)
            && (known.stage != Stage::Over || known.sequence == syn.sequence)
        {
            if now.is_past(known.probe.moment, REPEATED_AFTER) {
                known.flags |= REPEATED;
            }
            return None;
        }
        let mut evicted = None;
        if self.end - self.first == self.ring.len() as u64 {
            let oldest = self.ring[self.slot(self.first)];
            evicted = (oldest.stage == Stage::Opening).then_some(oldest);
            self.drop_first();
        }
        let (slot, home) = (self.slot(self.end), self.home(hash));
        self.ring[slot] = Connection {
            probe: Probe { flow, pair, moment: now, crafted: syn.crafted },
            stage: Stage::Opening,
            sequence: syn.sequence,
            sender: syn.sender,
            flags: if closed { CLOSED } else { 0 },
            ..Connection::NONE
        };
        self.previous[slot] = std::mem::replace(&mut self.heads[home], Link::to(self.end, hash));
        self.end += 1;
        evicted
    }

    /// The latest connection of a flow with this hash.
    pub fn find(&mut self, hash: u64, flow: &Flow) -> Option<&mut Connection> {
        let (mut link, mut younger) = (self.heads[self.home(hash)], 0);
        loop {
            let age = link.age(self.end);
            if age <= younger || age > self.end - self.first {
                return None;
            }
            let slot = self.slot(self.end - age);
            if link.may_match(hash) && self.ring[slot].probe.flow == *flow {
                return Some(&mut self.ring[slot]);
            }
            (link, younger) = (self.previous[slot], age);
        }
    }

    /// The next connection whose time is up by `now`, in the order of the timeouts.
    pub fn next_timeout(&mut self, now: Moment) -> Option<Timeout> {
        loop {
            let (first, own, any) = (
                self.time_of(self.first, SETTLED_AFTER),
                self.time_of(self.own_check, ANSWERS_ITSELF_WITHIN),
                self.time_of(self.check, ANSWERS_WITHIN),
            );
            let at = first.min(own).min(any);
            if at > now {
                return None;
            }
            if at == first {
                let connection = self.ring[self.slot(self.first)];
                self.drop_first();
                if connection.stage == Stage::Answered {
                    return Some(Timeout { connection, at, answered: true });
                }
                continue;
            }
            let next = if at == own { &mut self.own_check } else { &mut self.check };
            let number = *next;
            *next += 1;
            let slot = self.slot(number);
            let connection = &mut self.ring[slot];
            if connection.stage == Stage::Opening && (connection.is_closed() || at != own) {
                connection.stage = Stage::TimedOut;
                return Some(Timeout { connection: *connection, at, answered: false });
            }
        }
    }

    /// Reads the chain of a hash, so that it is in the cache for a later lookup.
    pub fn touch(&self, hash: u64) -> u64 {
        self.heads[self.home(hash)].0.into()
    }

    /// The pairs of the next `count` connections to time out.
    pub fn next_pairs(&self, count: usize) -> impl Iterator<Item = u64> {
        (self.own_check..self.end).take(count).map(|number| self.ring[self.slot(number)].probe.pair)
    }

    /// Whether a connection waits for a timeout.
    pub fn is_waiting(&self) -> bool {
        self.first < self.end
    }

    /// Ends all connections of operating systems without a reply, because the reply may have been lost. What a
    /// program has crafted fails with every reply.
    pub fn drop_unanswered(&mut self) {
        for number in self.first..self.end {
            let slot = self.slot(number);
            let connection = &mut self.ring[slot];
            if connection.stage == Stage::Opening && !connection.probe.crafted {
                connection.stage = Stage::Over;
            }
        }
    }

    /// When a connection reaches this age. Never for the next connection.
    fn time_of(&self, number: u64, age: Duration) -> Moment {
        if number < self.end { self.ring[self.slot(number)].probe.moment + age } else { NEVER }
    }

    fn drop_first(&mut self) {
        self.first += 1;
        self.own_check = self.own_check.max(self.first);
        self.check = self.check.max(self.first);
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
    use crate::types::SegmentKind;
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
            sender: 0,
        }
    }

    /// Some flows share a chain, and some of them also the hash bits of a link.
    fn hash(client_port: u16) -> u64 {
        u64::from(client_port % 2) << 56 | u64::from(client_port % 3)
    }

    #[test]
    fn connection_takes_a_cache_line() {
        assert_eq!(size_of::<Connection>(), 64);
    }

    proptest! {
        /// Compares the ring with a list that is searched from end to end, also where the numbers of links wrap.
        #[test]
        fn connections_equal_a_list(
            begun_before in prop_oneof![Just(0), Just(u64::from(Link::NUMBERS) - 5)],
            steps in proptest::collection::vec((0..4u8, 0..9u16), 1..200),
        ) {
            let mut connections = Connections::new(8);
            (connections.first, connections.end) = (begun_before, begun_before);
            (connections.own_check, connections.check) = (begun_before, begun_before);
            let mut list: Vec<(u16, u8, Moment)> = Vec::new();
            let mut now = Moment::from_nanos(1);
            for (number, (what, port)) in (0..).zip(steps) {
                if what == 0 {
                    now = now + SETTLED_AFTER / 4;
                    while connections.next_timeout(now).is_some() {}
                    list.retain(|(_, _, began)| *began + SETTLED_AFTER > now);
                } else {
                    let (probe, hash) = (probe(port, number), hash(port));
                    if let Some(known) = connections.find(hash, &Flow::from_client(&probe)) {
                        // The next SYN opens another connection.
                        known.stage = Stage::Over;
                    }
                    connections.open(&probe, hash, 0, now, false);
                    list.push((port, number, now));
                    list = list.split_off(list.len().saturating_sub(8));
                }
                for port in 0..9 {
                    let found = connections.find(hash(port), &Flow::from_client(&probe(port, 0)));
                    let latest = list.iter().rev().find(|(known, ..)| *known == port);
                    prop_assert_eq!(found.map(|connection| connection.sequence), latest.map(|entry| entry.1));
                }
            }
        }
    }
}
