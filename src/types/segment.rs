//! A TCP segment, as capture and detector see it.
//!
//! Pure. Owns the vocabulary of segments: kinds, directions and outcomes. Performs no I/O.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::types::Moment;
use crate::types::words::words;

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

words! {
    /// The direction of a segment, seen from this host.
    Direction {
        /// To an address of this host.
        Inbound = "inbound",
        /// Through this host, to another host.
        Forwarded = "forwarded",
        /// From an address of this host.
        Outbound = "outbound",
    }
}

/// A segment that opens or ends a connection, or that belongs to none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// When the kernel captured the segment.
    pub moment: Moment,
    /// The sender, which may be forged.
    pub source: IpAddr,
    pub destination: IpAddr,
    pub source_port: Port,
    /// The destination port.
    pub port: Port,
    pub kind: SegmentKind,
    /// The lowest byte of the sequence number. It shows whether the sender has sent data.
    pub sequence: u8,
    /// The lowest byte of the acknowledgement number. It shows whether the sender has received data.
    pub acknowledged: u8,
    /// The segment has fewer than 12 bytes of TCP options. Every operating system adds at least that many, so
    /// a program has crafted the segment.
    pub crafted: bool,
    /// A hash of the hardware address that sent the frame, or zero if that is unknown. A forged reply comes
    /// from the side of the client.
    pub sender: u16,
}

/// The kind of a segment, which follows from its flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SegmentKind {
    /// SYN without ACK, which opens every connection. Other flags (ECN, FIN) do not matter.
    Syn,
    /// FIN alone. No client sends it first. A closed port replies with RST (RFC 9293, 3.10.7.1).
    Fin,
    /// No flag. No client sends it. A closed port replies with RST.
    Null,
    /// FIN, PSH and URG, or any other flags without SYN, ACK and RST. No client sends it. A closed port replies
    /// with RST.
    Xmas,
    /// A first fragment that is too short for the flags. No sender needs one, because the smallest MTU has
    /// room for a whole header (RFC 1858: the tiny fragment attack). If it is too short even for the ports,
    /// each fragment counts as another port.
    Fragment,
    /// SYN and ACK, the reply of an open port. This kind and the kinds below are not probes. They show the
    /// outcome of a probe, and are captured only if outcomes count.
    SynAck,
    /// RST alone: the reply to a segment of no connection, and the reply of a scanner's kernel to a SYN-ACK
    /// that it did not ask for.
    Reset,
    /// RST and ACK: the reply of a closed port to a SYN, and the end of an aborted connection.
    ResetAck,
    /// FIN and ACK: the end of a connection.
    FinAck,
    /// An ICMP message that a segment did not reach its port. The record looks as if the port had sent it,
    /// with the sequence number of the segment.
    Unreachable,
}

impl SegmentKind {
    const FIN: u8 = 0x01;
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    const ACK: u8 = 0x10;
    /// All flags except the two ECN bits, which any sender may set on a SYN (RFC 3168).
    const WITHOUT_ECN: u8 = 0x3f;

    /// The kind of the probe with these TCP flags (byte 13 of the header). Nothing if it is no probe.
    pub const fn of_flags(flags: u8) -> Option<Self> {
        if flags & (Self::SYN | Self::ACK) == Self::SYN {
            return Some(Self::Syn);
        }
        if flags & (Self::ACK | Self::RST) != 0 {
            return None;
        }
        Some(match flags & Self::WITHOUT_ECN {
            0 => Self::Null,
            Self::FIN => Self::Fin,
            _ => Self::Xmas,
        })
    }

    /// The kind of the segment with these TCP flags, if it is a probe or shows the outcome of one.
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

    /// Whether this is a probe. Every other kind shows the outcome of a probe.
    pub const fn is_probe(self) -> bool {
        !matches!(
            self,
            Self::SynAck | Self::Reset | Self::ResetAck | Self::FinAck | Self::Unreachable
        )
    }

    /// Whether ordinary connections contain this kind. The other kinds are stealth probes.
    pub const fn is_ordinary(self) -> bool {
        self.opens_connection() || !self.is_probe()
    }

    /// Whether this is an ordinary connection attempt.
    pub const fn opens_connection(self) -> bool {
        matches!(self, Self::Syn)
    }
}

words! {
    /// The outcome of a probe.
    #[derive(Default, Serialize, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    Outcome {
        /// Not determined, or not visible.
        #[default]
        Unknown = "unknown",
        /// The port is open, and the connection was established.
        Answered = "answered",
        /// The host or a firewall has refused the connection.
        Refused = "refused",
        /// No reply arrived in time.
        Unanswered = "unanswered",
        /// The port is open, and the client did not complete the handshake.
        HalfOpen = "half-open",
    }
}

impl Outcome {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    pub fn is_unknown(&self) -> bool {
        *self == Self::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_determine_the_kind() {
        for (flags, kind) in [
            (0x02, Some(SegmentKind::Syn)),
            (0xc2, Some(SegmentKind::Syn)),
            (0x03, Some(SegmentKind::Syn)),
            (0x01, Some(SegmentKind::Fin)),
            (0x00, Some(SegmentKind::Null)),
            (0x29, Some(SegmentKind::Xmas)),
            // Any other mix that a closed port replies to.
            (0x08, Some(SegmentKind::Xmas)),
            (0x20, Some(SegmentKind::Xmas)),
            (0x09, Some(SegmentKind::Xmas)),
            (0x21, Some(SegmentKind::Xmas)),
            (0x28, Some(SegmentKind::Xmas)),
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
