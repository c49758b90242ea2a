//! Sets of addresses and of networks that answer in the same time at any size.
//!
//! Pure. A packet or a verdict must not cost more on a host with thousands of addresses or exemptions.

use std::collections::HashSet;
use std::net::IpAddr;

use foldhash::fast::RandomState;
use ipnet::IpNet;

use crate::types::{has_spellings, overlap, overlap_in_any_spelling};

/// Up to so many addresses are compared one by one, which is faster than a hash.
const FEW: usize = 8;

/// A set of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressSet {
    sorted: Vec<IpAddr>,
    /// The same addresses, if there are many.
    hashed: HashSet<IpAddr, RandomState>,
}

impl AddressSet {
    /// Makes a set of these addresses.
    pub fn new(mut addresses: Vec<IpAddr>) -> Self {
        addresses.sort_unstable();
        addresses.dedup();
        let is_large = addresses.len() > FEW;
        let hashed = addresses.iter().copied().filter(|_| is_large).collect();
        Self { sorted: addresses, hashed }
    }

    /// Returns whether the set contains an address.
    #[inline]
    pub fn contains(&self, address: &IpAddr) -> bool {
        if self.sorted.len() <= FEW {
            self.sorted.contains(address)
        } else {
            self.hashed.contains(address)
        }
    }

    /// Returns whether a network contains an address of the set.
    pub fn has_any_in(&self, network: &IpNet) -> bool {
        let at = self.sorted.partition_point(|address| *address < network.network());
        self.sorted.get(at).is_some_and(|address| network.contains(address))
    }

    /// The addresses in order.
    pub fn as_slice(&self) -> &[IpAddr] {
        &self.sorted
    }
}

/// A set of networks, in which to find one that has an address in common with another network.
#[derive(Clone, Debug, Default)]
pub struct NetworkSet {
    /// The networks that lie in no other one, in order. So they are disjoint.
    largest: Vec<IpNet>,
    /// The IPv6 networks that may spell an IPv4 address.
    spelled: Vec<IpNet>,
}

impl NetworkSet {
    /// Returns a network of the set that has an address in common with `network`, in any spelling of IPv4.
    pub fn overlapping(&self, network: &IpNet) -> Option<IpNet> {
        // A network before this one begins at or before the end of `network`. The last one that does is the
        // only one that can contain `network`, and the last of those that lie within it.
        let end = self.largest.partition_point(|own| own.network() <= network.broadcast());
        let last = self.largest[..end].last().filter(|own| overlap(own, network));
        let others = match network {
            IpNet::V4(_) => &self.spelled[..],
            // Few sources are such addresses.
            IpNet::V6(_) if has_spellings(network) => &self.largest[..],
            IpNet::V6(_) => &[],
        };
        let spelled = || others.iter().find(|own| overlap_in_any_spelling(own, network));
        last.or_else(spelled).copied()
    }
}

impl FromIterator<IpNet> for NetworkSet {
    fn from_iter<T: IntoIterator<Item = IpNet>>(networks: T) -> Self {
        let mut sorted: Vec<IpNet> = networks.into_iter().map(|network| network.trunc()).collect();
        // A network comes directly before those that lie within it.
        sorted.sort_unstable_by_key(|network| (network.network(), network.prefix_len()));
        let spelled = |network: &&IpNet| matches!(network, IpNet::V6(_)) && has_spellings(network);
        let spelled = sorted.iter().filter(spelled).copied().collect();
        sorted.dedup_by(|later, earlier| earlier.contains(&*later));
        Self { largest: sorted, spelled }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Networks that often overlap, some of them in another spelling.
    fn networks() -> impl Strategy<Value = IpNet> {
        let v4 = (0u32..64, 24u8..=32).prop_map(|(low, length)| (0x0a00_0000 | low << 2, length));
        let prefix = prop_oneof![Just(0x0064_ff9b_u128 << 96), Just(0x2001_0db8_u128 << 96)];
        let v6 = (prefix, v4.clone(), 0u8..=8).prop_map(|(prefix, (low, length), wider)| {
            let bits = prefix | u128::from(low);
            IpNet::new(std::net::Ipv6Addr::from_bits(bits).into(), 96 + length - wider).unwrap()
        });
        let v4 = v4.prop_map(|(bits, length)| {
            IpNet::new(std::net::Ipv4Addr::from_bits(bits).into(), length).unwrap()
        });
        prop_oneof![v4, v6].prop_map(|network| network.trunc())
    }

    proptest! {
        #[test]
        fn set_finds_what_a_comparison_with_each_network_finds(
            set in proptest::collection::vec(networks(), 0..20),
            network in networks(),
        ) {
            let found = set.iter().copied().collect::<NetworkSet>().overlapping(&network);
            prop_assert_eq!(
                found.is_some(),
                set.iter().any(|own| overlap_in_any_spelling(own, &network)),
                "{:?}", found
            );
            if let Some(found) = found {
                prop_assert!(set.contains(&found) && overlap_in_any_spelling(&found, &network));
            }
        }

        #[test]
        fn addresses_are_found_at_any_size(
            numbers in proptest::collection::vec(0u32..100, 0..40),
            other in 0u32..100,
        ) {
            let address = |number| IpAddr::from(std::net::Ipv4Addr::from_bits(number));
            let set = AddressSet::new(numbers.iter().copied().map(address).collect());
            prop_assert_eq!(set.contains(&address(other)), numbers.contains(&other));
            let network = IpNet::new(address(other), 30).unwrap().trunc();
            let within = numbers.iter().any(|number| network.contains(&address(*number)));
            prop_assert_eq!(set.has_any_in(&network), within);
        }
    }
}
