//! Frame bytes to segment.
//!
//! Pure: takes bytes and a moment, and returns a [`Segment`] if the frame holds one. It reads only bytes
//! that exist: whatever an attacker puts into a frame, of any length, the worst result is `None`. It never
//! allocates. It does not look into tunnels: the outermost IP header counts.

#[cfg(test)]
pub mod generated;
#[cfg(test)]
pub mod tests;

use std::net::IpAddr;

use etherparse::{Ethernet2HeaderSlice, Ipv4HeaderSlice, Ipv6HeaderSlice, SingleVlanHeaderSlice};

use crate::types::{Moment, Port, Segment, SegmentKind};

const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
/// 802.1Q, 802.1ad, and the older tags of vendors for stacked VLANs.
const VLANS: [u16; 5] = [0x8100, 0x88a8, 0x9100, 0x9200, 0x9300];
const MPLS: [u16; 2] = [0x8847, 0x8848];
const PPPOE_SESSION: u16 = 0x8864;
/// The bytes of a TCP header up to its flags, and with them.
const TCP_TO_FLAGS: usize = 14;
/// The shortest TCP header that an operating system sends in a SYN, in words of 4 bytes: Windows has the
/// fewest options (segment size, window scale, SACK).
const SYSTEMS_HEADER: u8 = 8;
/// The bytes of an ICMP message before the packet it quotes.
const ICMP_HEADER: usize = 8;

/// What surrounds the packets of an interface or a capture file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkLayer {
    /// Also veth, bridges, Wi-Fi and loopback.
    Ethernet,
    /// Linux cooked capture, version 1: the device `any`.
    LinuxSll,
    /// Linux cooked capture, version 2.
    LinuxSll2,
    /// IP without a header before it: tun, `WireGuard`, IP tunnels.
    RawIp,
    /// BSD loopback: four bytes of address family, then IP.
    Loopback,
    /// PPP, with or without HDLC-like framing.
    Ppp,
    CiscoHdlc,
}

impl LinkLayer {
    /// Returns the link layer of a libpcap link type (pcap-linktype(7)), if it is supported.
    pub const fn of_linktype(linktype: i32) -> Option<Self> {
        match linktype {
            1 => Some(Self::Ethernet),
            0 | 108 => Some(Self::Loopback),
            9 | 50 => Some(Self::Ppp),
            12 | 14 | 101 | 228 | 229 => Some(Self::RawIp),
            104 => Some(Self::CiscoHdlc),
            113 => Some(Self::LinuxSll),
            276 => Some(Self::LinuxSll2),
            _ => None,
        }
    }
}

/// Returns the probe in a frame, if there is one.
pub fn probe_in(link: LinkLayer, frame: &[u8], moment: Moment) -> Option<Segment> {
    let packet = ip_payload(network_layer(link, frame)?)?;
    tcp_in(&packet, moment, SegmentKind::of_flags)
}

/// Returns the probe in a frame, or the segment or ICMP message that tells the outcome of a probe.
pub fn segment_in(link: LinkLayer, frame: &[u8], moment: Moment) -> Option<Segment> {
    let packet = ip_payload(network_layer(link, frame)?)?;
    tcp_in(&packet, moment, SegmentKind::of_flags_with_outcomes)
        .or_else(|| unreachable_in(&packet, moment))
}

#[inline]
fn tcp_in(
    packet: &IpPayload<'_>,
    moment: Moment,
    of_flags: impl Fn(u8) -> Option<SegmentKind>,
) -> Option<Segment> {
    if packet.protocol != TCP {
        return None;
    }
    // A fragment may end anywhere after its ports.
    let start = packet.bytes.get(..4)?;
    let kind = match packet.bytes.get(TCP_TO_FLAGS - 1) {
        Some(&flags) => of_flags(flags)?,
        None if packet.fragmented => SegmentKind::Fragment,
        None => return None,
    };
    Some(Segment {
        moment,
        source: packet.source,
        destination: packet.destination,
        source_port: Port(u16_at(start, 0)?),
        port: Port(u16_at(start, 2)?),
        kind,
        sequence: packet.bytes.get(7).copied().unwrap_or(0),
        acknowledged: packet.bytes.get(11).copied().unwrap_or(0),
        crafted: packet.bytes.get(12).is_none_or(|offset| offset >> 4 < SYSTEMS_HEADER),
    })
}

/// Returns what an ICMP message says about a TCP segment that was not delivered. The message quotes at
/// least the ports and the sequence number of the segment (RFC 792).
fn unreachable_in(packet: &IpPayload<'_>, moment: Moment) -> Option<Segment> {
    /// RFC 792, 1191: the segment was too long, which says nothing about its port.
    const FRAGMENTATION_NEEDED: (u8, u8) = (3, 4);

    let unreachable = match (packet.protocol, packet.source.is_ipv4()) {
        (ICMP, true) => 3,
        (ICMPV6, false) => 1,
        _ => return None,
    };
    let &[kind, code] = packet.bytes.first_chunk()?;
    if kind != unreachable || (kind, code) == FRAGMENTATION_NEEDED {
        return None;
    }
    let quoted = ip_payload(packet.bytes.get(ICMP_HEADER..)?)?;
    if quoted.protocol != TCP || quoted.source.is_ipv4() != packet.source.is_ipv4() {
        return None;
    }
    Some(Segment {
        moment,
        source: quoted.destination,
        destination: quoted.source,
        source_port: Port(u16_at(quoted.bytes, 2)?),
        port: Port(u16_at(quoted.bytes, 0)?),
        kind: SegmentKind::Unreachable,
        sequence: *quoted.bytes.get(7)?,
        acknowledged: 0,
        crafted: false,
    })
}

