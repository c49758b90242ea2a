//! Addresses with a special meaning: those that no remote host has, and IPv6 spellings of IPv4 addresses.
//!
//! Pure. Owns which addresses these are. It knows nothing about this host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::types::overlap;

/// 127.0.0.0/8 and ::1/128 (RFC 6890).
pub fn loopback() -> [IpNet; 2] {
    [
        IpNet::new_assert(Ipv4Addr::new(127, 0, 0, 0).into(), 8),
        IpNet::new_assert(Ipv6Addr::LOCALHOST.into(), 128),
    ]
}

/// 169.254.0.0/16 and fe80::/10 (RFC 6890).
pub fn link_local() -> [IpNet; 2] {
    [
        IpNet::new_assert(Ipv4Addr::new(169, 254, 0, 0).into(), 16),
        IpNet::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).into(), 10),
    ]
}

/// Returns whether no remote host can have an address: it is in 0.0.0.0/8, 127.0.0.0/8, 224.0.0.0/4 or
/// 240.0.0.0/4, it is :: or ::1, or it is in ff00::/8 (RFC 6890).
#[inline]
pub const fn impossible_source(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => matches!(address.octets()[0], 0 | 127 | 224..),
        IpAddr::V6(address) => address.to_bits() <= 1 || address.octets()[0] == 0xff,
    }
}

/// Returns the special network around a network in which no remote host can have an address.
pub fn impossible_around(network: &IpNet) -> Option<IpNet> {
    let v4 = [(0, 8), (127, 8), (224, 4), (240, 4), (224, 3)];
    let v4 =
        v4.map(|(first, length)| IpNet::new_assert(Ipv4Addr::new(first, 0, 0, 0).into(), length));
    let multicast = Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0);
    let v6 = [(Ipv6Addr::UNSPECIFIED, 127), (multicast, 8)];
    let v6 = v6.map(|(first, length)| IpNet::new_assert(first.into(), length));
    v4.into_iter().chain(v6).find(|impossible| impossible.contains(network))
}

/// A way to write an IPv4 address as an IPv6 address.
struct Spelling {
    /// The first bits, and how many they are.
    prefix: Ipv6Addr,
    length: u32,
    /// The bit at which the IPv4 address begins. Up to bit 64, it leaves out the bits 64 to 71 (RFC 6052,
    /// 2.2).
    at: u32,
    /// The bits after the prefix that do not belong to the IPv4 address are zero from `at` on.
    padded: bool,
}

const fn spelling(prefix: [u16; 3], length: u32, at: u32, padded: bool) -> Spelling {
    let prefix = Ipv6Addr::new(prefix[0], prefix[1], prefix[2], 0, 0, 0, 0, 0);
    Spelling { prefix, length, at, padded }
}

/// NAT64 within a site may use any length that RFC 6052 defines under its prefix (RFC 8215).
const SPELLINGS: [Spelling; 8] = [
    // IPv4-mapped and IPv4-compatible (RFC 4291, 2.5.5).
    Spelling { prefix: Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(), ..spelling([0; 3], 96, 96, true) },
    spelling([0; 3], 96, 96, true),
    // NAT64 (RFC 6052, RFC 8215).
    spelling([0x64, 0xff9b, 0], 96, 96, true),
    spelling([0x64, 0xff9b, 1], 48, 48, true),
    spelling([0x64, 0xff9b, 1], 48, 56, true),
    spelling([0x64, 0xff9b, 1], 48, 64, true),
    spelling([0x64, 0xff9b, 1], 48, 96, true),
    // 6to4 (RFC 3056): the network behind the IPv4 address.
    spelling([0x2002, 0, 0], 16, 16, false),
];

impl Spelling {
    /// Returns whether an IPv6 network contains a spelling of an address in an IPv4 network, or lies within
    /// such spellings.
    fn overlaps(&self, v4: Ipv4Net, v6: &Ipv6Net) -> bool {
        let padding = if self.padded { u128::MAX >> self.at & !self.place(u32::MAX) } else { 0 };
        let fixed = first_bits(self.length) | self.place(v4.netmask().to_bits()) | padding;
        let spelled = self.prefix.to_bits() | self.place(v4.network().to_bits());
        let differing = spelled ^ v6.network().to_bits();
        differing & fixed & first_bits(v6.prefix_len().into()) == 0
    }

    /// Puts the bits of an IPv4 address into their place.
    const fn place(&self, v4: u32) -> u128 {
        const LOW: u128 = u64::MAX as u128;
        let bits = (v4 as u128) << 96 >> self.at;
        if self.at > 64 { bits } else { bits & !LOW | (bits & LOW) >> 8 }
    }
}

const fn first_bits(count: u32) -> u128 {
    match u128::MAX.checked_shr(count) {
        Some(rest) => !rest,
        None => u128::MAX,
    }
}

