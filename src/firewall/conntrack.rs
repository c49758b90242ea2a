//! Live connections of the blocked, ended in the kernel's connection table (`block.established = "cut"`).
//!
//! Owns the few messages that takes (linux/netfilter/nfnetlink_conntrack.h). Where the kernel tracks no
//! connections there are none to end.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rustix::net::netlink::NETFILTER;

use super::Family;
use crate::netlink::{Attributes, Body, NetlinkError, NetlinkSocket};

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

/// The kernel's connection table.
#[derive(Default)]
pub struct Conntrack {
    /// Whose connections are still to be ended.
    pending: Vec<IpNet>,
}

impl Conntrack {
    /// Has this network's connections ended soon.
    pub fn cut(&mut self, network: IpNet) {
        self.pending.push(network);
    }

    /// Ends the connections of all who are to be cut: in one pass, since the table may be large.
    pub fn end_pending(&mut self) -> Result<(), NetlinkError> {
        let networks = std::mem::take(&mut self.pending);
        for family in Family::ALL {
            let of_family: Vec<IpNet> =
                networks.iter().copied().filter(|network| Family::of(*network) == family).collect();
            if !of_family.is_empty() {
                end(family, &of_family)?;
            }
        }
        Ok(())
    }
}

/// Ends the connections with one of these networks at either end.
fn end(family: Family, networks: &[IpNet]) -> Result<(), NetlinkError> {
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
        let is_of = |kind| {
            let source = attributes().find(kind).and_then(source_of);
            source.is_some_and(|source| networks.iter().any(|network| network.contains(&source)))
        };
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

fn source_of(tuple: &[u8]) -> Option<IpAddr> {
    let (kind, address) =
        Attributes(Attributes(tuple).find(TUPLE_IP)?).find_map(|(kind, value)| {
            [IP_V4_SOURCE, IP_V6_SOURCE].contains(&kind).then_some((kind, value))
        })?;
    if kind == IP_V4_SOURCE {
        return Some(Ipv4Addr::from(<[u8; 4]>::try_from(address).ok()?).into());
    }
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?).into())
}
