//! The kernel's sets, spoken to over netlink.
//!
//! Owns the ipset protocol (linux/netfilter/ipset/ip_set.h, protocol 7): create, destroy, add,
//! delete, list. One message and one acknowledgement each; no process is started. Decides nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;

use crate::system::netlink::{Attributes, Body, CREATE, EXCL, NetlinkError, NetlinkSocket};
use crate::types::network::Family;

const SUBSYSTEM: u16 = 6 << 8;
const PROTOCOL: u8 = 7;

const CREATE_SET: u16 = SUBSYSTEM | 0x2;
const DESTROY: u16 = SUBSYSTEM | 0x3;
const LIST: u16 = SUBSYSTEM | 0x7;
const ADD: u16 = SUBSYSTEM | 0x9;
const DEL: u16 = SUBSYSTEM | 0xa;
const TEST: u16 = SUBSYSTEM | 0xb;
const TYPE: u16 = SUBSYSTEM | 0xd;

const ATTR_PROTOCOL: u16 = 1;
const ATTR_SETNAME: u16 = 2;
const ATTR_TYPENAME: u16 = 3;
const ATTR_REVISION: u16 = 4;
const ATTR_FAMILY: u16 = 5;
const ATTR_FLAGS: u16 = 6;
const ATTR_DATA: u16 = 7;
const ATTR_ADT: u16 = 8;
const ATTR_LINENO: u16 = 9;

const DATA_IP: u16 = 1;
const DATA_CIDR: u16 = 3;
const DATA_TIMEOUT: u16 = 6;
const DATA_FLAGS: u16 = 8;
const DATA_MAXELEM: u16 = 19;
const DATA_ELEMENTS: u16 = 24;
const DATA_PACKETS: u16 = 25;

const IPADDR_V4: u16 = 1;
const IPADDR_V6: u16 = 2;

const FLAG_WITH_COUNTERS: u32 = 8;
const FLAG_LIST_HEADER: u32 = 4;
/// Of an element: an exception, which is not matched.
const FLAG_NOMATCH: u32 = 4;

/// `IPSET_ERR_BUSY`: the set is used by a rule.
const BUSY: i32 = 4100;
/// `IPSET_ERR_TYPE_MISMATCH`: a set of this name and another type exists.
const TYPE_MISMATCH: i32 = 4102;
/// `IPSET_ERR_EXIST`: already there on adding, not there on deleting or creating.
const EXIST: i32 = 4103;
/// `IPSET_ERR_HASH_FULL`
const HASH_FULL: i32 = 4352;
const ENOENT: i32 = 2;
const EPERM: i32 = 1;
const EEXIST: i32 = 17;

/// Networks and single addresses of mixed lengths.
const TYPE_NAME: &str = "hash:net";

/// The longest timeout an element may have, in seconds: `UINT_MAX` milliseconds halved, less one
/// (ip_set_timeout.h, `IPSET_MAX_TIMEOUT`). About 24 days.
pub const LONGEST_TIMEOUT: Duration = Duration::from_secs(2_147_483);

/// Elements a set may hold. Room for as many blocks as sources are remembered by default, four times
/// over; the kernel takes memory as it fills, some 100 bytes each.
pub const CAPACITY: u32 = 524_288;

/// Elements added by one message, each of which takes at most 52 bytes: a refusal of all has to fit
/// 32 KiB (`netlink.rs`).
pub const AT_ONCE: usize = 600;

/// Why the kernel did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum IpsetError {
    /// There is no set of this name.
    #[error("the kernel has no set {0}; another program has removed it")]
    Missing(String),
    /// A set of this name has another type or other options.
    #[error("a set {0} of another kind exists; remove it: ipset destroy {0}")]
    Foreign(String),
    /// A rule still refers to the set.
    #[error("the set {0} is still used by a firewall rule")]
    InUse(String),
    /// The set is full.
    #[error("the set {0} is full ({CAPACITY} elements); unblock others first")]
    Full(String),
    /// The process lacks the privilege.
    #[error("changing kernel sets needs the capability CAP_NET_ADMIN")]
    NotPermitted,
    /// The kernel has no sets.
    #[error("this kernel has no IP sets of type {TYPE_NAME} (modules ip_set and ip_set_hash_net)")]
    Unsupported,
    /// Anything else.
    #[error("set {name}: {error}")]
    Netlink {
        /// The set.
        name: String,
        /// What happened.
        error: NetlinkError,
    },
}

/// An element of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element {
    /// The network, or single address.
    pub network: IpNet,
    /// How long it stays.
    pub remaining: Duration,
    /// Packets matched since it was added.
    pub packets: u64,
}

/// A connection to the kernel's sets.
pub struct Ipset {
    socket: NetlinkSocket,
    revision: u8,
}

