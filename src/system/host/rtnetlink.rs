//! Links, addresses and routers of this host, over rtnetlink.
//!
//! Owns the messages (linux/rtnetlink.h, linux/if_addr.h, linux/nexthop.h), and what a change of them means.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::system::netlink::{Attributes, Body, NetlinkError, NetlinkSocket};

const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;
const RTM_GETROUTE: u16 = 26;
const RTM_GETNEXTHOP: u16 = 106;
const IFLA_IFNAME: u16 = 3;
/// linux/if.h
const IFF_UP: u32 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_MULTIPATH: u16 = 9;
/// A gateway of the other family: `struct rtvia`, a family and an address.
const RTA_VIA: u16 = 18;
const NHA_GATEWAY: u16 = 6;
/// `struct ifinfomsg`, `struct ifaddrmsg`, `struct rtmsg`, `struct rtnexthop` and `struct nhmsg`.
const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
const ROUTE_HEADER: usize = 12;
const HOP_HEADER: usize = 8;
const NEXTHOP_HEADER: usize = 8;

/// Multicast groups for changes: links, addresses and routes of both families, and nexthop
/// objects, to which routes may refer.
pub const GROUPS: u32 = 0x1 | 0x10 | 0x100 | 0x40 | 0x400 | 1 << 31;

/// Returns the names of the interfaces that are down.
pub fn links_down(socket: &mut NetlinkSocket) -> Result<Vec<String>, NetlinkError> {
    let mut down = Vec::new();
    visit::<LINK_HEADER>(socket, RTM_GETLINK, |link| down.extend(name_if_down(link)))?;
    Ok(down)
}

/// Returns the addresses of this host, and the broadcast addresses of their networks.
pub fn addresses(socket: &mut NetlinkSocket) -> Result<(Vec<IpAddr>, Vec<IpAddr>), NetlinkError> {
    let (mut own, mut broadcasts) = (Vec::new(), Vec::new());
    visit::<ADDRESS_HEADER>(socket, RTM_GETADDR, |address| {
        own.extend(address_in(address));
        broadcasts.extend(broadcasts_in(address).into_iter().flatten());
    })?;
    Ok((own, broadcasts))
}

/// What the kernel has reported since the last look.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// A link or an address.
    pub network: bool,
    /// A route, or an object to which routes refer.
    pub routes: bool,
    /// Some reports were lost, perhaps of routes.
    pub lost: bool,
    /// The routers of new routes.
    pub new_gateways: Vec<IpAddr>,
}

impl Changes {
    /// Adds the notifications that have arrived.
    pub fn take(&mut self, socket: &mut NetlinkSocket) -> Result<(), NetlinkError> {
        let is_complete =
            socket.for_each_notification(|_, kind, object| self.note(kind, object))?;
        let lost = !is_complete;
        self.lost |= lost;
        self.network |= lost;
        Ok(())
    }

    /// The kernel reports a new object with the number of the request less 2, and the end of one with the next
    /// number.
    fn note(&mut self, kind: u16, object: &[u8]) {
        let is_about = |request| kind == request - 2 || kind == request - 1;
        if is_about(RTM_GETROUTE) || is_about(RTM_GETNEXTHOP) {
            self.routes = true;
        } else if is_about(RTM_GETLINK) || is_about(RTM_GETADDR) {
            self.network = true;
        }
        if kind == RTM_GETROUTE - 2 {
            let attributes = object.get(ROUTE_HEADER..).unwrap_or_default();
            gateways_in(attributes, &mut self.new_gateways);
        } else if kind == RTM_GETNEXTHOP - 2 {
            self.new_gateways.extend(gateway_of_nexthop(object));
        }
    }
}

/// Returns the routers of all routes in all tables.
pub fn gateways(socket: &mut NetlinkSocket) -> Result<HashSet<IpAddr>, NetlinkError> {
    let mut gateways = HashSet::new();
    // A million routes have a few routers.
    let mut of_route = Vec::new();
    visit::<ROUTE_HEADER>(socket, RTM_GETROUTE, |route| {
        gateways_in(route.get(ROUTE_HEADER..).unwrap_or_default(), &mut of_route);
        gateways.extend(of_route.drain(..));
    })?;
    let nexthops = visit::<NEXTHOP_HEADER>(socket, RTM_GETNEXTHOP, |nexthop| {
        gateways.extend(gateway_of_nexthop(nexthop));
    });
    match nexthops {
        // Kernels before 5.3 have none.
        Ok(()) | Err(NetlinkError::Refused(_)) => Ok(gateways),
        Err(error) => Err(error),
    }
}

/// Passes each object that a request returns to `each`. The kernel answers it with the message `RTM_NEW...`,
/// whose number is 2 less.
fn visit<const HEADER: usize>(
    socket: &mut NetlinkSocket,
    request: u16,
    mut each: impl FnMut(&[u8]),
) -> Result<(), NetlinkError> {
    socket.dump(request, &Body::with_header(&[0; HEADER]), |kind, object| {
        if kind == request - 2 {
            each(object);
        }
    })
}

fn gateway_of_nexthop(nexthop: &[u8]) -> Option<IpAddr> {
    Attributes::of(nexthop.get(NEXTHOP_HEADER..)?).find(NHA_GATEWAY).and_then(address_of)
}

