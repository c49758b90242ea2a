//! Why there is no segment in a frame.
//!
//! Owns the reasons, for people who wonder why a capture shows nothing. The service never asks.

use super::{LinkLayer, TCP, TCP_TO_FLAGS, ip_payload, network_layer, u16_at};

/// Why there is no segment in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Absence {
    /// The frame ends before the TCP flags.
    Cut,
    /// The outermost IP header, or the frame, carries another packet.
    Tunnel(&'static str),
    /// A fragment without the TCP header.
    LaterFragment,
    /// A TCP segment with flags that do not matter.
    OtherFlags,
    /// Anything else.
    NotTcp,
}

/// Returns why there is no segment in a frame, or no segment of interest.
pub fn absence(link: LinkLayer, frame: &[u8]) -> Absence {
    let packet = match network_layer(link, frame).and_then(ip_payload) {
        Ok(packet) => packet,
        Err(absence) => return absence,
    };
    match packet.protocol {
        TCP if packet.bytes.len() < TCP_TO_FLAGS => Absence::Cut,
        TCP => Absence::OtherFlags,
        4 | 41 => Absence::Tunnel("IP in IP"),
        17 => match (u16_at(packet.bytes, 0), u16_at(packet.bytes, 2)) {
            // Port 8472 is the default of Linux.
            (_, Some(4789 | 8472)) => Absence::Tunnel("VXLAN"),
            (_, Some(6081)) => Absence::Tunnel("Geneve"),
            (_, Some(2152)) | (Some(2152), _) => Absence::Tunnel("GTP"),
            _ => Absence::NotTcp,
        },
        47 => Absence::Tunnel("GRE"),
        50 => Absence::Tunnel("IPsec"),
        97 => Absence::Tunnel("EtherIP"),
        _ => Absence::NotTcp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::capture::frame::tests as frames;

    #[test]
    fn each_frame_without_a_segment_has_its_reason() {
        for (linktype, name, mut frame) in frames::probes() {
            let link = LinkLayer::of_linktype(linktype).unwrap();
            let Some(flags) = frames::flags_in(&frame) else { continue };
            frame[flags] = 0x10;
            assert_eq!(absence(link, &frame), Absence::OtherFlags, "{name}");
            for length in 4..flags {
                assert_eq!(absence(link, &frame[..length]), Absence::Cut, "{name}, {length}");
            }
        }
        let ip = |protocol: u8, ports: [u16; 2]| {
            let [from, to] = ports.map(u16::to_be_bytes);
            let mut packet = vec![0x45, 0, 0, 40, 0, 1, 0, 0, 64, protocol, 0, 0];
            packet.extend([192, 0, 2, 1, 198, 51, 100, 2, from[0], from[1], to[0], to[1]]);
            packet
        };
        for (packet, reason) in [
            (ip(17, [50_000, 4789]), Absence::Tunnel("VXLAN")),
            (ip(17, [50_000, 6081]), Absence::Tunnel("Geneve")),
            (ip(17, [2152, 2152]), Absence::Tunnel("GTP")),
            (ip(17, [50_000, 53]), Absence::NotTcp),
            (ip(47, [0, 0]), Absence::Tunnel("GRE")),
            (ip(41, [0, 0]), Absence::Tunnel("IP in IP")),
            (ip(50, [0, 0]), Absence::Tunnel("IPsec")),
            (ip(1, [0, 0]), Absence::NotTcp),
        ] {
            assert_eq!(absence(LinkLayer::RawIp, &packet), reason);
        }
        let over_mpls = [&[0; 12][..], &[0x88, 0x47, 0, 1, 1, 64, 0, 0, 0, 0, 2, 0]].concat();
        assert_eq!(absence(LinkLayer::Ethernet, &over_mpls), Absence::Tunnel("EoMPLS"));
        let arp = [&[0; 12][..], &[8, 6], &[0; 28]].concat();
        assert_eq!(absence(LinkLayer::Ethernet, &arp), Absence::NotTcp);
        let later_fragment = {
            let mut packet = ip(6, [0, 0]);
            packet[7] = 1;
            packet
        };
        assert_eq!(absence(LinkLayer::RawIp, &later_fragment), Absence::LaterFragment);
    }
}
