//! The kernel's sets, over netlink.
//!
//! Owns the ipset protocol (linux/netfilter/ipset/ip_set.h, protocol 7): create, destroy, add, delete,
//! list. Each takes one message and one acknowledgement, and no process. Must not decide anything.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;

use crate::system::netlink::{Attributes, Body, CREATE, EXCL, NetlinkError, NetlinkSocket};
use crate::types::Family;

const SUBSYSTEM: u16 = 6 << 8;
const PROTOCOL: u8 = 7;

const CREATE_SET: u16 = SUBSYSTEM | 0x2;
const DESTROY: u16 = SUBSYSTEM | 0x3;
const FLUSH: u16 = SUBSYSTEM | 0x4;
const SWAP: u16 = SUBSYSTEM | 0x6;
const LIST: u16 = SUBSYSTEM | 0x7;
const ADD: u16 = SUBSYSTEM | 0x9;
const DEL: u16 = SUBSYSTEM | 0xa;
const TEST: u16 = SUBSYSTEM | 0xb;
const TYPE: u16 = SUBSYSTEM | 0xd;

const ATTR_PROTOCOL: u16 = 1;
const ATTR_SETNAME: u16 = 2;
const ATTR_TYPENAME: u16 = 3;
/// The second name in a request to swap two sets.
const ATTR_SETNAME2: u16 = 3;
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
/// Marks an element as an exception, which the set does not match.
const FLAG_NOMATCH: u32 = 4;

/// `IPSET_ERR_BUSY`: a rule uses the set.
const BUSY: i32 = 4100;
/// `IPSET_ERR_TYPE_MISMATCH`: a set of this name and another type exists.
const TYPE_MISMATCH: i32 = 4102;
/// `IPSET_ERR_EXIST`: the element to add exists, or the one to test or delete does not.
const EXIST: i32 = 4103;
/// `IPSET_ERR_HASH_FULL`
const HASH_FULL: i32 = 4352;
const ENOENT: i32 = 2;
const EPERM: i32 = 1;
const EEXIST: i32 = 17;

/// Holds single addresses and networks of any length.
const TYPE_NAME: &str = "hash:net";

/// The longest timeout of an element, about 24 days: half of `UINT_MAX` milliseconds
/// (ip_set_timeout.h, `IPSET_MAX_TIMEOUT`).
pub const LONGEST_TIMEOUT: Duration = Duration::from_secs(2_147_483);

/// The elements that a set may hold: four times the number of sources that the detector remembers by
/// default. The kernel allocates about 100 bytes for each element as the set fills.
pub const CAPACITY: u32 = 524_288;

/// The elements that one message adds. Each takes at most 52 bytes, and a refusal, which repeats the
/// message, has to fit into 32 KiB (`system/netlink.rs`).
pub const AT_ONCE: usize = 600;

/// The reason why the kernel did not carry out a request about a set.
#[derive(Debug, thiserror::Error)]
pub enum IpsetError {
    #[error("kernel set {0} is missing: another program has removed it")]
    Missing(String),
    #[error(
        "kernel set {0} has another type or other options: another program has created it; remove it: \
         ipset destroy {0}"
    )]
    Foreign(String),
    #[error(
        "cannot remove kernel set {0}: a firewall rule still uses it; find the rule: \
         iptables-save | grep {0}"
    )]
    InUse(String),
    #[error("kernel set {0} is full: it holds {CAPACITY} elements; unblock something first")]
    Full(String),
    #[error(
        "cannot change kernel sets: the capability CAP_NET_ADMIN is missing; run tcptracker as root or \
         start its service"
    )]
    NotPermitted,
    #[error(
        "kernel sets of type {TYPE_NAME} are not available: the modules ip_set and ip_set_hash_net are \
         missing"
    )]
    Unsupported,
    #[error("kernel set {name}: {error}")]
    Netlink { name: String, error: NetlinkError },
}

/// An element of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element {
    pub network: IpNet,
    pub remaining: Duration,
    /// The packets matched since the element was added.
    pub packets: u64,
}

/// A set in the kernel, whether it exists or not, and the connection to it.
pub struct KernelSet {
    socket: NetlinkSocket,
    revision: u8,
    name: String,
    family: Family,
}

