//! Guesses the addresses of the host on which a capture was made, for captures without `--local`.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::types::Segment;

/// Returns at most one address per family: it takes part in all connections, and receives more probes than it
/// sends. A capture of a client or of a router has none.
pub fn own_addresses(segments: &[Segment]) -> Vec<IpNet> {
    [true, false].into_iter().filter_map(|ipv4| own_address(segments, ipv4)).collect()
}

fn own_address(segments: &[Segment], ipv4: bool) -> Option<IpNet> {
    let of_family = || segments.iter().filter(|segment| segment.source.is_ipv4() == ipv4);
    let mut seen: HashMap<IpAddr, usize> = HashMap::new();
    let mut received: HashMap<IpAddr, i64> = HashMap::new();
    for segment in of_family() {
        for end in [segment.source, segment.destination] {
            *seen.entry(end).or_default() += 1;
        }
        if segment.kind.is_probe() {
            *received.entry(segment.destination).or_default() += 1;
            *received.entry(segment.source).or_default() -= 1;
        }
    }
    let all = of_family().count();
    let own = received.into_iter().filter(|(end, surplus)| *surplus > 0 && seen[end] == all);
    own.map(|(end, _)| IpNet::from(end)).next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Moment, Port, SegmentKind};

    fn segment(kind: SegmentKind, source: &str, destination: &str) -> Segment {
        Segment {
            moment: Moment::default(),
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            source_port: Port(40_000),
            port: Port(80),
            kind,
            sequence: 0,
            acknowledged: 0,
            crafted: false,
            sender: 0,
        }
    }

    fn syn(source: &str, destination: &str) -> Segment {
        segment(SegmentKind::Syn, source, destination)
    }

    #[test]
    fn server_addresses_of_both_families_are_found() {
        let server = [
            syn("192.0.2.1", "203.0.113.10"),
            segment(SegmentKind::ResetAck, "203.0.113.10", "192.0.2.1"),
            syn("192.0.2.2", "203.0.113.10"),
            // It may also send probes, if it receives more.
            syn("203.0.113.10", "192.0.2.3"),
            syn("2001:db8::1", "2001:db8::10"),
        ];
        let own = ["203.0.113.10/32", "2001:db8::10/128"];
        assert_eq!(own_addresses(&server), own.map(|network| network.parse().unwrap()));
    }

    #[test]
    fn captures_of_clients_and_routers_have_none() {
        let client = [syn("203.0.113.10", "192.0.2.1"), syn("203.0.113.10", "192.0.2.2")];
        assert_eq!(own_addresses(&client), []);
        let gateway = [syn("192.0.2.1", "203.0.113.10"), syn("192.0.2.1", "203.0.113.11")];
        assert_eq!(own_addresses(&gateway), []);
        assert_eq!(own_addresses(&[]), []);
    }
}
