//! The kernel's share of the work: the BPF filter that lets through what may be a probe.
//!
//! Owns the filter text. It may let through too much, which [`super::frame`] then refuses, but
//! never too little.

use super::frame::LinkLayer;

/// SYN without ACK, or one of the three stealth probes (FIN, NULL, XMAS; the two ECN bits aside).
/// `{}` stands for the byte that holds the flags.
const FLAGS: &str = "({}&18=2 or {}&63=0 or {}&63=1 or {}&63=0x29)";

/// The extension headers a TCP header may hide behind: BPF cannot walk them.
const IPV6_EXTENSIONS: [u8; 8] = [0, 43, 44, 51, 60, 135, 139, 140];

/// The filter for an interface of this kind, in pcap-filter(7)'s language.
pub fn probes_on(link: LinkLayer) -> String {
    let ipv4_flags = FLAGS.replace("{}", "tcp[13]");
    let ipv6_flags = FLAGS.replace("{}", "ip6[53]");
    let extensions = IPV6_EXTENSIONS.map(|next| format!("ip6[6]={next}")).join(" or ");
    // First fragments come first: `tcp[13]` on a fragment that ends before its flags is a load
    // out of range, which rejects the packet whatever else the filter says.
    let bare = format!(
        "((ip and ip[9]=6 and ip[6:2]&0x3fff=0x2000) or (ip and {ipv4_flags}) \
         or (ip6 and ({extensions})) or (ip6 and ip6[6]=6 and {ipv6_flags}))"
    );
    match link {
        // Each `vlan` moves the offsets of all that follows it by one tag.
        LinkLayer::Ethernet => format!("{bare} or (vlan and ({bare} or (vlan and {bare})))"),
        // `vlan` does not compile for the others.
        LinkLayer::LinuxSll
        | LinkLayer::LinuxSll2
        | LinkLayer::RawIp
        | LinkLayer::Loopback
        | LinkLayer::Ppp
        | LinkLayer::CiscoHdlc => bare,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pcap::{Capture, Linktype};

    #[test]
    fn the_filter_compiles_for_every_link_layer() {
        for (linktype, link) in [
            (1, LinkLayer::Ethernet),
            (113, LinkLayer::LinuxSll),
            (276, LinkLayer::LinuxSll2),
            (12, LinkLayer::RawIp),
            (0, LinkLayer::Loopback),
            (9, LinkLayer::Ppp),
            (104, LinkLayer::CiscoHdlc),
        ] {
            let capture = Capture::dead(Linktype(linktype)).unwrap();
            capture.compile(&probes_on(link), true).unwrap_or_else(|e| panic!("{link:?}: {e}"));
        }
    }
}