impl KernelSet {
    /// Connects to the kernel and asks what it supports. Changes nothing.
    pub fn connect(name: String, family: Family) -> Result<Self, IpsetError> {
        let mut socket = match NetlinkSocket::open(Some(NETFILTER), 0) {
            // The kernel has no netfilter.
            Err(NetlinkError::Socket(Errno::PROTONOSUPPORT)) => {
                return Err(IpsetError::Unsupported);
            }
            result => result.map_err(|error| IpsetError::from_kernel(&name, error))?,
        };
        let body = header(family)
            .text(ATTR_TYPENAME, TYPE_NAME)
            .attribute(ATTR_FAMILY, &[family.number()]);
        let mut revision = None;
        let answer = socket.query(TYPE, &body, |_, answer| {
            let value = Attributes::of_netfilter(answer).find(ATTR_REVISION);
            revision = value.and_then(|value| value.first().copied());
        });
        match answer {
            Ok(()) => {}
            Err(NetlinkError::Refused(EPERM)) => return Err(IpsetError::NotPermitted),
            Err(NetlinkError::Refused(_)) => return Err(IpsetError::Unsupported),
            Err(error) => return Err(IpsetError::from_kernel(&name, error)),
        }
        Ok(Self { socket, revision: revision.ok_or(IpsetError::Unsupported)?, name, family })
    }

    pub fn family(&self) -> Family {
        self.family
    }

    /// Creates the set, whose elements expire and count packets. A set that exists and has the same
    /// options keeps its elements.
    pub fn create(&mut self) -> Result<(), IpsetError> {
        let body = self.creation(&self.name);
        self.send(CREATE_SET, CREATE, &body)
    }

    /// Puts an empty set in the place of one of this name with other options, even if a rule uses that one.
    /// The kernel exchanges only sets of similar types.
    pub fn replace_foreign(&mut self) -> Result<(), IpsetError> {
        let other = format!("{}~", self.name);
        let destruction = header(self.family).text(ATTR_SETNAME, &other);
        // One that was left behind, or none.
        let _ = self.send(DESTROY, 0, &destruction);
        let creation = self.creation(&other);
        self.send(CREATE_SET, CREATE | EXCL, &creation)?;
        let exchange =
            header(self.family).text(ATTR_SETNAME, &other).text(ATTR_SETNAME2, &self.name);
        let exchanged = self.send(SWAP, 0, &exchange);
        let destroyed = self.send(DESTROY, 0, &destruction);
        exchanged.and(destroyed)
    }

    /// Removes all elements. A set that does not exist is no error.
    pub fn flush(&mut self) -> Result<(), IpsetError> {
        match self.send(FLUSH, 0, &self.request()) {
            Err(IpsetError::Missing(_)) => Ok(()),
            result => result,
        }
    }

    /// Removes the set and its elements. A set that does not exist is no error.
    pub fn destroy(&mut self) -> Result<(), IpsetError> {
        match self.send(DESTROY, 0, &self.request()) {
            Err(IpsetError::Missing(_)) => Ok(()),
            result => result,
        }
    }

    /// Adds an element, or sets the timeout of one that exists.
    pub fn add(&mut self, network: IpNet, timeout: Duration) -> Result<(), IpsetError> {
        self.send(ADD, 0, &self.element_request(network, Some(timeout)))
    }

    /// Adds at most [`AT_ONCE`] elements in one message, or sets their timeouts. After a failure some of
    /// them may have been added.
    pub fn add_all(&mut self, elements: &[(IpNet, Duration)]) -> Result<(), IpsetError> {
        let all = elements.iter().fold(Body::default(), |all, (network, timeout)| {
            all.nested(ATTR_DATA, &element(*network, Some(*timeout)))
        });
        // The kernel requires a number from which it counts the elements for its error report.
        let body = self.request().big_endian_u32(ATTR_LINENO, 0).nested(ATTR_ADT, &all);
        self.send(ADD, 0, &body)
    }

    /// Whether the set holds an element, or a larger network that contains it.
    pub fn holds(&mut self, network: IpNet) -> Result<bool, IpsetError> {
        self.send_about(TEST, 0, network)
    }

    /// Removes an element. Returns false if the set does not hold it.
    pub fn delete(&mut self, network: IpNet) -> Result<bool, IpsetError> {
        self.send_about(DEL, EXCL, network)
    }

    /// Passes each element to `each`, except exceptions (`nomatch`), which tcptracker never adds.
    pub fn for_each(&mut self, mut each: impl FnMut(Element)) -> Result<(), IpsetError> {
        let body = self.request();
        let listed = self.socket.dump(LIST, &body, |_, answer| {
            let elements = Attributes::of_netfilter(answer).find(ATTR_ADT).unwrap_or_default();
            Attributes::of(elements).filter_map(|(_, e)| read_element(e)).for_each(&mut each);
        });
        listed.map_err(|error| IpsetError::from_kernel(&self.name, error))
    }

    /// The number of elements. Fails if the set has other options than [`Self::create`] gives it.
    pub fn count(&mut self) -> Result<u32, IpsetError> {
        let body = self.request().big_endian_u32(ATTR_FLAGS, FLAG_LIST_HEADER);
        let (mut header, family) = (None, self.family);
        let listed = self.socket.dump(LIST, &body, |_, answer| {
            header = header.or(read_header(answer, family));
        });
        let header = listed.and_then(|()| header.ok_or(NetlinkError::Garbled));
        match header.map_err(|error| IpsetError::from_kernel(&self.name, error))? {
            (true, elements) => Ok(elements),
            (false, _) => Err(IpsetError::Foreign(self.name.clone())),
        }
    }

