//! The unit of work: one attempt to open, or to sound out, a TCP port.
//!
//! Owns the words capture and detector share. Holds no behaviour beyond what the words mean.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::types::clock::Moment;

/// A TCP port.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Port(pub u16);

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which way a probe goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To one of this host's addresses.
    Inbound,
    /// Through this host, to somebody behind it.
    Forwarded,
    /// From one of this host's addresses.
    Outbound,
}

impl Direction {
    /// All directions, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Inbound, Self::Forwarded, Self::Outbound];

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Forwarded => "forwarded",
            Self::Outbound => "outbound",
        }
    }
}

/// A segment that asks something of a port before any connection exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// When the kernel captured it.
    pub moment: Moment,
    /// Who sent it, if the address is not forged.
    pub source: IpAddr,
    /// The host it is for: this one, or one behind it.
    pub destination: IpAddr,
    /// The port it came from.
    pub source_port: Port,
    /// The port it asks about.
    pub port: Port,
    /// What kind of question it is.
    pub kind: SegmentKind,
    /// The lowest byte of its sequence number: it tells whether anything was sent meanwhile.
    pub sequence: u8,
    /// The lowest byte of the number it acknowledges: likewise, whether anything was received.
    pub acknowledged: u8,
    /// It has fewer TCP options than any operating system gives a connection of its own, twelve bytes or
    /// more: a program has made it up.
    pub crafted: bool,
}

/// What a probe's flags make of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SegmentKind {
    /// SYN without ACK: what every connection starts with. Other flags beside it (ECN, FIN) do not
    /// matter.
    Syn,
    /// FIN alone: no client sends it first; a closed port answers RST (RFC 9293, 3.10.7.1).
    Fin,
    /// No flag at all, likewise.
    Null,
    /// FIN, PSH and URG, likewise.
    Xmas,
    /// A first fragment too short to hold its flags. No sender needs one: the least MTU holds a
    /// whole header (RFC 1858 calls it the tiny fragment attack).
    Fragment,
    /// SYN and ACK: what an open port answers. This and the following are no probes; they are captured
    /// only where outcomes count, and tell what became of one.
    SynAck,
    /// RST alone: what a port answers to a segment of no connection, and a scanner's kernel to the answer
    /// it did not ask for.
    Reset,
    /// RST and ACK: what a closed port answers to a SYN, and how a connection is broken off.
    ResetAck,
    /// FIN and ACK: how a connection is ended.
    FinAck,
    /// No segment: an ICMP message which says that one did not get to its port. It stands as if the port had
    /// sent it, with the sequence number of the segment.
    Unreachable,
}

impl SegmentKind {
    const FIN: u8 = 0x01;
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    const PSH: u8 = 0x08;
    const ACK: u8 = 0x10;
    const URG: u8 = 0x20;
    /// All but the two ECN bits, which any sender may set on a SYN (RFC 3168).
    const WITHOUT_ECN: u8 = 0x3f;

    /// The kind of probe with these TCP flags (byte 13 of the header), if it is one.
    pub const fn of_flags(flags: u8) -> Option<Self> {
        const XMAS: u8 = SegmentKind::FIN | SegmentKind::PSH | SegmentKind::URG;
        if flags & (Self::SYN | Self::ACK) == Self::SYN {
            return Some(Self::Syn);
        }
        match flags & Self::WITHOUT_ECN {
            0 => Some(Self::Null),
            Self::FIN => Some(Self::Fin),
            XMAS => Some(Self::Xmas),
            _ => None,
        }
    }

    /// Likewise, and what tells of a probe's outcome.
    pub const fn of_flags_with_outcomes(flags: u8) -> Option<Self> {
        const FIN_ACK: u8 = SegmentKind::FIN | SegmentKind::ACK;
        if let Some(probe) = Self::of_flags(flags) {
            return Some(probe);
        }
        if flags & Self::RST != 0 {
            return Some(if flags & Self::ACK == 0 { Self::Reset } else { Self::ResetAck });
        }
        if flags & Self::SYN != 0 {
            return Some(Self::SynAck);
        }
        if flags & FIN_ACK == FIN_ACK { Some(Self::FinAck) } else { None }
    }

    /// Whether this asks something, rather than tells what became of a question.
    pub const fn is_probe(self) -> bool {
        !matches!(
            self,
            Self::SynAck | Self::Reset | Self::ResetAck | Self::FinAck | Self::Unreachable
        )
    }

    /// Whether this is part of an ordinary connection rather than a stealth probe.
    pub const fn is_ordinary(self) -> bool {
        self.opens_connection() || !self.is_probe()
    }

    /// Whether this is an ordinary connection attempt rather than a stealth probe.
    pub const fn opens_connection(self) -> bool {
        matches!(self, Self::Syn)
    }
}

/// What became of a probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Nobody looked, or it could not be seen.
    #[default]
    Unknown,
    /// The port is open, and the connection came about.
    Answered,
    /// The port is closed, and the host or a firewall said so.
    Refused,
    /// Nobody said anything.
    Unanswered,
    /// The port is open, and the connection was left without being completed.
    HalfOpen,
}

impl Outcome {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Answered => "answered",
            Self::Refused => "refused",
            Self::Unanswered => "unanswered",
            Self::HalfOpen => "half-open",
        }
    }

    /// Whether there is nothing to say about it.
    pub fn is_unknown(&self) -> bool {
        *self == Self::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_make_the_kind() {
        for (flags, kind) in [
            (0x02, Some(SegmentKind::Syn)),
            (0xc2, Some(SegmentKind::Syn)),
            (0x03, Some(SegmentKind::Syn)),
            (0x01, Some(SegmentKind::Fin)),
            (0x00, Some(SegmentKind::Null)),
            (0x29, Some(SegmentKind::Xmas)),
            (0x12, None),
            (0x11, None),
            (0x10, None),
            (0x04, None),
            (0x14, None),
            (0x18, None),
        ] {
            assert_eq!(SegmentKind::of_flags(flags), kind, "{flags:#04x}");
        }
    }
}
