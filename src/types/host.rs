//! A snapshot of the host: its addresses, and the neighbours that it depends on.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::types::{AddressSet, Direction, IfName, Port, Segment, impossible_source, overlap};

/// What the host is, and depends on, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Its addresses.
    own: AddressSet,
    /// The broadcast addresses of its networks.
    broadcasts: AddressSet,
    /// Networks whose addresses all count as own: a replay cannot ask a kernel.
    local: Vec<IpNet>,
    /// Interfaces that are down.
    down: Vec<String>,
    /// The routers of all routes, sorted.
    gateways: Vec<IpAddr>,
    /// The name servers, sorted.
    resolvers: Vec<IpAddr>,
    sshd: Sshd,
}

impl Host {
    /// Makes a host with these addresses and nothing else.
    pub fn with_addresses(addresses: impl IntoIterator<Item = IpNet>) -> Self {
        let own = addresses.into_iter().map(|network| network.addr()).collect();
        let own = AddressSet::new(own);
        Self { own, ..Self::default() }
    }

    /// Makes a host of which only its networks are known.
    pub fn with_networks(local: Vec<IpNet>) -> Self {
        Self { local, ..Self::default() }
    }

    /// Replaces own addresses, and interfaces that are down.
    pub fn set_addresses(&mut self, own: Vec<IpAddr>, down: Vec<String>) {
        self.own = AddressSet::new(own);
        self.down = down;
    }

    /// Replaces the routers of all routes.
    pub fn set_gateways(&mut self, gateways: Vec<IpAddr>) {
        self.gateways = sorted(gateways);
    }

    /// Adds the routers of new routes.
    pub fn add_gateways(&mut self, gateways: Vec<IpAddr>) {
        let known = std::mem::take(&mut self.gateways);
        self.gateways = sorted([known, gateways].concat());
    }

    /// Replaces the broadcast addresses of its networks.
    pub fn set_broadcasts(&mut self, broadcasts: Vec<IpAddr>) {
        self.broadcasts = AddressSet::new(broadcasts);
    }

    /// Replaces the name servers.
    pub fn set_resolvers(&mut self, resolvers: Vec<IpAddr>) {
        self.resolvers = sorted(resolvers);
    }

    /// Replaces the configuration of sshd.
    pub fn set_sshd(&mut self, sshd: Sshd) {
        self.sshd = sshd;
    }

    /// The routers of all routes.
    pub fn gateways(&self) -> &[IpAddr] {
        &self.gateways
    }

    /// The name servers.
    pub fn resolvers(&self) -> &[IpAddr] {
        &self.resolvers
    }

    /// The configuration of sshd.
    pub fn sshd(&self) -> &Sshd {
        &self.sshd
    }

    /// The addresses of this host.
    pub fn own(&self) -> &[IpAddr] {
        self.own.as_slice()
    }

    /// Returns whether an address is one of this host.
    #[inline]
    pub fn owns(&self, address: IpAddr) -> bool {
        self.own.contains(&address) || self.local.iter().any(|network| network.contains(&address))
    }

    /// The direction of a segment. Everything that this host sends is outbound.
    #[inline]
    pub fn direction_of(&self, segment: &Segment) -> Direction {
        if self.owns(segment.source) {
            Direction::Outbound
        } else if self.owns(segment.destination) {
            Direction::Inbound
        } else {
            Direction::Forwarded
        }
    }

    /// Returns whether an address is a broadcast address of a connected network.
    pub fn is_broadcast(&self, address: IpAddr) -> bool {
        self.broadcasts.contains(&address)
    }

    /// Returns whether no remote host can have this address. Called for each segment.
    #[inline]
    pub fn is_impossible_source(&self, address: IpAddr) -> bool {
        impossible_source(address) || self.is_broadcast(address)
    }

    /// Returns whether this host has more than `count` addresses.
    pub fn has_more_addresses_than(&self, count: usize) -> bool {
        let whole = |network: &IpNet| network.prefix_len() < network.max_prefix_len();
        self.own.as_slice().len() + self.local.len() > count || self.local.iter().any(whole)
    }

    /// Returns whether an interface exists and is down.
    pub fn is_down(&self, interface: &IfName) -> bool {
        self.down.iter().any(|name| name == interface.as_str())
    }

    /// Returns whether a network contains an address of this host.
    pub fn is_within(&self, network: &IpNet) -> bool {
        self.own.has_any_in(network) || self.local.iter().any(|local| overlap(local, network))
    }
}

/// What the configuration of sshd says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sshd {
    /// The ports on which it may listen, sorted: the default port and the configured ones.
    pub ports: Vec<u16>,
    /// How long a client may take to log in; zero: without a limit.
    pub login_grace: Duration,
    /// Files that may say more and are unreadable, each with the error.
    pub unreadable: Vec<String>,
}

/// An established connection that sshd has accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SshConnection {
    /// The kernel's number of the socket, which no other socket gets.
    pub id: u64,
    pub peer: IpAddr,
}

/// The peers of sshd, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SshSessions {
    /// Users have logged in from these.
    pub logged_in: Vec<IpAddr>,
    /// Users may have logged in from these: there is no logind that knows.
    pub undecided: Vec<IpAddr>,
    /// Why the kernel did not list the connections the last time.
    pub error: Option<String>,
}

/// A set of ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSet(Box<[u64; 1024]>);

impl Default for PortSet {
    fn default() -> Self {
        Self(Box::new([0; 1024]))
    }
}

impl PortSet {
    /// Adds a port.
    pub fn insert(&mut self, port: Port) {
        self.0[usize::from(port.0 >> 6)] |= 1 << (port.0 & 63);
    }

    /// The number of ports.
    pub fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// Adds the ports that are in `before` and not in `now`.
    pub fn insert_missing(&mut self, before: &Self, now: &Self) {
        for (own, (before, now)) in self.0.iter_mut().zip(before.0.iter().zip(now.0.iter())) {
            *own |= before & !now;
        }
    }

    /// Returns whether the set contains a port.
    pub fn contains(&self, port: Port) -> bool {
        self.0[usize::from(port.0 >> 6)] >> (port.0 & 63) & 1 == 1
    }
}

fn sorted(mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}
