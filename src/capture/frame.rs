//! Frame bytes to probe.
//!
//! Pure: bytes and a moment in, perhaps a [`Probe`] out. Reads only what is there: whatever an
//! attacker puts into a frame, of whatever length, the worst result is `None`. Never allocates.
//! Tunnels are not opened: the outermost IP header is the one that counts.

use std::net::IpAddr;

use etherparse::{Ethernet2HeaderSlice, Ipv4HeaderSlice, Ipv6HeaderSlice, SingleVlanHeaderSlice};

use crate::clock::Moment;
use crate::probe::{Port, Probe, ProbeKind};

const TCP: u8 = 6;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
/// 802.1Q, 802.1ad and the older vendors' tags for stacked VLANs.
const VLANS: [u16; 5] = [0x8100, 0x88a8, 0x9100, 0x9200, 0x9300];
const MPLS: [u16; 2] = [0x8847, 0x8848];
const PPPOE_SESSION: u16 = 0x8864;
/// The bytes of a TCP header up to and with its flags.
const TCP_TO_FLAGS: usize = 14;

/// How an interface, or a capture file, wraps its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkLayer {
    /// Ethernet, and everything that looks like it (veth, bridge, Wi-Fi, loopback).
    Ethernet,
    /// Linux cooked capture, version 1: what `any` gives.
    LinuxSll,
    /// Linux cooked capture, version 2.
    LinuxSll2,
    /// Bare IP: tun, `WireGuard`, IP tunnels.
    RawIp,
    /// BSD loopback: four bytes of address family, then IP.
    Loopback,
    /// PPP, with or without HDLC-like framing.
    Ppp,
    /// Cisco HDLC.
    CiscoHdlc,
}

impl LinkLayer {
    /// The link layer of a libpcap link type (pcap-linktype(7)), where it can carry probes that
    /// are understood here.
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

/// The probe in a frame, if there is one.
pub fn probe_in(link: LinkLayer, frame: &[u8], moment: Moment) -> Option<Probe> {
    let packet = network_layer(link, frame)?;
    let segment = match packet.first()? >> 4 {
        4 => ipv4(packet)?,
        6 => ipv6(packet)?,
        _ => return None,
    };
    let ports = segment.payload.get(..4)?;
    let kind = match segment.payload.get(TCP_TO_FLAGS - 1) {
        Some(&flags) => ProbeKind::of_flags(flags)?,
        None if segment.fragmented => ProbeKind::Fragment,
        None => return None,
    };
    Some(Probe {
        moment,
        source: segment.source,
        destination: segment.destination,
        source_port: Port(u16_at(ports, 0)?),
        port: Port(u16_at(ports, 2)?),
        kind,
    })
}

/// The start of a TCP segment and the addresses above it.
struct Segment<'a> {
    source: IpAddr,
    destination: IpAddr,
    payload: &'a [u8],
    /// The rest of it comes in further fragments.
    fragmented: bool,
}

/// The frame from its IP header on.
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

fn ipv4(packet: &[u8]) -> Option<Segment<'_>> {
    let header = Ipv4HeaderSlice::from_slice(packet).ok()?;
    if header.protocol().0 != TCP || header.fragments_offset().value() != 0 {
        return None;
    }
    let header_length = header.slice().len();
    let fragmented = header.more_fragments();
    let end = if fragmented {
        // Ethernet pads short frames: only the IP header knows where a tiny fragment ends.
        usize::from(header.total_len()).min(packet.len())
    } else {
        packet.len()
    };
    Some(Segment {
        source: header.source_addr().into(),
        destination: header.destination_addr().into(),
        payload: packet.get(header_length..end)?,
        fragmented,
    })
}

