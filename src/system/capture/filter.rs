//! The BPF filter that the kernel applies: it lets through what may be a probe.
//!
//! Owns the filter text. The filter may let through too much, which [`super::frame`] then rejects, but
//! never too little.

use crate::system::capture::frame::LinkLayer;

/// SYN without ACK, or one of the three stealth probes (FIN, NULL, XMAS; the two ECN bits aside).
/// `{}` stands for the byte of the flags.
const FLAGS: &str = "({}&18=2 or {}&63=0 or {}&63=1 or {}&63=0x29)";

/// Also what tells the outcome of a probe: every segment with SYN, RST or FIN. That is one or two for each
/// direction of a connection.
const FLAGS_WITH_OUTCOMES: &str = "({}&7!=0 or {}&63=0)";

/// ICMP messages about undelivered TCP segments, directly after the header of the link layer. Tunnels are
/// left out: each kind would need its own clause.
const UNREACHABLE: &str =
    "(ip and icmp[0]=3 and icmp[17]=6) or (ip6 and ip6[6]=58 and ip6[40]=1 and ip6[54]=6)";

/// The extension headers after which a TCP header may follow: BPF cannot walk them.
const IPV6_EXTENSIONS: [u8; 8] = [0, 43, 44, 51, 60, 135, 139, 140];

/// The offsets of the IP header and of the PPP protocol field in a PPPoE session frame.
const PPPOE_IP: usize = 22;
const PPPOE_PROTOCOL: usize = 20;

/// How many MPLS labels may precede the IP header: one for the path, one for the service.
const MPLS_LABELS: usize = 2;

/// Returns the filter for probes, in the language of pcap-filter(7).
pub fn probes_on(link: LinkLayer) -> String {
    filter(link, FLAGS, None)
}

/// Returns the filter for probes and for what tells their outcomes.
pub fn segments_on(link: LinkLayer) -> String {
    filter(link, FLAGS_WITH_OUTCOMES, Some(UNREACHABLE))
}

fn filter(link: LinkLayer, wanted: &str, also: Option<&str>) -> String {
    let plain = match also {
        None => plain(wanted),
        Some(also) => format!("({} or {also})", plain(wanted)),
    };
    match link {
        // Each `vlan` moves the offsets of everything after it by one tag, so that it comes last.
        LinkLayer::Ethernet => {
            let tunnelled = format!("{} or {}", pppoe(wanted), mpls(wanted));
            format!("{plain} or {tunnelled} or (vlan and ({plain} or (vlan and {plain})))")
        }
        // `vlan` does not compile for the others.
        LinkLayer::LinuxSll
        | LinkLayer::LinuxSll2
        | LinkLayer::RawIp
        | LinkLayer::Loopback
        | LinkLayer::Ppp
        | LinkLayer::CiscoHdlc => plain,
    }
}

/// Segments in IP directly after the header of the link layer.
fn plain(wanted: &str) -> String {
    // First fragments come first: `tcp[13]` on a fragment that ends before its flags is a load out
    // of range, which rejects the packet whatever else the filter says.
    format!(
        "((ip and ip[9]=6 and ip[6:2]&0x3fff=0x2000) or (ip and {}) \
         or (ip6 and ({})) or (ip6 and ip6[6]=6 and {}))",
        flags(wanted, "tcp[13]"),
        extensions("ip6[6]"),
        flags(wanted, "ip6[53]")
    )
}

/// Segments in a PPPoE session. The keyword `pppoes` would move the offsets of everything after it.
fn pppoe(wanted: &str) -> String {
    let protocol = format!("ether[{PPPOE_PROTOCOL}:2]");
    format!(
        "(ether[12:2]=0x8864 and (({protocol}=0x21 and {}) or ({protocol}=0x57 and {})))",
        ipv4_at(PPPOE_IP, wanted),
        ipv6_at(PPPOE_IP, wanted)
    )
}

/// Segments after MPLS labels. The keyword `mpls` would move offsets, too.
fn mpls(wanted: &str) -> String {
    let after = |labels: usize| {
        let (bottom, ip) = (14 + labels * 4 - 2, 14 + labels * 4);
        format!("(ether[{bottom}]&1=1 and ({} or {}))", ipv4_at(ip, wanted), ipv6_at(ip, wanted))
    };
    let labels: Vec<String> = (1..=MPLS_LABELS).map(after).collect();
    format!("((ether[12:2]=0x8847 or ether[12:2]=0x8848) and ({}))", labels.join(" or "))
}