pub fn name_if_down(body: &[u8]) -> Option<String> {
    let flags = u32::from_ne_bytes(body.get(8..12)?.try_into().ok()?);
    if flags & IFF_UP != 0 {
        return None;
    }
    let name = Attributes::of(body.get(LINK_HEADER..)?).find(IFLA_IFNAME)?;
    Some(String::from_utf8_lossy(name.strip_suffix(&[0])?).into_owned())
}

pub fn address_in(body: &[u8]) -> Option<IpAddr> {
    let attributes = body.get(ADDRESS_HEADER..)?;
    // On a point-to-point link IFA_ADDRESS is the peer's.
    let value = Attributes::of(attributes)
        .find(IFA_LOCAL)
        .or_else(|| Attributes::of(attributes).find(IFA_ADDRESS))?;
    address_of(value)
}

/// Returns the broadcast address that is configured with an address, and the last address of its network,
/// which the kernel takes for one in any case.
pub fn broadcasts_in(body: &[u8]) -> [Option<IpAddr>; 2] {
    let attributes = body.get(ADDRESS_HEADER..).unwrap_or_default();
    let find = |kind| Attributes::of(attributes).find(kind).and_then(address_of);
    let last = |address| match IpNet::new(address, *body.get(1)?).ok()? {
        // Networks of two addresses have none (RFC 3021).
        IpNet::V4(network) if network.prefix_len() < 31 => Some(network.broadcast().into()),
        _ => None,
    };
    [find(IFA_BROADCAST), find(IFA_ADDRESS).and_then(last)]
}

/// Adds the routers among the attributes of a route or a hop.
pub fn gateways_in(attributes: &[u8], gateways: &mut Vec<IpAddr>) {
    for (kind, value) in Attributes::of(attributes) {
        match kind {
            RTA_GATEWAY => gateways.extend(address_of(value)),
            RTA_VIA => gateways.extend(value.get(2..).and_then(address_of)),
            RTA_MULTIPATH => {
                let mut hops = value;
                while let Some(length) = hops.get(..2).map(|l| u16::from_ne_bytes([l[0], l[1]])) {
                    let length = usize::from(length);
                    let Some(hop) = hops.get(HOP_HEADER..length) else { break };
                    gateways_in(hop, gateways);
                    hops = hops.get((length + 3) & !3..).unwrap_or_default();
                }
            }
            _ => {}
        }
    }
}

fn address_of(value: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(value) {
        return Some(Ipv4Addr::from(octets).into());
    }
    <[u8; 16]>::try_from(value).ok().map(|octets| Ipv6Addr::from(octets).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(attributes: &[u8]) -> Vec<IpAddr> {
        let mut gateways = Vec::new();
        gateways_in(attributes, &mut gateways);
        gateways
    }

    #[test]
    fn multipath_routes_have_several_gateways() {
        let hop = |last: u8| {
            let mut hop = vec![16, 0, 0, 0, 1, 0, 0, 0];
            hop.extend([8, 0, 5, 0, 192, 0, 2, last]);
            hop
        };
        let hops = [hop(1), hop(2)].concat();
        let mut attribute = vec![36, 0, 9, 0];
        attribute.extend(hops);
        assert_eq!(found(&attribute), [IpAddr::from([192, 0, 2, 1]), [192, 0, 2, 2].into()]);
    }

    #[test]
    fn router_of_a_new_route_is_known_at_once() {
        let route = |last: u8| [&[0; 12][..], &[8, 0, 5, 0, 192, 0, 2, last]].concat();
        let mut changes = Changes::default();
        changes.note(RTM_GETLINK - 2, &[0; 16]);
        assert_eq!(changes, Changes { network: true, ..Changes::default() });
        // RTM_NEWROUTE and RTM_DELROUTE (linux/rtnetlink.h).
        for (kind, object) in [(24, route(1)), (25, route(2))] {
            changes.note(kind, &object);
        }
        assert!(changes.routes);
        assert_eq!(changes.new_gateways, [IpAddr::from([192, 0, 2, 1])]);
    }

    #[test]
    fn gateway_of_the_other_family_is_found() {
        let router: Ipv6Addr = "fd00::1".parse().unwrap();
        let attribute = [&[22, 0, 18, 0, 10, 0][..], &router.octets()].concat();
        assert_eq!(found(&attribute), [router]);
    }

    #[test]
    fn broadcast_addresses_are_found_also_if_none_is_configured() {
        let message = |length: u8, attributes: &[&[u8]]| {
            [&[2, length, 0, 0, 1, 0, 0, 0][..], &attributes.concat()].concat()
        };
        let address: &[u8] = &[8, 0, 1, 0, 192, 0, 2, 5];
        let configured: &[u8] = &[8, 0, 4, 0, 192, 0, 2, 127];
        let [some, last] = [127, 255].map(|last| Some(IpAddr::from([192, 0, 2, last])));
        assert_eq!(broadcasts_in(&message(24, &[address, configured])), [some, last]);
        assert_eq!(broadcasts_in(&message(24, &[address])), [None, last]);
        assert_eq!(broadcasts_in(&message(31, &[address])), [None, None]);
        assert_eq!(broadcasts_in(&message(32, &[address])), [None, None]);
    }

    proptest! {
        #[test]
        fn no_message_panics_or_loops(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (found(&bytes), name_if_down(&bytes), address_in(&bytes));
            let _ = broadcasts_in(&bytes);
        }
    }
}