impl Ipset {
    /// Connects, and asks what the kernel can do.
    pub fn connect() -> Result<Self, IpsetError> {
        let at = |error| IpsetError::from_kernel(TYPE_NAME, error);
        let mut socket = match NetlinkSocket::open(Some(NETFILTER), 0) {
            // Netfilter itself is not there.
            Err(NetlinkError::Socket(Errno::PROTONOSUPPORT)) => {
                return Err(IpsetError::Unsupported);
            }
            result => result.map_err(at)?,
        };
        let body = header(Family::V4)
            .text(ATTR_TYPENAME, TYPE_NAME)
            .attribute(ATTR_FAMILY, &[Family::V4.number()]);
        let mut revision = None;
        match socket.query(TYPE, &body, |_, answer| {
            revision =
                attributes(answer).find(ATTR_REVISION).and_then(|value| value.first().copied());
        }) {
            Ok(()) => {}
            Err(NetlinkError::Refused(EPERM)) => return Err(IpsetError::NotPermitted),
            Err(NetlinkError::Refused(_)) => return Err(IpsetError::Unsupported),
            Err(error) => return Err(at(error)),
        }
        Ok(Self { socket, revision: revision.ok_or(IpsetError::Unsupported)? })
    }

    /// Makes a set whose elements expire and count packets. One that exists, made the same way, is
    /// kept with its elements.
    pub fn create(&mut self, name: &str, family: Family) -> Result<(), IpsetError> {
        let data = Body::default()
            .big_endian_u32(DATA_TIMEOUT, seconds(LONGEST_TIMEOUT))
            .big_endian_u32(DATA_FLAGS, FLAG_WITH_COUNTERS)
            .big_endian_u32(DATA_MAXELEM, CAPACITY);
        let body = set(name, family)
            .text(ATTR_TYPENAME, TYPE_NAME)
            .attribute(ATTR_REVISION, &[self.revision])
            .attribute(ATTR_FAMILY, &[family.number()])
            .nested(ATTR_DATA, &data);
        self.ask(name, CREATE_SET, CREATE, &body)
    }

    /// Removes a set and all its elements; one that is not there is no error.
    pub fn destroy(&mut self, name: &str) -> Result<(), IpsetError> {
        match self.ask(name, DESTROY, 0, &set(name, Family::V4)) {
            Err(IpsetError::Missing(_)) => Ok(()),
            result => result,
        }
    }

    /// Adds an element, or gives one that is there a new timeout.
    pub fn add(&mut self, name: &str, network: IpNet, timeout: Duration) -> Result<(), IpsetError> {
        self.ask(name, ADD, 0, &member(name, network, Some(timeout)))
    }

    /// Whether a set holds an element, or a larger network it lies in.
    pub fn holds(&mut self, name: &str, network: IpNet) -> Result<bool, IpsetError> {
        match self.socket.request(TEST, 0, &member(name, network, None)) {
            Ok(()) => Ok(true),
            Err(NetlinkError::Refused(EXIST)) => Ok(false),
            Err(error) => Err(IpsetError::from_kernel(name, error)),
        }
    }

    /// Adds at most [`AT_ONCE`] elements of one family, likewise, in one message. If that fails, some of
    /// them may have been added.
    pub fn add_all(
        &mut self,
        name: &str,
        elements: &[(IpNet, Duration)],
    ) -> Result<(), IpsetError> {
        let Some((first, _)) = elements.first() else { return Ok(()) };
        let all = elements.iter().fold(Body::default(), |all, (network, timeout)| {
            all.nested(ATTR_DATA, &element(*network, Some(*timeout)))
        });
        // The kernel wants a number to count the elements from, to tell which it did not take.
        let body =
            set(name, Family::of(*first)).big_endian_u32(ATTR_LINENO, 0).nested(ATTR_ADT, &all);
        self.ask(name, ADD, 0, &body)
    }

    /// Removes an element. False if it was not there.
    pub fn delete(&mut self, name: &str, network: IpNet) -> Result<bool, IpsetError> {
        match self.socket.request(DEL, EXCL, &member(name, network, None)) {
            Ok(()) => Ok(true),
            Err(NetlinkError::Refused(EXIST)) => Ok(false),
            Err(error) => Err(IpsetError::from_kernel(name, error)),
        }
    }

    /// Shows each element of a set. Exceptions (`nomatch`), which nobody makes here, are left out.
    pub fn each_element(
        &mut self,
        name: &str,
        family: Family,
        mut each: impl FnMut(Element),
    ) -> Result<(), IpsetError> {
        self.socket
            .dump(LIST, &set(name, family), |_, answer| {
                if let Some(elements) = attributes(answer).find(ATTR_ADT) {
                    Attributes(elements).filter_map(|(_, e)| read_element(e)).for_each(&mut each);
                }
            })
            .map_err(|error| IpsetError::from_kernel(name, error))
    }

    /// The number of elements in a set, which must be as it is made here.
    pub fn count(&mut self, name: &str, family: Family) -> Result<u32, IpsetError> {
        let body = set(name, family).big_endian_u32(ATTR_FLAGS, FLAG_LIST_HEADER);
        let mut shown = None;
        self.socket
            .dump(LIST, &body, |_, answer| shown = shown.or(read_header(answer, family)))
            .map_err(|error| IpsetError::from_kernel(name, error))?;
        match shown {
            Some((true, elements)) => Ok(elements),
            Some((false, _)) => Err(IpsetError::Foreign(name.to_owned())),
            None => {
                Err(IpsetError::Netlink { name: name.to_owned(), error: NetlinkError::Garbled })
            }
        }
    }