/// Segments in an IPv4 packet that begins at this offset of an Ethernet frame.
fn ipv4_at(at: usize, wanted: &str) -> String {
    let (fragment, protocol) = (at + 6, at + 9);
    // Byte 13 of TCP, after as many words as the length field of the IP header says.
    let tcp_flags = format!("ether[{} + ((ether[{at}]&15)<<2)]", at + 13);
    format!(
        "(ether[{at}]&0xf0=0x40 and ether[{protocol}]=6 and (ether[{fragment}:2]&0x3fff=0x2000 \
         or (ether[{fragment}:2]&0x1fff=0 and {})))",
        flags(wanted, &tcp_flags)
    )
}

/// Segments in an IPv6 packet that begins at this offset of an Ethernet frame.
fn ipv6_at(at: usize, wanted: &str) -> String {
    let next = format!("ether[{}]", at + 6);
    let tcp_flags = format!("ether[{}]", at + 53);
    format!(
        "(ether[{at}]&0xf0=0x60 and ({} or ({next}=6 and {})))",
        extensions(&next),
        flags(wanted, &tcp_flags)
    )
}

fn flags(wanted: &str, byte: &str) -> String {
    wanted.replace("{}", byte)
}

fn extensions(next_header: &str) -> String {
    IPV6_EXTENSIONS.map(|number| format!("{next_header}={number}")).join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::capture::frame::{probe_in, segment_in, tests as frames};
    use crate::types::Moment;
    use pcap::{BpfProgram, Capture, Linktype};

    fn program(linktype: i32) -> BpfProgram {
        let link = LinkLayer::of_linktype(linktype).unwrap();
        let capture = Capture::dead(Linktype(linktype)).unwrap();
        capture.compile(&probes_on(link), true).unwrap_or_else(|error| panic!("{link:?}: {error}"))
    }

    #[test]
    fn every_frame_with_a_probe_passes() {
        for (linktype, name, frame) in frames::probes() {
            let link = LinkLayer::of_linktype(linktype).unwrap();
            assert!(probe_in(link, &frame, Moment::default()).is_some(), "{name}");
            assert!(program(linktype).filter(&frame), "{name} does not pass the filter");
        }
    }

    #[test]
    fn ordinary_traffic_does_not_pass() {
        let ethernet = program(1);
        for (linktype, name, mut frame) in frames::probes() {
            let Some(flags) = frames::flags_in(&frame) else { continue };
            frame[flags] = 0x10;
            if linktype == 1 && !name.contains("extension") && !name.contains("fragment") {
                assert!(!ethernet.filter(&frame), "an ACK passes: {name}");
            }
        }
    }

    #[test]
    fn icmp_about_segments_passes_only_the_wider_filter() {
        let (v4, v6) = (frames::refusal(3, 3, &tcp(4)), frames::refusal_v6(1, &tcp(6)));
        for (linktype, before) in [(1, vec![0; 12]), (113, vec![0; 14])] {
            for (packet, ether_type) in [(&v4, [8, 0]), (&v6, [0x86, 0xdd])] {
                let frame = [&before[..], &ether_type, packet].concat();
                assert!(wider(linktype).filter(&frame), "{linktype}: {ether_type:?}");
                assert!(!program(linktype).filter(&frame), "{linktype}: {ether_type:?}");
                let tagged = [&before[..], &[0x81, 0, 0, 5], &ether_type, packet].concat();
                assert_eq!(wider(linktype).filter(&tagged), linktype == 1, "{ether_type:?}");
            }
        }
    }

    /// Returns a segment that was not delivered.
    fn tcp(version: u8) -> Vec<u8> {
        let of_version = |(_, _, packet): &(i32, &str, Vec<u8>)| packet[0] >> 4 == version;
        let plain = frames::probes().into_iter().filter(|(linktype, ..)| *linktype == 12);
        plain.filter(of_version).map(|(_, _, packet)| packet).next().unwrap()
    }

    fn wider(linktype: i32) -> BpfProgram {
        let link = LinkLayer::of_linktype(linktype).unwrap();
        let capture = Capture::dead(Linktype(linktype)).unwrap();
        capture
            .compile(&segments_on(link), true)
            .unwrap_or_else(|error| panic!("{link:?}: {error}"))
    }

    #[test]
    fn every_frame_with_an_outcome_passes_only_the_wider_filter() {
        for (linktype, name, mut frame) in frames::probes() {
            let Some(flags) = frames::flags_in(&frame) else { continue };
            let link = LinkLayer::of_linktype(linktype).unwrap();
            let wider = wider(linktype);
            assert!(wider.filter(&frame), "{name}: a probe");
            for outcome in [0x12, 0x04, 0x14, 0x11] {
                frame[flags] = outcome;
                assert!(wider.filter(&frame), "{name}: {outcome:#04x}");
                assert!(segment_in(link, &frame, Moment::default()).is_some(), "{name}");
                assert_eq!(probe_in(link, &frame, Moment::default()), None, "{name}");
            }
            frame[flags] = 0x10;
            assert_eq!(segment_in(link, &frame, Moment::default()), None, "{name}");
        }
    }
}
