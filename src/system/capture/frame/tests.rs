//! One probe in every encapsulation: whole, cut and corrupted.

use super::*;
use etherparse::PacketBuilder;
use proptest::prelude::*;

const NOW: Moment = Moment::from_nanos(1);

/// The beginning of the TCP header of a test frame: source port 40000, destination port 443.
const PORTS: [u8; 4] = [0x9c, 0x40, 0x01, 0xbb];

fn syn_packet() -> Vec<u8> {
    let builder = PacketBuilder::ipv4([192, 0, 2, 1], [198, 51, 100, 2], 64)
        .tcp(40_000, 443, 7, 64_240)
        .syn();
    let mut packet = Vec::new();
    builder.write(&mut packet, &[]).unwrap();
    packet
}

fn syn_packet_v6(extensions: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut tcp = PORTS.to_vec();
    tcp.extend([0, 0, 0, 7, 0, 0, 0, 0, 0x50, 0x02, 0xfa, 0xf0, 0, 0, 0, 0]);
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

fn with_ipv4_options() -> Vec<u8> {
    let mut packet = syn_packet();
    packet[0] = 0x46;
    packet.splice(20..20, [1, 1, 1, 0]);
    packet
}

/// The first 8 bytes of TCP in their own fragment, as `nmap -f` sends them.
fn tiny_fragment() -> Vec<u8> {
    let mut packet = syn_packet();
    packet.truncate(28);
    packet[2..4].copy_from_slice(&28u16.to_be_bytes());
    packet[6] = 0x20;
    packet
}

fn with_flags(mut packet: Vec<u8>, flags: u8) -> Vec<u8> {
    let at = flags_in(&packet).unwrap();
    packet[at] = flags;
    packet
}

/// Returns the offset of the TCP flags.
pub fn flags_in(frame: &[u8]) -> Option<usize> {
    let tcp = frame.windows(PORTS.len()).position(|bytes| bytes == PORTS)?;
    (tcp + TCP_TO_FLAGS <= frame.len()).then_some(tcp + TCP_TO_FLAGS - 1)
}

fn ethernet(ether_types_and_tags: &[u8], packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    frame.extend(ether_types_and_tags);
    frame.extend(packet);
    frame
}

/// One probe in every encapsulation of a Linux interface: link type, name, frame.
pub fn probes() -> Vec<(i32, &'static str, Vec<u8>)> {
    let v4 = syn_packet();
    let v6 = syn_packet_v6(&[]);
    let hop_by_hop = (0, vec![0, 1, 4, 0, 0, 0, 0]);
    let routing = (43, vec![0, 4, 0, 0, 0, 0, 0]);
    let destination = (60, vec![1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let whole_fragment = (44, vec![0, 0, 0, 0, 0, 0, 9]);
    let authentication = (51, vec![1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]);
    let all = [hop_by_hop.clone(), routing, destination, whole_fragment, authentication];
    let sll = |hardware: [u8; 2], protocol: [u8; 2], ip: &[u8]| {
        let middle = [0, 6, 2, 0, 0, 0, 0, 1, 0, 0];
        [&[0, 0], &hardware[..], &middle, &protocol, ip].concat()
    };
    let mut first_fragment = v4.clone();
    first_fragment[6] = 0x20;
    vec![
        (1, "Ethernet", ethernet(&[8, 0], &v4)),
        (1, "Ethernet, IPv6", ethernet(&[0x86, 0xdd], &v6)),
        (1, "IPv4 options", ethernet(&[8, 0], &with_ipv4_options())),
        (1, "ECN", ethernet(&[8, 0], &with_flags(v4.clone(), 0xc2))),
        (1, "SYN and FIN", ethernet(&[8, 0], &with_flags(v4.clone(), 0x03))),
        (1, "FIN", ethernet(&[8, 0], &with_flags(v4.clone(), 0x01))),
        (1, "NULL", ethernet(&[8, 0], &with_flags(v4.clone(), 0x00))),
        (1, "XMAS", ethernet(&[8, 0], &with_flags(v4.clone(), 0x29))),
        (1, "XMAS, IPv6", ethernet(&[0x86, 0xdd], &with_flags(v6.clone(), 0x29))),
        (1, "tiny fragment", ethernet(&[8, 0], &tiny_fragment())),
        (1, "first fragment", ethernet(&[8, 0], &first_fragment)),
        (1, "one extension", ethernet(&[0x86, 0xdd], &syn_packet_v6(&[hop_by_hop]))),
        (1, "every extension", ethernet(&[0x86, 0xdd], &syn_packet_v6(&all))),
        (1, "802.1Q", ethernet(&[0x81, 0, 0, 5, 8, 0], &v4)),
        (1, "802.1Q, IPv6", ethernet(&[0x81, 0, 0, 5, 0x86, 0xdd], &v6)),
        (1, "802.1ad", ethernet(&[0x88, 0xa8, 0, 5, 8, 0], &v4)),
        (1, "QinQ", ethernet(&[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 8, 0], &v4)),
        (1, "QinQ, older", ethernet(&[0x91, 0, 0, 5, 0x81, 0, 0, 6, 8, 0], &v4)),
        (1, "QinQ, tiny fragment", {
            ethernet(&[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 8, 0], &tiny_fragment())
        }),
        (1, "MPLS", ethernet(&[0x88, 0x47, 0, 1, 0x01, 64], &v4)),
        (1, "MPLS, two labels", ethernet(&[0x88, 0x47, 0, 1, 0, 64, 0, 1, 1, 64], &v4)),
        (1, "MPLS, IPv6", ethernet(&[0x88, 0x47, 0, 1, 0x01, 64], &v6)),
        (1, "MPLS, IPv4 options", ethernet(&[0x88, 0x47, 0, 1, 1, 64], &with_ipv4_options())),
        (1, "PPPoE", ethernet(&[0x88, 0x64, 0x11, 0, 0, 1, 0, 42, 0, 0x21], &v4)),
        (1, "PPPoE, IPv6", ethernet(&[0x88, 0x64, 0x11, 0, 0, 1, 0, 62, 0, 0x57], &v6)),
        (1, "PPPoE, tiny fragment", {
            ethernet(&[0x88, 0x64, 0x11, 0, 0, 1, 0, 30, 0, 0x21], &tiny_fragment())
        }),
        (113, "cooked", sll([0, 1], [8, 0], &v4)),
        (113, "cooked, IPv6", sll([0, 1], [0x86, 0xdd], &v6)),
        (113, "cooked, from a tun device", sll([0xff, 0xfe], [8, 0], &v4)),
        (276, "cooked, version 2", [&[8, 0], &[0; 18][..], &v4].concat()),
        (12, "IPv4 alone", v4.clone()),
        (12, "IPv6 alone", v6.clone()),
        (0, "loopback", [&[2, 0, 0, 0], &v4[..]].concat()),
        (9, "PPP", [&[0xff, 3, 0, 0x21], &v4[..]].concat()),
        (104, "Cisco HDLC", [&[0x0f, 0, 8, 0], &v4[..]].concat()),
    ]
}

#[test]
fn probe_is_found_in_every_encapsulation() {
    for (linktype, name, frame) in probes() {
        let link = LinkLayer::of_linktype(linktype).unwrap();
        let probe = probe_in(link, &frame, NOW).unwrap_or_else(|| panic!("{name}"));
        assert_eq!((probe.source_port, probe.port), (Port(40_000), Port(443)), "{name}");
        let kind = match name.split(',').next().unwrap_or_default() {
            "FIN" => SegmentKind::Fin,
            "NULL" => SegmentKind::Null,
            "XMAS" => SegmentKind::Xmas,
            _ if name.contains("tiny") => SegmentKind::Fragment,
            _ => SegmentKind::Syn,
        };
        assert_eq!((probe.kind, probe.moment), (kind, NOW), "{name}");
    }
}

#[test]
fn encapsulations_of_capture_files_are_read() {
    let v4 = syn_packet();
    for (link, frame) in [
        (LinkLayer::Ethernet, ethernet(&[0, 60, 0xaa, 0xaa, 3, 0, 0, 0, 8, 0], &v4)),
        (LinkLayer::Ppp, [&[0x21], &v4[..]].concat()),
        (LinkLayer::Ethernet, {
            ethernet(&[0x81, 0, 0, 5, 0x81, 0, 0, 6, 0x81, 0, 0, 7, 8, 0], &v4)
        }),
    ] {
        assert_eq!(probe_in(link, &frame, NOW).unwrap().kind, SegmentKind::Syn);
    }
}

/// What the device `any` shows of several priority tags, from Linux 6.10 on.
#[test]
fn tags_that_a_cooked_capture_does_not_announce_are_skipped() {
    for (ether_type, packet) in [([8, 0], syn_packet()), ([0x86, 0xdd], syn_packet_v6(&[]))] {
        for priority in [0x00, 0x40, 0x60, 0xa0] {
            for hidden in [1, 2, 40] {
                let mut tags = [priority, 0, 0x81, 0].repeat(hidden);
                let last = tags.len() - 2;
                tags[last..].copy_from_slice(&ether_type);
                // The kernel looks behind 8 tags at most.
                let announced = if hidden < 8 { ether_type } else { [0, 0] };
                let before = [&[0; 14][..], &[0x81, 0, 0xa0, 0], &announced];
                let frame = [&before.concat()[..], &tags, &packet].concat();
                let probe = probe_in(LinkLayer::LinuxSll, &frame, NOW);
                assert_eq!(probe.unwrap().port, Port(443), "{priority:#x}, {hidden}");
            }
        }
    }
}

#[test]
fn padding_of_a_tiny_fragment_is_not_read_as_flags() {
    let mut packet = tiny_fragment();
    packet.resize(46, 0);
    let probe = probe_in(LinkLayer::Ethernet, &ethernet(&[8, 0], &packet), NOW).unwrap();
    assert_eq!((probe.kind, probe.port), (SegmentKind::Fragment, Port(443)));
}

/// Returns a first fragment of a SYN behind two headers of destination options. The first `kept` bytes of
/// what follows the fragment header are in it.
fn first_fragment_v6(kept: usize) -> Vec<u8> {
    let options = (60, [&[1, 0x1e, 12][..], &[0; 12]].concat());
    let fragment = (44, vec![0, 0, 1, 0, 0, 0, 9]);
    let mut packet = syn_packet_v6(&[fragment, options.clone(), options]);
    packet.truncate(40 + 8 + kept);
    packet[4..6].copy_from_slice(&u16::try_from(8 + kept).unwrap().to_be_bytes());
    packet
}

/// Linux replies to some of these SYNs.
#[test]
fn each_first_fragment_without_ports_counts_as_another_port() {
    for kept in [0, 8, 16, 24, 32] {
        let packet = first_fragment_v6(kept);
        let probe = |nanos| probe_in(LinkLayer::RawIp, &packet, Moment::from_nanos(nanos)).unwrap();
        let (first, second) = (probe(1_000_000), probe(1_001_000));
        assert_eq!([first.kind, second.kind], [SegmentKind::Fragment; 2], "{kept}");
        assert_ne!(first.port, second.port, "{kept}");
        // The capture has cut this one, not the sender.
        let mut cut = first_fragment_v6(kept + 8);
        cut.truncate(packet.len());
        assert_eq!(probe_in(LinkLayer::RawIp, &cut, NOW), None, "{kept}");
    }
    let with_ports = probe_in(LinkLayer::RawIp, &first_fragment_v6(40), NOW).unwrap();
    assert_eq!((with_ports.kind, with_ports.port), (SegmentKind::Fragment, Port(443)));
    let whole = probe_in(LinkLayer::RawIp, &first_fragment_v6(48), NOW).unwrap();
    assert_eq!((whole.kind, whole.port), (SegmentKind::Syn, Port(443)));
}

#[test]
fn any_number_of_extension_headers_is_read() {
    let options = (60, vec![0, 1, 4, 0, 0, 0, 0]);
    for count in [17, 180] {
        let packet = syn_packet_v6(&vec![options.clone(); count]);
        assert_eq!(probe_in(LinkLayer::RawIp, &packet, NOW).unwrap().kind, SegmentKind::Syn);
    }
    let mut long = vec![0xfd; 2039];
    long[0] = 254;
    let packet = syn_packet_v6(&[(43, long)]);
    assert_eq!(probe_in(LinkLayer::RawIp, &packet, NOW).unwrap().kind, SegmentKind::Syn);
}

#[test]
fn a_fragment_that_the_capture_has_cut_is_not_a_tiny_fragment() {
    let mut packet = syn_packet();
    packet[6] = 0x20;
    packet.truncate(32);
    assert_eq!(probe_in(LinkLayer::RawIp, &packet, NOW), None);
}

#[test]
fn later_fragments_are_not_probes() {
    let mut packet = tiny_fragment();
    packet[6..8].copy_from_slice(&1u16.to_be_bytes());
    assert_eq!(probe_in(LinkLayer::RawIp, &packet, NOW), None);
    let later_fragment = (44, vec![0, 0, 8, 0, 0, 0, 9]);
    assert_eq!(probe_in(LinkLayer::RawIp, &syn_packet_v6(&[later_fragment]), NOW), None);
}

#[test]
fn invalid_data_offset_does_not_hide_a_syn() {
    let mut packet = syn_packet();
    packet[32] = 0x10;
    assert!(probe_in(LinkLayer::RawIp, &packet, NOW).is_some());
}

#[test]
fn replies_and_other_protocols_are_not_probes() {
    let answer = with_flags(syn_packet(), 0x12);
    assert_eq!(probe_in(LinkLayer::RawIp, &answer, NOW), None);
    let mut udp = syn_packet();
    udp[9] = 17;
    assert_eq!(probe_in(LinkLayer::RawIp, &udp, NOW), None);
    assert_eq!(probe_in(LinkLayer::Ethernet, &ethernet(&[0x08, 0x06], &[0; 28]), NOW), None);
}

/// Returns an ICMP message about a packet, with the shortest quote that is allowed.
pub fn refusal(kind: u8, code: u8, about: &[u8]) -> Vec<u8> {
    let builder =
        PacketBuilder::ipv4([198, 51, 100, 2], [192, 0, 2, 1], 64).icmpv4_raw(kind, code, [0; 4]);
    let mut packet = Vec::new();
    builder.write(&mut packet, &about[..28]).unwrap();
    packet
}

pub fn refusal_v6(code: u8, about: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ipv6([2; 16], [1; 16], 64).icmpv6_raw(1, code, [0; 4]);
    let mut packet = Vec::new();
    builder.write(&mut packet, about).unwrap();
    packet
}

#[test]
fn icmp_unreachable_counts_as_a_reply() {
    let (v4, v6) = (syn_packet(), syn_packet_v6(&[]));
    for packet in [refusal(3, 3, &v4), refusal(3, 13, &v4), refusal_v6(1, &v6)] {
        assert_eq!(probe_in(LinkLayer::RawIp, &packet, NOW), None);
        let told = segment_in(LinkLayer::RawIp, &packet, NOW).unwrap();
        assert_eq!((told.kind, told.sequence), (SegmentKind::Unreachable, 7));
        assert_eq!((told.source_port, told.port), (Port(443), Port(40_000)));
        let asked = if told.source.is_ipv4() { &v4 } else { &v6 };
        let asked = probe_in(LinkLayer::RawIp, asked, NOW).unwrap();
        assert_eq!((told.source, told.destination), (asked.destination, asked.source));
    }
    let mut udp = v4.clone();
    udp[9] = 17;
    for packet in [refusal(3, 4, &v4), refusal(11, 0, &v4), refusal(3, 3, &udp)] {
        assert_eq!(segment_in(LinkLayer::RawIp, &packet, NOW), None);
    }
}

#[test]
fn syn_without_the_usual_options_is_crafted() {
    assert!(probe_in(LinkLayer::RawIp, &syn_packet(), NOW).unwrap().crafted);
    let mut packet = syn_packet();
    packet[32] = 0x80;
    assert!(!probe_in(LinkLayer::RawIp, &packet, NOW).unwrap().crafted);
}

#[test]
fn truncated_frames_do_not_panic() {
    let refusals = [refusal(3, 3, &syn_packet()), refusal_v6(4, &syn_packet_v6(&[]))];
    for frame in probes().into_iter().map(|(_, _, frame)| frame).chain(refusals) {
        for length in 0..frame.len() {
            for link in ALL {
                let _ = segment_in(link, &frame[..length], NOW);
            }
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
        let _ = segment_in(ALL[link], &frame, NOW);
    }

    #[test]
    fn no_corrupted_probe_panics(which: prop::sample::Index, at: prop::sample::Index, byte: u8, cut in 0..120usize) {
        let (linktype, _, mut frame) = which.get(&probes()).clone();
        let at = at.index(frame.len());
        frame[at] = byte;
        frame.truncate(cut);
        let _ = segment_in(LinkLayer::of_linktype(linktype).unwrap(), &frame, NOW);
    }
}
