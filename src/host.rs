//! The host itself: its addresses, and the neighbours it depends on.
//!
//! Owns following them. The kernel tells of changes over rtnetlink; readers get a new snapshot each
//! time and never ask.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::clock::Moment;
use crate::crew::{Pulse, StopFlag};
use crate::interface::InterfaceName;
use crate::netlink::{Attributes, Body, NetlinkError, NetlinkSocket};
use crate::network::overlap;

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const IFLA_IFNAME: u16 = 3;
/// Linux/if.h
const IFF_UP: u32 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_GATEWAY: u16 = 5;
const RTA_MULTIPATH: u16 = 9;
/// `struct ifinfomsg`, `struct ifaddrmsg` and `struct rtmsg`, linux/rtnetlink.h and linux/if_addr.h.
const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
const ROUTE_HEADER: usize = 12;
const NEXTHOP_HEADER: usize = 8;
/// Links, and addresses and routes of both families, linux/rtnetlink.h.
const GROUPS: u32 = 0x1 | 0x10 | 0x100 | 0x40 | 0x400;

/// How often the resolvers are read again, of which no kernel event tells; and how long changes in the
/// kernel may have to wait.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };

/// From one reading of all to the next.
const PACE: Duration = Duration::from_millis(500);

/// The name servers programs are told of; and those systemd-resolved asks in their stead.
const RESOLV_CONF: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// A snapshot of what the host is and depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Own addresses, sorted.
    own: Vec<IpAddr>,
    /// Networks all of whose addresses count as own: in a replay, where nobody can be asked.
    local: Vec<IpNet>,
    /// Interfaces that exist and are down.
    down: Vec<String>,
    /// The routers of all routes.
    pub gateways: Vec<IpAddr>,
    /// The name servers.
    pub resolvers: Vec<IpAddr>,
}

impl Host {
    /// A host with these addresses and nothing else.
    pub fn with_addresses(addresses: impl IntoIterator<Item = IpNet>) -> Self {
        let own = sorted(addresses.into_iter().map(|network| network.addr()).collect());
        Self { own, ..Self::default() }
    }

    /// A host of which only this is known.
    pub fn with_networks(local: Vec<IpNet>) -> Self {
        Self { local, ..Self::default() }
    }

    /// Asks the kernel. The resolvers are those of before where they cannot be read.
    pub fn read(socket: &mut NetlinkSocket, before: &Self) -> Result<Self, NetlinkError> {
        let mut down = Vec::new();
        socket.dump(RTM_GETLINK, &Body::with_header(&[0; LINK_HEADER]), |kind, body| {
            if kind == RTM_NEWLINK {
                down.extend(name_if_down(body));
            }
        })?;
        let mut own = Vec::new();
        socket.dump(RTM_GETADDR, &Body::with_header(&[0; ADDRESS_HEADER]), |kind, body| {
            if kind == RTM_NEWADDR {
                own.extend(address_in(body));
            }
        })?;
        let mut gateways = Vec::new();
        socket.dump(RTM_GETROUTE, &Body::with_header(&[0; ROUTE_HEADER]), |kind, body| {
            if kind == RTM_NEWROUTE {
                gateways_in(body.get(ROUTE_HEADER..).unwrap_or_default(), &mut gateways);
            }
        })?;
        let (own, gateways) = (sorted(own), sorted(gateways));
        let resolvers = resolvers().unwrap_or_else(|| before.resolvers.clone());
        Ok(Self { own, down, gateways, resolvers, ..Self::default() })
    }

    /// The addresses of this host.
    pub fn own(&self) -> &[IpAddr] {
        &self.own
    }

    /// Whether an address is one of this host's.
    pub fn owns(&self, address: IpAddr) -> bool {
        self.own.binary_search(&address).is_ok()
            || self.local.iter().any(|network| network.contains(&address))
    }

    /// Whether an interface exists and is down.
    pub fn is_down(&self, interface: &InterfaceName) -> bool {
        self.down.iter().any(|name| name == interface.as_str())
    }

    /// Whether one of this host's addresses lies in a network.
    pub fn is_within(&self, network: &IpNet) -> bool {
        self.own.iter().any(|address| network.contains(address))
            || self.local.iter().any(|local| overlap(local, network))
    }
}

