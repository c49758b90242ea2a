//! Live connections of the blocked, ended in the kernel's connection table (`block.established = "cut"`).
//!
//! Owns the few messages that takes (linux/netfilter/nfnetlink_conntrack.h). Where the kernel tracks no
//! connections there are none to end.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rustix::net::netlink::NETFILTER;

use crate::system::netlink::{Attributes, Body, NetlinkError, NetlinkSocket};
use crate::types::network::Family;

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
/// No such part in this kernel: `EINVAL`, as nfnetlink says it, and `EOPNOTSUPP`.
const ABSENT: [i32; 2] = [22, 95];

/// As many networks are held against each connection one by one.
const FEW: usize = 100;

/// The kernel's connection table.
#[derive(Default)]
pub struct Conntrack {
    /// Whose connections are still to be ended.
    pending: Vec<IpNet>,
    /// Those of all who are blocked.
    all: bool,
}

impl Conntrack {
    /// Has this network's connections ended soon.
    pub fn cut(&mut self, network: IpNet) {
        self.pending.push(network);
        if self.pending.len() > FEW {
            self.cut_all();
        }
    }

    /// Has the connections of all who are blocked ended soon.
    pub fn cut_all(&mut self) {
        self.pending.clear();
        self.all = true;
    }

    /// Ends the connections of all who are to be cut: in one pass, since the table may be large. Where that
    /// fails they are still to be cut.
    pub fn end_pending(&mut self, is_blocked: impl Fn(IpAddr) -> bool) -> Result<(), NetlinkError> {
        for family in Family::ALL {
            if self.all || self.pending.iter().any(|network| Family::of(*network) == family) {
                end(family, |address| self.is_cut(address, &is_blocked))?;
            }
        }
        *self = Self::default();
        Ok(())
    }

    /// Whether an address is to be cut. Who was let in again meanwhile is not.
    fn is_cut(&self, address: IpAddr, is_blocked: impl Fn(IpAddr) -> bool) -> bool {
        let is_pending = || self.pending.iter().any(|network| network.contains(&address));
        (self.all || is_pending()) && is_blocked(address)
    }
}

/// Ends the connections with somebody who is to be cut at either end.
fn end(family: Family, is_cut: impl Fn(IpAddr) -> bool) -> Result<(), NetlinkError> {
    let mut socket = match NetlinkSocket::open(Some(NETFILTER), 0) {
        Ok(socket) => socket,
        // A kernel without netfilter's netlink has no way to the table either.
        Err(NetlinkError::Socket(_)) => return Ok(()),
        Err(error) => return Err(error),
    };
    let header = [family.number(), 0, 0, 0];
    let mut doomed = Vec::new();
    let listed = socket.dump(GET, &Body::with_header(&header), |_, connection| {
        let attributes = || Attributes(connection.get(4..).unwrap_or_default());
        let is_of = |kind| attributes().find(kind).and_then(source_of).is_some_and(&is_cut);
        // The source of the replies is the other end, behind whatever the address was translated to.
        if (is_of(ATTR_TUPLE_ORIGINAL) || is_of(ATTR_TUPLE_REPLY))
            && let Some(tuple) = attributes().find(ATTR_TUPLE_ORIGINAL)
        {
            let mut body =
                Body::with_header(&header).nested(ATTR_TUPLE_ORIGINAL, &Body::with_header(tuple));
            if let Some(zone) = attributes().find(ATTR_ZONE) {
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
            // It has ended by itself.
            Ok(()) | Err(NetlinkError::Refused(ENOENT)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

pub fn source_of(tuple: &[u8]) -> Option<IpAddr> {
    let (kind, address) =
        Attributes(Attributes(tuple).find(TUPLE_IP)?).find_map(|(kind, value)| {
            [IP_V4_SOURCE, IP_V6_SOURCE].contains(&kind).then_some((kind, value))
        })?;
    if kind == IP_V4_SOURCE {
        return Some(Ipv4Addr::from(<[u8; 4]>::try_from(address).ok()?).into());
    }
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_is_still_blocked_is_cut() {
        let address = |last| IpAddr::from([192, 0, 2, last]);
        let mut conntrack = Conntrack::default();
        conntrack.cut("192.0.2.1/32".parse().unwrap());
        conntrack.cut("192.0.2.2/32".parse().unwrap());
        // The first was let in before the table was looked through.
        let cut = |conntrack: &Conntrack| {
            let is_blocked = |blocked| blocked != address(1);
            [1, 2, 3].map(|last| conntrack.is_cut(address(last), is_blocked))
        };
        assert_eq!(cut(&conntrack), [false, true, false]);
        conntrack.cut_all();
        assert_eq!(cut(&conntrack), [false, true, true]);
    }
}