    fn ask(&mut self, name: &str, command: u16, flags: u16, body: &Body) -> Result<(), IpsetError> {
        self.socket
            .request(command, flags, body)
            .map_err(|error| IpsetError::from_kernel(name, error))
    }
}

impl IpsetError {
    fn from_kernel(name: &str, error: NetlinkError) -> Self {
        let name = name.to_owned();
        match error {
            NetlinkError::Refused(ENOENT) => Self::Missing(name),
            NetlinkError::Refused(EEXIST | EXIST | TYPE_MISMATCH) => Self::Foreign(name),
            NetlinkError::Refused(BUSY) => Self::InUse(name),
            NetlinkError::Refused(HASH_FULL) => Self::Full(name),
            NetlinkError::Refused(EPERM) => Self::NotPermitted,
            error => Self::Netlink { name, error },
        }
    }
}

/// `struct nfgenmsg`: family, version 0, resource 0; then the protocol every message carries.
fn header(family: Family) -> Body {
    Body::with_header(&[family.number(), 0, 0, 0]).attribute(ATTR_PROTOCOL, &[PROTOCOL])
}

fn set(name: &str, family: Family) -> Body {
    header(family).text(ATTR_SETNAME, name)
}

/// A request about an element of a set.
fn member(name: &str, network: IpNet, timeout: Option<Duration>) -> Body {
    let data = element(network, timeout).big_endian_u32(ATTR_LINENO, 0);
    set(name, Family::of(network)).nested(ATTR_DATA, &data)
}

fn element(network: IpNet, timeout: Option<Duration>) -> Body {
    let address = match network.addr() {
        IpAddr::V4(address) => Body::default().network_order(IPADDR_V4, &address.octets()),
        IpAddr::V6(address) => Body::default().network_order(IPADDR_V6, &address.octets()),
    };
    let data =
        Body::default().nested(DATA_IP, &address).attribute(DATA_CIDR, &[network.prefix_len()]);
    match timeout {
        // Zero would be for ever.
        Some(timeout) => {
            data.big_endian_u32(DATA_TIMEOUT, seconds(timeout.min(LONGEST_TIMEOUT)).max(1))
        }
        None => data,
    }
}

/// The attributes behind an answer's `struct nfgenmsg`.
fn attributes(answer: &[u8]) -> Attributes<'_> {
    Attributes(answer.get(4..).unwrap_or_default())
}

/// Whether a set is as it is made here, and how many elements it has.
pub fn read_header(answer: &[u8], family: Family) -> Option<(bool, u32)> {
    let data = attributes(answer).find(ATTR_DATA)?;
    let number =
        |kind| Attributes(data).find(kind).and_then(|v| v.try_into().ok()).map(u32::from_be_bytes);
    let is_ours = attributes(answer).find(ATTR_TYPENAME) == Some(b"hash:net\0")
        && attributes(answer).find(ATTR_FAMILY) == Some(&[family.number()])
        && number(DATA_TIMEOUT) == Some(seconds(LONGEST_TIMEOUT))
        && number(DATA_MAXELEM) == Some(CAPACITY)
        && number(DATA_FLAGS).is_some_and(|flags| flags & FLAG_WITH_COUNTERS != 0);
    Some((is_ours, number(DATA_ELEMENTS)?))
}

pub fn read_element(data: &[u8]) -> Option<Element> {
    let (kind, address) = Attributes(Attributes(data).find(DATA_IP)?).next()?;
    let (address, longest) = match kind {
        IPADDR_V4 => (IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(address).ok()?)), 32),
        IPADDR_V6 => (IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?)), 128),
        _ => return None,
    };
    let flags = Attributes(data).find(DATA_FLAGS).and_then(|v| v.try_into().ok());
    if flags.map_or(0, u32::from_be_bytes) & FLAG_NOMATCH != 0 {
        return None;
    }
    let prefix = Attributes(data).find(DATA_CIDR).and_then(|v| v.first().copied());
    let timeout = Attributes(data).find(DATA_TIMEOUT)?;
    let packets = Attributes(data).find(DATA_PACKETS);
    Some(Element {
        network: IpNet::new(address, prefix.unwrap_or(longest)).ok()?,
        remaining: Duration::from_secs(u32::from_be_bytes(timeout.try_into().ok()?).into()),
        packets: packets.and_then(|v| v.try_into().ok()).map_or(0, u64::from_be_bytes),
    })
}

/// Whole seconds, rounded up: the kernel must not let go before the ledger does.
fn seconds(duration: Duration) -> u32 {
    let whole = duration.as_secs() + u64::from(duration.subsec_nanos() != 0);
    u32::try_from(whole).unwrap_or(u32::MAX)
}