/// Follows the host until asked to stop; `publish` gets each new snapshot.
pub fn follow(
    mut latest: Arc<Host>,
    stop: &StopFlag,
    pulse: &Pulse,
    mut publish: impl FnMut(Arc<Host>),
) -> Result<(), NetlinkError> {
    let mut notifications = NetlinkSocket::open(None, GROUPS)?;
    let mut requests = NetlinkSocket::open(None, 0)?;
    // What changed before the subscription was not told.
    let mut changed = true;
    let mut last_read = Moment::default();
    loop {
        pulse.beat();
        let mut fds = [
            PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(notifications.as_fd(), PollFlags::IN),
        ];
        // A routing table that never rests is read once a second, not all the time.
        let resting = Moment::now().since(last_read) < PACE;
        let watched = if resting { 1 } else { fds.len() };
        match poll(&mut fds[..watched], Some(&TICK)) {
            Ok(_) if fds[0].revents().contains(PollFlags::IN) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        // What changed does not matter: all is read again, so that nothing can be missed.
        changed |= notifications.drain_notifications()?;
        let host = if std::mem::take(&mut changed) {
            last_read = Moment::now();
            Host::read(&mut requests, &latest)?
        } else {
            let resolvers = resolvers().unwrap_or_else(|| latest.resolvers.clone());
            Host { resolvers, ..(*latest).clone() }
        };
        if host != *latest {
            latest = Arc::new(host);
            publish(Arc::clone(&latest));
        }
    }
}

/// The snapshot to start with.
pub fn now() -> Result<Arc<Host>, NetlinkError> {
    Host::read(&mut NetlinkSocket::open(None, 0)?, &Host::default()).map(Arc::new)
}

fn name_if_down(body: &[u8]) -> Option<String> {
    let flags = u32::from_ne_bytes(body.get(8..12)?.try_into().ok()?);
    if flags & IFF_UP != 0 {
        return None;
    }
    let name = Attributes(body.get(LINK_HEADER..)?).find(IFLA_IFNAME)?;
    Some(String::from_utf8_lossy(name.strip_suffix(&[0])?).into_owned())
}

fn address_in(body: &[u8]) -> Option<IpAddr> {
    let attributes = body.get(ADDRESS_HEADER..)?;
    // On a point-to-point link IFA_ADDRESS is the peer's.
    let value = Attributes(attributes)
        .find(IFA_LOCAL)
        .or_else(|| Attributes(attributes).find(IFA_ADDRESS))?;
    address_of(value)
}

fn gateways_in(attributes: &[u8], gateways: &mut Vec<IpAddr>) {
    for (kind, value) in Attributes(attributes) {
        match kind {
            RTA_GATEWAY => gateways.extend(address_of(value)),
            RTA_MULTIPATH => {
                let mut hops = value;
                while let Some(length) = hops.get(..2).map(|l| u16::from_ne_bytes([l[0], l[1]])) {
                    let length = usize::from(length);
                    let Some(hop) = hops.get(NEXTHOP_HEADER..length) else { break };
                    gateways.extend(Attributes(hop).find(RTA_GATEWAY).and_then(address_of));
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

/// The name servers; none where a file that is there cannot be read, which says nothing of them.
fn resolvers() -> Option<Vec<IpAddr>> {
    let mut found = Vec::new();
    for file in RESOLV_CONF {
        match std::fs::read_to_string(file) {
            Ok(text) => found.extend(nameservers_in(&text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(_) => return None,
        }
    }
    Some(sorted(found))
}

/// The `nameserver` lines of resolv.conf(5); a zone behind `%` is left out.
fn nameservers_in(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.split_whitespace().next())
        .filter_map(|address| address.split('%').next()?.parse().ok())
        .collect()
}

fn sorted(mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_this_hosts_addresses() {
        let host = now().unwrap();
        assert!(host.owns(Ipv4Addr::LOCALHOST.into()), "{host:?}");
        assert!(!host.owns([192, 0, 2, 1].into()));
    }

    #[test]
    fn resolvers_are_read() {
        let text = "# nameserver 9.9.9.9\nnameserver 192.0.2.53\n nameserver fe80::1%eth0 # x\nsearch a.b\n";
        let expected: Vec<IpAddr> = vec!["192.0.2.53".parse().unwrap(), "fe80::1".parse().unwrap()];
        assert_eq!(nameservers_in(text), expected);
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
        let mut gateways = Vec::new();
        gateways_in(&attribute, &mut gateways);
        assert_eq!(gateways, [IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2])]);
    }
}
