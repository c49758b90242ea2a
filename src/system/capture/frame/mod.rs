//! Frame bytes to segment.
//!
//! Pure: takes bytes and a moment, and returns a [`Segment`] if the frame holds one. It reads only bytes
//! that exist: whatever an attacker puts into a frame, of any length, the worst result is `None`. It never
//! allocates. It does not look into tunnels: the outermost IP header counts.

pub mod absence;
#[cfg(test)]
pub mod generated;
#[cfg(test)]
pub mod tests;

use std::net::IpAddr;

use etherparse::{Ethernet2HeaderSlice, Ipv4HeaderSlice, Ipv6HeaderSlice, SingleVlanHeaderSlice};

use crate::system::capture::frame::absence::Absence;
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
/// The shortest IPv6 extension header.
const EXTENSION_LENGTH: usize = 8;
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
    let packet = network_layer(link, frame).and_then(ip_payload).ok()?;
    let segment = tcp_in(&packet, moment, SegmentKind::of_flags)?;
    Some(Segment { sender: sender_in(link, frame), ..segment })
}

/// Returns the probe in a frame, or the segment or ICMP message that tells the outcome of a probe.
pub fn segment_in(link: LinkLayer, frame: &[u8], moment: Moment) -> Option<Segment> {
    let packet = network_layer(link, frame).and_then(ip_payload).ok()?;
    let segment = tcp_in(&packet, moment, SegmentKind::of_flags_with_outcomes)
        .or_else(|| unreachable_in(&packet, moment))?;
    Some(Segment { sender: sender_in(link, frame), ..segment })
}

/// Returns a hash of the hardware address that sent a frame, or zero if the frame does not show it.
#[inline]
fn sender_in(link: LinkLayer, frame: &[u8]) -> u16 {
    let at = match link {
        LinkLayer::Ethernet | LinkLayer::LinuxSll => 6,
        LinkLayer::LinuxSll2 => 12,
        _ => return 0,
    };
    let Some(address) = frame.get(at..at + 6) else { return 0 };
    let mut bytes = [0; 8];
    bytes[2..].copy_from_slice(address);
    // Zero, the address of the loopback interface, stays zero.
    let [high, low, ..] =
        u64::from_be_bytes(bytes).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
    u16::from_be_bytes([high, low])
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
    let kind = match packet.bytes.get(TCP_TO_FLAGS - 1) {
        Some(&flags) => of_flags(flags)?,
        None if packet.fragmented => SegmentKind::Fragment,
        None => return None,
    };
    let [source_port, port] = match (u16_at(packet.bytes, 0), u16_at(packet.bytes, 2)) {
        (Some(source_port), Some(port)) => [Port(source_port), Port(port)],
        _ => [Port(0), port_in_a_later_fragment(moment)],
    };
    Some(Segment {
        moment,
        source: packet.source,
        destination: packet.destination,
        source_port,
        port,
        kind,
        sequence: packet.bytes.get(7).copied().unwrap_or(0),
        acknowledged: packet.bytes.get(11).copied().unwrap_or(0),
        crafted: packet.bytes.get(12).is_none_or(|offset| offset >> 4 < SYSTEMS_HEADER),
        sender: 0,
    })
}

/// Returns a number in place of a port that is in a later fragment. Each such fragment counts as another
/// port: no honest sender makes one (RFC 7112), and nothing in it need differ from the last one.
fn port_in_a_later_fragment(moment: Moment) -> Port {
    // Many clocks count microseconds, so the lowest bits may be zero.
    let [.., high, low] = (moment.as_nanos() >> 3).to_be_bytes();
    Port(u16::from_be_bytes([high, low]))
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
    let quoted = ip_payload(packet.bytes.get(ICMP_HEADER..)?).ok()?;
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
        sender: 0,
    })
}

/// What an IP packet carries, if that begins in this packet.
struct IpPayload<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    bytes: &'a [u8],
    /// The payload is whole, but its rest is in other fragments.
    fragmented: bool,
}

