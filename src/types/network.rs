//! Addresses and networks as people write them.
//!
//! Owns how they are parsed and shown, for the bus, the command line and the configuration.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::types::words::words;

/// Bits before the IPv4 address in an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2).
const MAPPED: u8 = 96;

words! {
    /// An address family.
    #[derive(PartialOrd, Ord, Hash)]
    Family {
        V4 = "ipv4",
        V6 = "ipv6",
    }
}

impl Family {
    /// Returns the family of a network.
    pub const fn of(network: IpNet) -> Self {
        match network {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
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
    #[error(
        "{0:?} is neither an address nor a network; write 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32"
    )]
    Unreadable(String),
    /// An address with an invalid prefix length.
    #[error(
        "{text:?} needs a prefix length from 0 to {longest} after the \"/\", such as 192.0.2.0/24 or 2001:db8::/32"
    )]
    Length {
        text: String,
        /// The greatest prefix length.
        longest: u8,
    },
    /// An address in a network, with the prefix length of the network.
    #[error(
        "{text:?} has bits set after its prefix length; did you mean the network {network} or the address {address}?"
    )]
    HostBits { text: String, network: IpNet, address: IpAddr },
}

/// Parses an address, or a network in CIDR notation. An IPv4-mapped IPv6 address (`::ffff:192.0.2.7`) becomes
/// IPv4, because its packets are IPv4.
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

/// Shows a network, and a single address without its prefix length.
pub fn show_network(network: &IpNet) -> String {
    if network.prefix_len() == network.max_prefix_len() {
        network.addr().to_string()
    } else {
        network.to_string()
    }
}

/// Returns whether two networks have an address in common.
pub fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_networks_are_parsed_and_shown() {
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
    fn error_quotes_the_invalid_text() {
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