fn ipv6(packet: &[u8]) -> Option<Segment<'_>> {
    /// More extension headers than any sender has a use for; the kernel stops at 8 by default
    /// (`net.ipv6.max_hbh_opts_number` and its kin).
    const MOST_EXTENSIONS: usize = 16;

    let header = Ipv6HeaderSlice::from_slice(packet).ok()?;
    let mut next = header.next_header().0;
    let mut at = header.slice().len();
    let mut fragmented = false;
    for _ in 0..MOST_EXTENSIONS {
        let extension_length = match next {
            TCP => {
                let end = if fragmented {
                    (header.slice().len() + usize::from(header.payload_length())).min(packet.len())
                } else {
                    packet.len()
                };
                return Some(Segment {
                    source: header.source_addr().into(),
                    destination: header.destination_addr().into(),
                    payload: packet.get(at..end)?,
                    fragmented,
                });
            }
            // Hop-by-hop, routing, destination options, mobility, HIP, shim6: length in units of
            // eight bytes beyond the first eight (RFC 8200, 4.3 to 4.6; RFC 6564).
            0 | 43 | 60 | 135 | 139 | 140 => (usize::from(*packet.get(at + 1)?) + 1) * 8,
            44 => {
                let offset_and_flags = u16_at(packet, at + 2)?;
                if offset_and_flags & 0xfff8 != 0 {
                    return None;
                }
                fragmented |= offset_and_flags & 1 == 1;
                8
            }
            // Authentication header: in units of four bytes, minus two (RFC 4302, 2.2).
            51 => (usize::from(*packet.get(at + 1)?) + 2) * 4,
            _ => return None,
        };
        next = *packet.get(at)?;
        at += extension_length;
    }
    None
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([pair[0], pair[1]]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    const NOW: Moment = Moment::from_nanos(1);

    fn syn_packet() -> Vec<u8> {
        let builder = PacketBuilder::ipv4([192, 0, 2, 1], [198, 51, 100, 2], 64)
            .tcp(40_000, 443, 7, 64_240)
            .syn();
        let mut packet = Vec::new();
        builder.write(&mut packet, &[]).unwrap();
        packet
    }

    fn syn_packet_v6(extensions: &[(u8, Vec<u8>)]) -> Vec<u8> {
        let mut tcp = vec![0x9c, 0x40, 0x01, 0xbb, 0, 0, 0, 7, 0, 0, 0, 0, 0x50, 0x02];
        tcp.extend([0xfa, 0xf0, 0, 0, 0, 0]);
        let length: usize = extensions.iter().map(|(_, body)| body.len() + 1).sum();
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend(u16::try_from(length + tcp.len()).unwrap().to_be_bytes());
        packet.push(extensions.first().map_or(TCP, |(number, _)| *number));
        packet.push(64);
        packet.extend("2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
        packet.extend("2001:db8::2".parse::<std::net::Ipv6Addr>().unwrap().octets());
        for (at, (_, body)) in extensions.iter().enumerate() {
            packet.push(extensions.get(at + 1).map_or(TCP, |(number, _)| *number));
            packet.extend(body);
        }
        packet.extend(tcp);
        packet
    }

    fn ethernet(ether_types_and_tags: &[u8], packet: &[u8]) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        frame.extend(ether_types_and_tags);
        frame.extend(packet);
        frame
    }

    fn assert_is_the_syn(link: LinkLayer, frame: &[u8]) {
        let probe = probe_in(link, frame, NOW).expect("the SYN is seen");
        assert_eq!((probe.source_port, probe.port), (Port(40_000), Port(443)));
        assert_eq!(probe.kind, ProbeKind::Syn);
        assert_eq!(probe.moment, NOW);
    }

    #[test]
    fn a_syn_is_seen_through_every_link_layer() {
        let ip = syn_packet();
        let wrapped: [(LinkLayer, &[u8]); 15] = [
            (LinkLayer::Ethernet, &ethernet(&[0x08, 0x00], &ip)),
            (LinkLayer::Ethernet, &ethernet(&[0x81, 0, 0, 5, 0x08, 0], &ip)),
            (LinkLayer::Ethernet, &ethernet(&[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 8, 0], &ip)),
            (LinkLayer::Ethernet, &ethernet(&[0x91, 0, 0, 5, 0x81, 0, 0, 6, 8, 0], &ip)),
            (LinkLayer::Ethernet, &ethernet(&[0x88, 0x47, 0, 1, 0x00, 64, 0, 1, 0x01, 64], &ip)),
            (LinkLayer::Ethernet, &ethernet(&[0x88, 0x64, 0x11, 0, 0, 1, 0, 42, 0, 0x21], &ip)),
            (LinkLayer::Ethernet, &ethernet(&[0, 60, 0xaa, 0xaa, 3, 0, 0, 0, 8, 0], &ip)),
            (
                LinkLayer::LinuxSll,
                &[&[0, 0, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0, 8, 0], &ip[..]].concat(),
            ),
            (
                LinkLayer::LinuxSll,
                &[&[0, 0, 0xff, 0xfe, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0, 8, 0], &ip[..]].concat(),
            ),
            (LinkLayer::LinuxSll2, &[&[8, 0], &[0; 18][..], &ip].concat()),
            (LinkLayer::RawIp, &ip),
            (LinkLayer::Loopback, &[&[2, 0, 0, 0], &ip[..]].concat()),
            (LinkLayer::Ppp, &[&[0xff, 3, 0, 0x21], &ip[..]].concat()),
            (LinkLayer::Ppp, &[&[0x21], &ip[..]].concat()),
            (LinkLayer::CiscoHdlc, &[&[0x0f, 0, 8, 0], &ip[..]].concat()),
        ];
        for (link, frame) in wrapped {
            assert_is_the_syn(link, frame);
        }
    }

    #[test]
    fn ipv6_extension_headers_are_walked() {
        let hop_by_hop = (0, vec![0, 1, 4, 0, 0, 0, 0]);
        let routing = (43, vec![0, 4, 0, 0, 0, 0, 0]);
        let destination = (60, vec![1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let whole_fragment = (44, vec![0, 0, 0, 0, 0, 0, 9]);
        let authentication = (51, vec![1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]);
        for extensions in [
            vec![],
            vec![hop_by_hop.clone()],
            vec![hop_by_hop, routing, destination, whole_fragment, authentication],
        ] {
            assert_is_the_syn(LinkLayer::RawIp, &syn_packet_v6(&extensions));
        }
        let later_fragment = (44, vec![0, 0, 8, 0, 0, 0, 9]);
        assert_eq!(probe_in(LinkLayer::RawIp, &syn_packet_v6(&[later_fragment]), NOW), None);
    }

    #[test]
    fn a_first_fragment_too_short_for_its_flags_is_a_probe_in_itself() {
        let mut packet = syn_packet();
        packet.truncate(28);
        packet[2..4].copy_from_slice(&28u16.to_be_bytes());
        packet[6] = 0x20;
        // Padded to the least length of Ethernet: the zeros must not be read as flags.
        packet.resize(46, 0);
        let probe = probe_in(LinkLayer::Ethernet, &ethernet(&[8, 0], &packet), NOW).unwrap();
        assert_eq!((probe.kind, probe.port), (ProbeKind::Fragment, Port(443)));

        // The second fragment carries no ports.
        packet[6..8].copy_from_slice(&1u16.to_be_bytes());
        assert_eq!(probe_in(LinkLayer::Ethernet, &ethernet(&[8, 0], &packet), NOW), None);
    }

    #[test]
    fn a_first_fragment_that_holds_its_flags_is_read_by_them() {
        let mut packet = syn_packet();
        packet[6] = 0x20;
        assert_is_the_syn(LinkLayer::RawIp, &packet);
    }

    #[test]
    fn ipv4_options_and_a_bad_data_offset_do_not_hide_a_syn() {
        let mut packet = syn_packet();
        packet[32] = 0x10; // a TCP data offset of 1
        assert_is_the_syn(LinkLayer::RawIp, &packet);
        packet[0] = 0x46;
        packet.splice(20..20, [1, 1, 1, 0]);
        assert_is_the_syn(LinkLayer::RawIp, &packet);
    }

    #[test]
    fn answers_and_other_protocols_are_no_probes() {
        let mut answer = syn_packet();
        answer[33] = 0x12;
        assert_eq!(probe_in(LinkLayer::RawIp, &answer, NOW), None);
        let mut udp = syn_packet();
        udp[9] = 17;
        assert_eq!(probe_in(LinkLayer::RawIp, &udp, NOW), None);
        assert_eq!(probe_in(LinkLayer::Ethernet, &ethernet(&[0x08, 0x06], &[0; 28]), NOW), None);
    }

    #[test]
    fn a_frame_cut_anywhere_is_no_panic() {
        let extensions = [(0, vec![0, 1, 4, 0, 0, 0, 0]), (44, vec![0, 0, 1, 0, 0, 0, 9])];
        let tagged = [0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 0x86, 0xdd];
        let frame = ethernet(&tagged, &syn_packet_v6(&extensions));
        for length in 0..frame.len() {
            for link in ALL {
                let _ = probe_in(link, &frame[..length], NOW);
            }
        }
    }

    const ALL: [LinkLayer; 7] = [
        LinkLayer::Ethernet,
        LinkLayer::LinuxSll,
        LinkLayer::LinuxSll2,
        LinkLayer::RawIp,
        LinkLayer::Loopback,
        LinkLayer::Ppp,
        LinkLayer::CiscoHdlc,
    ];

    proptest! {
        #[test]
        fn no_frame_panics(frame in proptest::collection::vec(any::<u8>(), 0..200), link in 0..7usize) {
            let _ = probe_in(ALL[link], &frame, NOW);
        }

        #[test]
        fn no_broken_syn_panics(at in 0..40usize, byte: u8, link in 0..7usize, cut in 0..60usize) {
            let mut frame = ethernet(&[8, 0], &syn_packet());
            frame[at] = byte;
            frame.truncate(cut);
            let _ = probe_in(ALL[link], &frame, NOW);
            let _ = probe_in(LinkLayer::RawIp, frame.get(14..).unwrap_or_default(), NOW);
        }
    }
}