/// Returns the frame from its IP header on.
fn network_layer(link: LinkLayer, frame: &[u8]) -> Result<&[u8], Absence> {
    match link {
        LinkLayer::Ethernet => {
            let header = Ethernet2HeaderSlice::from_slice(frame).map_err(|_| Absence::Cut)?;
            let rest = from(frame, header.slice().len())?;
            match header.ether_type().0 {
                // Below 0x600 the field is a length, and only an LLC/SNAP header carries IP.
                0..0x600 => match rest.get(..8).ok_or(Absence::NotTcp)? {
                    [0xaa, 0xaa, _, 0, 0, 0, high, low] => {
                        ether_payload(u16::from_be_bytes([*high, *low]), from(rest, 8)?)
                    }
                    _ => Err(Absence::NotTcp),
                },
                ether_type => ether_payload(ether_type, rest),
            }
        }
        LinkLayer::LinuxSll => cooked_payload(number_at(frame, 14)?, from(frame, 16)?),
        LinkLayer::LinuxSll2 => cooked_payload(number_at(frame, 0)?, from(frame, 20)?),
        LinkLayer::RawIp => Ok(frame),
        LinkLayer::Loopback => from(frame, 4),
        LinkLayer::Ppp => ppp_payload(match frame {
            [0xff, 0x03, rest @ ..] => rest,
            _ => frame,
        }),
        LinkLayer::CiscoHdlc => ether_payload(number_at(frame, 2)?, from(frame, 4)?),
    }
}

fn ether_payload(mut ether_type: u16, mut rest: &[u8]) -> Result<&[u8], Absence> {
    while VLANS.contains(&ether_type) {
        let tag = SingleVlanHeaderSlice::from_slice(rest).map_err(|_| Absence::Cut)?;
        ether_type = tag.ether_type().0;
        rest = from(rest, tag.slice().len())?;
    }
    match ether_type {
        IPV4 | IPV6 => Ok(rest),
        PPPOE_SESSION => ppp_payload(from(rest, 6)?),
        _ if MPLS.contains(&ether_type) => loop {
            let bottom_of_stack = byte_at(rest, 2)? & 1 == 1;
            rest = from(rest, 4)?;
            if bottom_of_stack {
                return match byte_at(rest, 0)? >> 4 {
                    4 | 6 => Ok(rest),
                    _ => Err(Absence::Tunnel("EoMPLS")),
                };
            }
        },
        _ => Err(Absence::NotTcp),
    }
}

fn cooked_payload(mut ether_type: u16, mut rest: &[u8]) -> Result<&[u8], Absence> {
    while VLANS.contains(&ether_type) {
        ether_type = number_at(rest, 2)?;
        rest = from(rest, 4)?;
    }
    match ether_type {
        IPV4 | IPV6 => Ok(without_hidden_tags(rest)),
        // The kernel gives up after 8 tags.
        0 => match without_hidden_tags(rest) {
            packet if packet.len() < rest.len() => Ok(packet),
            _ => Err(Absence::NotTcp),
        },
        _ => ether_payload(ether_type, rest),
    }
}

/// Returns a packet of a cooked capture without the priority tags (VLAN 0) before it. From Linux 6.10 on, the
/// protocol in the header is that of the packet, although all tags but the first one are still before it. No IPv4
/// packet begins as such a tag does, and no IPv6 packet has the lengths that it would say.
fn without_hidden_tags(packet: &[u8]) -> &[u8] {
    let mut rest = packet;
    while let &[first, 0, high, low, ref behind @ ..] = rest
        && first.trailing_zeros() >= 4
    {
        let version = behind.first().map_or(0, |byte| byte >> 4);
        match (u16::from_be_bytes([high, low]), version) {
            (IPV4, 4) | (IPV6, 6) => return behind,
            (ether_type, _) if VLANS.contains(&ether_type) => rest = behind,
            _ => break,
        }
    }
    packet
}

fn ppp_payload(frame: &[u8]) -> Result<&[u8], Absence> {
    match byte_at(frame, 0)? {
        // An odd first byte is a compressed protocol field (RFC 1661, 6.5).
        0x21 | 0x57 => from(frame, 1),
        0x00 if matches!(byte_at(frame, 1)?, 0x21 | 0x57) => from(frame, 2),
        _ => Err(Absence::NotTcp),
    }
}