/// What an IP packet carries, if that begins in this packet.
struct IpPayload<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    bytes: &'a [u8],
    /// The rest of the payload is in other fragments.
    fragmented: bool,
}

/// Returns the frame from its IP header on.
fn network_layer(link: LinkLayer, frame: &[u8]) -> Option<&[u8]> {
    match link {
        LinkLayer::Ethernet => {
            let header = Ethernet2HeaderSlice::from_slice(frame).ok()?;
            let rest = frame.get(header.slice().len()..)?;
            match header.ether_type().0 {
                // Below 0x600 the field is a length, and only an LLC/SNAP header carries IP.
                0..0x600 => match rest.get(..8)? {
                    [0xaa, 0xaa, _, 0, 0, 0, high, low] => {
                        ether_payload(u16::from_be_bytes([*high, *low]), rest.get(8..)?)
                    }
                    _ => None,
                },
                ether_type => ether_payload(ether_type, rest),
            }
        }
        LinkLayer::LinuxSll => ether_payload(u16_at(frame, 14)?, frame.get(16..)?),
        LinkLayer::LinuxSll2 => ether_payload(u16_at(frame, 0)?, frame.get(20..)?),
        LinkLayer::RawIp => Some(frame),
        LinkLayer::Loopback => frame.get(4..),
        LinkLayer::Ppp => ppp_payload(match frame {
            [0xff, 0x03, rest @ ..] => rest,
            _ => frame,
        }),
        LinkLayer::CiscoHdlc => ether_payload(u16_at(frame, 2)?, frame.get(4..)?),
    }
}

fn ether_payload(mut ether_type: u16, mut rest: &[u8]) -> Option<&[u8]> {
    while VLANS.contains(&ether_type) {
        let tag = SingleVlanHeaderSlice::from_slice(rest).ok()?;
        ether_type = tag.ether_type().0;
        rest = rest.get(tag.slice().len()..)?;
    }
    match ether_type {
        IPV4 | IPV6 => Some(rest),
        PPPOE_SESSION => ppp_payload(rest.get(6..)?),
        _ if MPLS.contains(&ether_type) => loop {
            let label = rest.get(..4)?;
            rest = rest.get(4..)?;
            let bottom_of_stack = label[2] & 1 == 1;
            if bottom_of_stack {
                return Some(rest);
            }
        },
        _ => None,
    }
}

fn ppp_payload(frame: &[u8]) -> Option<&[u8]> {
    match *frame.first()? {
        // An odd first byte is a compressed protocol field (RFC 1661, 6.5).
        0x21 | 0x57 => frame.get(1..),
        0x00 if matches!(frame.get(1)?, 0x21 | 0x57) => frame.get(2..),
        _ => None,
    }
}

#[inline]
fn ip_payload(packet: &[u8]) -> Option<IpPayload<'_>> {
    match packet.first()? >> 4 {
        4 => ipv4_payload(packet),
        6 => ipv6_payload(packet),
        _ => None,
    }
}

fn ipv4_payload(packet: &[u8]) -> Option<IpPayload<'_>> {
    let header = Ipv4HeaderSlice::from_slice(packet).ok()?;
    if header.fragments_offset().value() != 0 {
        return None;
    }
    let fragmented = header.more_fragments();
    let end = if fragmented {
        // Ethernet pads short frames: only the IP header knows where a tiny fragment ends.
        usize::from(header.total_len()).min(packet.len())
    } else {
        packet.len()
    };
    Some(IpPayload {
        source: header.source_addr().into(),
        destination: header.destination_addr().into(),
        protocol: header.protocol().0,
        bytes: packet.get(header.slice().len()..end)?,
        fragmented,
    })
}

fn ipv6_payload(packet: &[u8]) -> Option<IpPayload<'_>> {
    let header = Ipv6HeaderSlice::from_slice(packet).ok()?;
    let mut next = header.next_header().0;
    let mut at = header.slice().len();
    let mut fragmented = false;
    // Each extension header has at least 8 bytes, so the length of the packet bounds the loop.
    loop {
        let extension_length = match next {
            // Hop-by-hop, routing, destination options, mobility, HIP, shim6: the length counts
            // units of 8 bytes after the first 8 (RFC 8200, 4.3 to 4.6; RFC 6564).
            0 | 43 | 60 | 135 | 139 | 140 => (usize::from(*packet.get(at + 1)?) + 1) * 8,
            44 => {
                let offset_and_flags = u16_at(packet, at + 2)?;
                if offset_and_flags & 0xfff8 != 0 {
                    return None;
                }
                fragmented |= offset_and_flags & 1 == 1;
                8
            }
            // Authentication header: the length counts units of 4 bytes, minus 2 (RFC 4302, 2.2).
            51 => (usize::from(*packet.get(at + 1)?) + 2) * 4,
            _ => break,
        };
        next = *packet.get(at)?;
        at += extension_length;
    }
    let end = if fragmented {
        (header.slice().len() + usize::from(header.payload_length())).min(packet.len())
    } else {
        packet.len()
    };
    Some(IpPayload {
        source: header.source_addr().into(),
        destination: header.destination_addr().into(),
        protocol: next,
        bytes: packet.get(at..end)?,
        fragmented,
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([pair[0], pair[1]]))
}