/// Returns whether a network has an address in common with an exempt one, in any spelling of IPv4.
pub fn overlap_in_any_spelling(exempt: &IpNet, network: &IpNet) -> bool {
    match (exempt, network) {
        (IpNet::V4(v4), IpNet::V6(v6)) => {
            SPELLINGS.iter().any(|spelling| spelling.overlaps(*v4, v6))
        }
        // An exempt network as large as all spellings means IPv6: ::/0 does not exempt IPv4.
        (IpNet::V6(v6), IpNet::V4(v4)) => SPELLINGS.iter().any(|spelling| {
            u32::from(v6.prefix_len()) > spelling.length && spelling.overlaps(*v4, v6)
        }),
        _ => overlap(exempt, network),
    }
}

/// Returns whether addresses of a network may be spellings of IPv4 addresses.
pub fn has_spellings(network: &IpNet) -> bool {
    let IpNet::V6(v6) = network else { return false };
    SPELLINGS.iter().any(|spelling| {
        let differing = spelling.prefix.to_bits() ^ v6.network().to_bits();
        differing & first_bits(spelling.length) & first_bits(v6.prefix_len().into()) == 0
    })
}

/// Returns whether an IPv6 address is one of many IPv4 hosts that share a /64: NAT64, IPv4-mapped or
/// IPv4-compatible.
#[inline]
pub fn shares_network_with_ipv4(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    matches!(segments, [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0x64, 0xff9b, 0 | 1, ..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::parse_network;

    fn net(text: &str) -> IpNet {
        parse_network(text).unwrap()
    }

    #[test]
    fn every_spelling_of_an_exempt_address_is_found() {
        let exempt = net("203.0.113.5");
        for spelled in [
            "203.0.113.5",
            "::ffff:203.0.113.5",
            "::203.0.113.5",
            "64:ff9b::203.0.113.5",
            // RFC 6052, 2.4: /48, /56, /64 and /96.
            "64:ff9b:1:cb00:71:500::",
            "64:ff9b:1:12cb:0:7105::",
            "64:ff9b:1:1234:cb:71:500:0",
            "64:ff9b:1:1234:12:3456:203.0.113.5",
            "2002:cb00:7105::",
            "2002:cb00:7105:12:3456:789a:bcde:f012",
            // Networks with such an address.
            "203.0.113.0/24",
            "64:ff9b::/96",
            "64:ff9b::/64",
            "64:ff9b:1::/48",
            "64:ff9b:1:cb00::/64",
            "2002:cb00:7105::/48",
            "2002:cb00:7105:7::/64",
            "2002::/16",
            "::/64",
            "::/0",
        ] {
            assert!(overlap_in_any_spelling(&exempt, &net(spelled)), "{spelled}");
        }
        for other in [
            "203.0.113.6",
            "64:ff9b::203.0.113.6",
            "64:ff9b:0:1::203.0.113.5",
            "64:ff9b:1:cb00:71:600::",
            "64:ff9b:1:cb00:71:500::1",
            "64:ff9b:2::203.0.113.5",
            "2002:cb00:7106::/48",
            "2001:db8::203.0.113.5",
            "::203.0.113.6",
            "2001::/16",
        ] {
            assert!(!overlap_in_any_spelling(&exempt, &net(other)), "{other}");
        }
    }

    #[test]
    fn exempt_spelling_exempts_the_ipv4_address() {
        let v4 = net("203.0.113.5");
        for exempt in ["64:ff9b::203.0.113.5", "64:ff9b::203.0.113.0/120", "2002:cb00:7105::/48"] {
            assert!(overlap_in_any_spelling(&net(exempt), &v4), "{exempt}");
        }
        for exempt in ["64:ff9b::203.0.113.6", "64:ff9b::/96", "2002::/16", "::/0", "2000::/3"] {
            assert!(!overlap_in_any_spelling(&net(exempt), &v4), "{exempt}");
        }
    }

    #[test]
    fn address_that_no_remote_host_has_is_impossible() {
        for (address, around) in [
            ("0.0.0.0", Some("0.0.0.0/8")),
            ("0.1.2.3", Some("0.0.0.0/8")),
            ("127.0.0.1", Some("127.0.0.0/8")),
            ("224.0.0.5", Some("224.0.0.0/4")),
            ("240.1.2.3", Some("240.0.0.0/4")),
            ("255.255.255.255", Some("240.0.0.0/4")),
            ("::", Some("::/127")),
            ("::1", Some("::/127")),
            ("ff02::5", Some("ff00::/8")),
            ("1.0.0.0", None),
            ("126.255.255.255", None),
            ("128.0.0.0", None),
            ("223.255.255.255", None),
            ("::2", None),
            ("fe80::1", None),
        ] {
            let network = net(address);
            assert_eq!(impossible_source(network.addr()), around.is_some(), "{address}");
            assert_eq!(impossible_around(&network), around.map(net), "{address}");
        }
        assert_eq!(impossible_around(&net("224.0.0.0/3")), Some(net("224.0.0.0/3")));
        assert_eq!(impossible_around(&net("0.0.0.0/0")), None);
    }
}