    fn send(&mut self, command: u16, flags: u16, body: &Body) -> Result<(), IpsetError> {
        let sent = self.socket.request(command, flags, body);
        sent.map_err(|error| IpsetError::from_kernel(&self.name, error))
    }

    /// Sends a request about an element. Returns false if the set does not hold it.
    fn send_about(&mut self, command: u16, flags: u16, element: IpNet) -> Result<bool, IpsetError> {
        match self.socket.request(command, flags, &self.element_request(element, None)) {
            Ok(()) => Ok(true),
            Err(NetlinkError::Refused(EXIST)) => Ok(false),
            Err(error) => Err(IpsetError::from_kernel(&self.name, error)),
        }
    }

    fn creation(&self, name: &str) -> Body {
        let data = Body::default()
            .big_endian_u32(DATA_TIMEOUT, seconds(LONGEST_TIMEOUT))
            .big_endian_u32(DATA_FLAGS, FLAG_WITH_COUNTERS)
            .big_endian_u32(DATA_MAXELEM, CAPACITY);
        header(self.family)
            .text(ATTR_SETNAME, name)
            .text(ATTR_TYPENAME, TYPE_NAME)
            .attribute(ATTR_REVISION, &[self.revision])
            .attribute(ATTR_FAMILY, &[self.family.number()])
            .nested(ATTR_DATA, &data)
    }

    fn request(&self) -> Body {
        header(self.family).text(ATTR_SETNAME, &self.name)
    }

    fn element_request(&self, network: IpNet, timeout: Option<Duration>) -> Body {
        let data = element(network, timeout).big_endian_u32(ATTR_LINENO, 0);
        self.request().nested(ATTR_DATA, &data)
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

fn header(family: Family) -> Body {
    Body::for_family(family).attribute(ATTR_PROTOCOL, &[PROTOCOL])
}

fn element(network: IpNet, timeout: Option<Duration>) -> Body {
    let address = match network.addr() {
        IpAddr::V4(address) => Body::default().network_order(IPADDR_V4, &address.octets()),
        IpAddr::V6(address) => Body::default().network_order(IPADDR_V6, &address.octets()),
    };
    let data =
        Body::default().nested(DATA_IP, &address).attribute(DATA_CIDR, &[network.prefix_len()]);
    match timeout {
        // The kernel takes 0 for an element that never expires.
        Some(timeout) => {
            data.big_endian_u32(DATA_TIMEOUT, seconds(timeout.min(LONGEST_TIMEOUT)).max(1))
        }
        None => data,
    }
}

/// Returns whether a set has the options that [`KernelSet::create`] gives it, and its number of elements.
pub fn read_header(answer: &[u8], family: Family) -> Option<(bool, u32)> {
    let set = Attributes::of_netfilter(answer);
    let data = Attributes::of(set.find(ATTR_DATA)?);
    let has_our_options = set.find(ATTR_TYPENAME) == Some(b"hash:net\0")
        && set.find(ATTR_FAMILY) == Some(&[family.number()])
        && data.find_u32(DATA_TIMEOUT) == Some(seconds(LONGEST_TIMEOUT))
        && data.find_u32(DATA_MAXELEM) == Some(CAPACITY)
        && data.find_u32(DATA_FLAGS).is_some_and(|flags| flags & FLAG_WITH_COUNTERS != 0);
    Some((has_our_options, data.find_u32(DATA_ELEMENTS)?))
}

pub fn read_element(data: &[u8]) -> Option<Element> {
    let data = Attributes::of(data);
    let (kind, address) = Attributes::of(data.find(DATA_IP)?).next()?;
    let (address, longest) = match kind {
        IPADDR_V4 => (IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(address).ok()?)), 32),
        IPADDR_V6 => (IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?)), 128),
        _ => return None,
    };
    if data.find_u32(DATA_FLAGS).unwrap_or(0) & FLAG_NOMATCH != 0 {
        return None;
    }
    let prefix = data.find(DATA_CIDR).and_then(|value| value.first().copied());
    let packets = data.find(DATA_PACKETS).and_then(|value| value.try_into().ok());
    Some(Element {
        network: IpNet::new(address, prefix.unwrap_or(longest)).ok()?,
        remaining: Duration::from_secs(data.find_u32(DATA_TIMEOUT)?.into()),
        packets: packets.map_or(0, u64::from_be_bytes),
    })
}

/// Rounds up to whole seconds: the kernel must not end a block before the ledger does.
fn seconds(duration: Duration) -> u32 {
    let whole = duration.as_secs() + u64::from(duration.subsec_nanos() != 0);
    u32::try_from(whole).unwrap_or(u32::MAX)
}