#[inline]
fn ip_payload(packet: &[u8]) -> Result<IpPayload<'_>, Absence> {
    match byte_at(packet, 0)? >> 4 {
        4 => ipv4_payload(packet),
        6 => ipv6_payload(packet),
        _ => Err(Absence::NotTcp),
    }
}

fn ipv4_payload(packet: &[u8]) -> Result<IpPayload<'_>, Absence> {
    let header = Ipv4HeaderSlice::from_slice(packet).map_err(|_| Absence::Cut)?;
    if header.fragments_offset().value() != 0 {
        return Err(Absence::LaterFragment);
    }
    // Ethernet pads short frames: only the IP header knows where a tiny fragment ends.
    let end = match usize::from(header.total_len()) {
        end if header.more_fragments() && end <= packet.len() => Some(end),
        _ => None,
    };
    let bytes = packet.get(header.slice().len()..end.unwrap_or(packet.len()));
    Ok(IpPayload {
        source: header.source_addr().into(),
        destination: header.destination_addr().into(),
        protocol: header.protocol().0,
        bytes: bytes.ok_or(Absence::Cut)?,
        fragmented: end.is_some(),
    })
}

fn ipv6_payload(packet: &[u8]) -> Result<IpPayload<'_>, Absence> {
    let header = Ipv6HeaderSlice::from_slice(packet).map_err(|_| Absence::Cut)?;
    let (source, destination) = (header.source_addr().into(), header.destination_addr().into());
    let end = header.slice().len() + usize::from(header.payload_length());
    let mut next = header.next_header().0;
    let mut at = header.slice().len();
    let mut fragmented = false;
    // Each extension header has at least 8 bytes, so the length of the packet bounds the loop.
    while is_extension(next) {
        if fragmented && at + EXTENSION_LENGTH > end {
            break;
        }
        let units = usize::from(byte_at(packet, at + 1)?);
        let length = match next {
            44 => {
                let offset_and_flags = number_at(packet, at + 2)?;
                if offset_and_flags & 0xfff8 != 0 {
                    return Err(Absence::LaterFragment);
                }
                fragmented |= offset_and_flags & 1 == 1;
                8
            }
            // Authentication header: the length counts units of 4 bytes, minus 2 (RFC 4302, 2.2).
            51 => (units + 2) * 4,
            // The length counts units of 8 bytes after the first 8 (RFC 8200, 4.3 to 4.6; RFC 6564).
            _ => (units + 1) * 8,
        };
        next = byte_at(packet, at)?;
        at += length;
    }
    if !fragmented || end > packet.len() {
        let bytes = from(packet, at)?;
        return Ok(IpPayload { source, destination, protocol: next, bytes, fragmented: false });
    }
    // If the chain of headers continues in the next fragment, so does what it leads to. Only a sender that
    // hides a TCP header sends this (RFC 7112). Kernels before 5.11 accept it, and later ones do if the cut is
    // before the last extension header.
    let protocol = if is_extension(next) { TCP } else { next };
    let bytes = packet.get(at..end).unwrap_or_default();
    Ok(IpPayload { source, destination, protocol, bytes, fragmented })
}

/// Returns whether this is the number of an extension header after which a TCP header may follow:
/// hop-by-hop options, routing, fragment, authentication, destination options, mobility, HIP, shim6.
const fn is_extension(number: u8) -> bool {
    matches!(number, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140)
}

fn from(bytes: &[u8], at: usize) -> Result<&[u8], Absence> {
    bytes.get(at..).ok_or(Absence::Cut)
}

fn byte_at(bytes: &[u8], at: usize) -> Result<u8, Absence> {
    bytes.get(at).copied().ok_or(Absence::Cut)
}

fn number_at(bytes: &[u8], at: usize) -> Result<u16, Absence> {
    u16_at(bytes, at).ok_or(Absence::Cut)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([pair[0], pair[1]]))
}
