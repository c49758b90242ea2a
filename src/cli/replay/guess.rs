//! Which host a capture was made on, where nobody says.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::probe::Probe;

/// The addresses, one a family at the most, that have a part in everything and are asked more than they
/// ask. A capture made elsewhere has none, nor one of a client.
pub(super) fn own_addresses(segments: &[Probe]) -> Vec<IpNet> {
    [true, false].into_iter().filter_map(|ipv4| own_address(segments, ipv4)).collect()
}

fn own_address(segments: &[Probe], ipv4: bool) -> Option<IpNet> {
    let of_family = || segments.iter().filter(|segment| segment.source.is_ipv4() == ipv4);
    let mut seen: HashMap<IpAddr, usize> = HashMap::new();
    let mut asked: HashMap<IpAddr, i64> = HashMap::new();
    for segment in of_family() {
        for end in [segment.source, segment.destination] {
            *seen.entry(end).or_default() += 1;
        }
        if segment.kind.asks() {
            *asked.entry(segment.destination).or_default() += 1;
            *asked.entry(segment.source).or_default() -= 1;
        }
    }
    let all = of_family().count();
    let own = asked.into_iter().filter(|(end, asked)| *asked > 0 && seen[end] == all);
    own.map(|(end, _)| IpNet::from(end)).next()
}
