//! Addresses and networks as people write and read them.
//!
//! Owns the one way to read them, for the bus, the command line and the configuration alike.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Bits in front of the IPv4 address in one written as IPv6 (RFC 4291, 2.5.5.2).
const MAPPED: u8 = 96;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// Both, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of a network.
    pub const fn of(network: IpNet) -> Self {
        match network {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }

    /// `NFPROTO_IPV4`, `NFPROTO_IPV6`
    pub const fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }
}

/// A text that is neither an address nor a network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// Not an address at all.
    #[error(
        "{0:?} is neither an address nor a network; write 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32"
    )]
    Unreadable(String),
    /// An address, and behind it no length of a network.
    #[error(
        "{text:?} needs a prefix length from 0 to {longest} behind its \"/\", such as 192.0.2.0/24 or 2001:db8::/32"
    )]
    Length {
        /// What was written.
        text: String,
        /// The greatest there is.
        longest: u8,
    },
    /// An address within a network, with the network's length.
    #[error(
        "{text:?} has bits set behind its prefix length; did you mean the network {network} or the address {address}?"
    )]
    HostBits {
        /// What was written.
        text: String,
        /// The network around it.
        network: IpNet,
        /// The address in it.
        address: IpAddr,
    },
}

/// Reads an address, or a network in CIDR notation. What is IPv4 written as IPv6 (`::ffff:192.0.2.7`) is
/// IPv4: so it comes over the wire.
pub fn parse_network(text: &str) -> Result<IpNet, InvalidAddress> {
    let trimmed = text.trim();
    if let Ok(address) = trimmed.parse::<IpAddr>() {
        return Ok(IpNet::from(address.to_canonical()));
    }
    let network = unmapped(trimmed.parse().map_err(|_| unreadable(text))?);
    if network.addr() != network.network() {
        return Err(InvalidAddress::HostBits {
            text: text.to_owned(),
            network: network.trunc(),
            address: network.addr(),
        });
    }
    Ok(network)
}

fn unreadable(text: &str) -> InvalidAddress {
    let address = text.split_once('/').and_then(|(address, _)| address.trim().parse().ok());
    match address.map(|address: IpAddr| IpNet::from(address).max_prefix_len()) {
        Some(longest) => InvalidAddress::Length { text: text.to_owned(), longest },
        None => InvalidAddress::Unreadable(text.to_owned()),
    }
}

fn unmapped(network: IpNet) -> IpNet {
    let unmapped = |v6: Ipv6Net| {
        let address = v6.addr().to_ipv4_mapped()?;
        Ipv4Net::new(address, v6.prefix_len().checked_sub(MAPPED)?).ok()
    };
    match network {
        IpNet::V6(v6) => unmapped(v6).map_or(network, IpNet::V4),
        IpNet::V4(_) => network,
    }
}

/// A network as people read it: a single address without its length.
pub fn show_network(network: &IpNet) -> String {
    if network.prefix_len() == network.max_prefix_len() {
        network.addr().to_string()
    } else {
        network.to_string()
    }
}

/// Whether two networks have an address in common.
pub fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_networks_are_read_and_shown() {
        for (text, shown) in [
            ("192.0.2.7", "192.0.2.7"),
            (" 192.0.2.7/32 ", "192.0.2.7"),
            ("192.0.2.0/24", "192.0.2.0/24"),
            ("2001:DB8::1", "2001:db8::1"),
            ("2001:db8::/64", "2001:db8::/64"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.7/128", "192.0.2.7"),
            ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("::/64", "::/64"),
        ] {
            assert_eq!(show_network(&parse_network(text).unwrap()), shown);
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_the_text_that_was_wrong() {
        for bad in ["", "scanner", "192.0.2", "192.0.2.7/33", "192.0.2.7 192.0.2.8", "10.0.0.1-9"] {
            let error = parse_network(bad).unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
        for (bad, longest) in [("192.0.2.7/33", 32), ("10.0.0.0/255.0.0.0", 32), ("::/129", 128)] {
            let error = parse_network(bad).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("{bad:?} needs a prefix length from 0 to {longest} "))
            );
        }
        let error = parse_network("10.1.2.3/8").unwrap_err().to_string();
        assert!(error.contains("10.0.0.0/8") && error.contains("10.1.2.3?"), "{error}");
        let error = parse_network("::ffff:10.1.2.3/104").unwrap_err().to_string();
        assert!(error.contains("10.0.0.0/8") && error.contains("10.1.2.3?"), "{error}");
    }
}
