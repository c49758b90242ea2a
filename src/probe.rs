//! The unit of work: one attempt to open, or to sound out, a TCP port.
//!
//! Owns the words capture and detector share. Holds no behaviour beyond what the words mean.

use std::fmt;
use std::net::IpAddr;

use crate::clock::Moment;

/// A TCP port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(pub u16);

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A segment that asks something of a port before any connection exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
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
    pub kind: ProbeKind,
}

/// What a probe's flags make of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProbeKind {
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
}

impl ProbeKind {
    const FIN: u8 = 0x01;
    const SYN: u8 = 0x02;
    const PSH: u8 = 0x08;
    const ACK: u8 = 0x10;
    const URG: u8 = 0x20;
    /// All but the two ECN bits, which any sender may set on a SYN (RFC 3168).
    const WITHOUT_ECN: u8 = 0x3f;

    /// The kind of probe with these TCP flags (byte 13 of the header), if it is one.
    pub const fn of_flags(flags: u8) -> Option<Self> {
        const XMAS: u8 = ProbeKind::FIN | ProbeKind::PSH | ProbeKind::URG;
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

    /// Whether this is an ordinary connection attempt rather than a stealth probe.
    pub const fn opens_connection(self) -> bool {
        matches!(self, Self::Syn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_make_the_kind() {
        for (flags, kind) in [
            (0x02, Some(ProbeKind::Syn)),
            (0xc2, Some(ProbeKind::Syn)),
            (0x03, Some(ProbeKind::Syn)),
            (0x01, Some(ProbeKind::Fin)),
            (0x00, Some(ProbeKind::Null)),
            (0x29, Some(ProbeKind::Xmas)),
            (0x12, None),
            (0x11, None),
            (0x10, None),
            (0x04, None),
            (0x14, None),
            (0x18, None),
        ] {
            assert_eq!(ProbeKind::of_flags(flags), kind, "{flags:#04x}");
        }
    }
}
