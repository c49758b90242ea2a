//! Ends established connections of blocked sources in the kernel's connection table
//! (`block.established = "cut"`).
//!
//! Owns the few messages for this (linux/netfilter/nfnetlink_conntrack.h) and which networks still have
//! to be cut. Must not decide what is blocked. A kernel without connection tracking has nothing to end.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rustix::net::netlink::NETFILTER;

use crate::system::netlink::{Attributes, Body, NetlinkError, NetlinkSocket};
use crate::types::Family;

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;

const ATTR_TUPLE_ORIGINAL: u16 = 1;
const ATTR_TUPLE_REPLY: u16 = 2;
const ATTR_ZONE: u16 = 18;
const TUPLE_IP: u16 = 1;
const IP_V4_SOURCE: u16 = 1;
const IP_V6_SOURCE: u16 = 3;

const ENOENT: i32 = 2;
/// The kernel has no connection tracking: `EINVAL` from nfnetlink, and `EOPNOTSUPP`.
const ABSENT: [i32; 2] = [22, 95];

/// Up to this many networks are compared with each connection one by one.
const FEW: usize = 100;

/// The kernel's connection table.
#[derive(Default)]
pub struct Conntrack {
    /// The networks whose connections still have to be ended.
    pending: Vec<IpNet>,
    /// The connections of everything that is blocked have to be ended.
    all: bool,
}

impl Conntrack {
    /// Marks this network's connections to be ended.
    pub fn cut(&mut self, network: IpNet) {
        self.pending.push(network);
        if self.pending.len() > FEW {
            self.cut_all();
        }
    }

    /// Marks the connections of everything that is blocked to be ended.
    pub fn cut_all(&mut self) {
        self.pending.clear();
        self.all = true;
    }

    /// Ends the marked connections, all in one pass, because the table may be large. After a failure they
    /// stay marked.
    pub fn end_pending(&mut self, is_blocked: impl Fn(IpAddr) -> bool) -> Result<(), NetlinkError> {
        for family in Family::ALL {
            if self.all || self.pending.iter().any(|network| Family::of(*network) == family) {
                end(family, |address| self.is_cut(address, &is_blocked))?;
            }
        }
        *self = Self::default();
        Ok(())
    }

    /// Whether an address has to be cut. An address that was unblocked in the meantime keeps its
    /// connections.
    fn is_cut(&self, address: IpAddr, is_blocked: impl Fn(IpAddr) -> bool) -> bool {
        let is_pending = || self.pending.iter().any(|network| network.contains(&address));
        (self.all || is_pending()) && is_blocked(address)
    }
}

/// Ends the connections in which either end has to be cut.
fn end(family: Family, is_cut: impl Fn(IpAddr) -> bool) -> Result<(), NetlinkError> {
    let mut socket = match NetlinkSocket::open(Some(NETFILTER), 0) {
        Ok(socket) => socket,
        // Without the netlink of netfilter there is no access to the table.
        Err(NetlinkError::Socket(_)) => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut doomed = Vec::new();
    let listed = socket.dump(GET, &Body::for_family(family), |_, connection| {
        let connection = Attributes::of_netfilter(connection);
        let is_of = |kind| connection.find(kind).and_then(source_of).is_some_and(&is_cut);
        // The source of the replies is the other end, after any address translation.
        if (is_of(ATTR_TUPLE_ORIGINAL) || is_of(ATTR_TUPLE_REPLY))
            && let Some(tuple) = connection.find(ATTR_TUPLE_ORIGINAL)
        {
            let mut body =
                Body::for_family(family).nested(ATTR_TUPLE_ORIGINAL, &Body::with_header(tuple));
            if let Some(zone) = connection.find(ATTR_ZONE) {
                body = body.attribute(ATTR_ZONE, zone);
            }
            doomed.push(body);
        }
    });
    match listed {
        Err(NetlinkError::Refused(code)) if ABSENT.contains(&code) => return Ok(()),
        result => result?,
    }
    for body in &doomed {
        match socket.request(DELETE, 0, body) {
            // ENOENT: the connection has ended in the meantime.
            Ok(()) | Err(NetlinkError::Refused(ENOENT)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

pub fn source_of(tuple: &[u8]) -> Option<IpAddr> {
    let tuple = Attributes::of(tuple);
    if let Some(address) = tuple.find_nested(&[TUPLE_IP, IP_V4_SOURCE]) {
        return Some(Ipv4Addr::from(<[u8; 4]>::try_from(address).ok()?).into());
    }
    let address = tuple.find_nested(&[TUPLE_IP, IP_V6_SOURCE])?;
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_that_is_no_longer_blocked_is_not_cut() {
        let address = |last| IpAddr::from([192, 0, 2, last]);
        let mut conntrack = Conntrack::default();
        conntrack.cut("192.0.2.1/32".parse().unwrap());
        conntrack.cut("192.0.2.2/32".parse().unwrap());
        // The first address was unblocked before the connections are ended.
        let cut = |conntrack: &Conntrack| {
            let is_blocked = |blocked| blocked != address(1);
            [1, 2, 3].map(|last| conntrack.is_cut(address(last), is_blocked))
        };
        assert_eq!(cut(&conntrack), [false, true, false]);
        conntrack.cut_all();
        assert_eq!(cut(&conntrack), [false, true, true]);
    }
}
