//! Replies without a question: SYN-ACKs of connections that are not followed.
//!
//! Pure. A capture that is merged from the two directions of a tap may show a reply just before its SYN. And a
//! server that receives SYNs forged in the name of this host replies to it, whose kernel refuses that. Owns the
//! latest of these replies. They say nothing about any other connection.

use crate::detect::balanced::thresholds::ANSWERS_WITHIN;
use crate::types::{Moment, Segment};

/// So many replies are remembered. A reply matters for microseconds.
const PLACES: usize = 256;

/// A reply that came too early.
#[derive(Clone, Copy, Default)]
pub struct EarlyReply {
    hash: u64,
    moment: Moment,
    /// See [`Segment::sender`].
    pub sender: u16,
    pub sequence: u8,
}

/// The latest replies without a question.
pub struct EarlyReplies([EarlyReply; PLACES]);

impl EarlyReplies {
    pub fn new() -> Self {
        Self([EarlyReply::default(); PLACES])
    }

    /// Takes note of a SYN-ACK, given the hash of its flow.
    pub fn note(&mut self, hash: u64, reply: &Segment, now: Moment) {
        let (sender, sequence) = (reply.sender, reply.sequence);
        self.0[place(hash)] = EarlyReply { hash, moment: now, sender, sequence };
    }

    /// The reply with this hash, if it is recent.
    pub fn of(&self, hash: u64, now: Moment) -> Option<EarlyReply> {
        let reply = self.0[place(hash)];
        (reply.hash == hash && !now.is_past(reply.moment, ANSWERS_WITHIN)).then_some(reply)
    }
}

fn place(hash: u64) -> usize {
    (hash >> 32) as usize % PLACES
}
