//! The messages about the nf_tables table `inet tcptracker` (linux/netfilter/nf_tables.h).
//!
//! Owns the names in the table and the expressions of its rules; the crate netlink-bindings knows how the
//! kernel spells them. Must not send anything.

use std::ffi::CStr;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_bindings::nftables::{
    CmpOps, ExprOps, MetaKeys, Nfgenmsg, OpBatchBeginDo, OpDelchainDo, OpDelsetDo, OpDelsetelemDo,
    OpDeltableDo, OpGetchainDump, OpGetgenDo, OpGetruleDump, OpGetsetDump, OpGetsetelemDump,
    OpGettableDo, OpNewchainDo, OpNewruleDo, OpNewsetDo, OpNewsetelemDo, OpNewtableDo, PayloadBase,
    PushExprListAttrs, Registers, RejectInetCode, RejectTypes, SetFlags, TableFlags, VerdictCode,
};
use netlink_bindings::traits::Pusher;

use crate::block::backend::ipset::netlink::Element;
use crate::config::values::{Established, Hook, Target};
use crate::system::netlink::{APPEND, Body, CREATE, NONREC, Request};
use crate::types::{Family, IfName};

/// The table that all instances share.
pub const TABLE: &CStr = c"tcptracker";

/// `NFPROTO_INET`
const INET: u8 = 1;
/// The priority of the chains: before the filter chains of others, which have 0 by convention, and after
/// connection tracking and mangling.
const PRIORITY: i32 = -10;

/// `ipv4_addr` and `ipv6_addr` in nft(8), which shows elements accordingly.
const fn key_type(family: Family) -> u32 {
    match family {
        Family::V4 => 7,
        Family::V6 => 8,
    }
}

/// The networks of one family and prefix length, which one set holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SetKey {
    pub family: Family,
    pub length: u8,
}

impl SetKey {
    pub fn of(network: IpNet) -> Self {
        Self { family: Family::of(network), length: network.prefix_len() }
    }

    /// The name of an instance's set. nft(8) reads only names that begin with a letter.
    pub fn name(self, interface: &IfName) -> String {
        format!("{}{}-{interface}", self.prefix(), self.length)
    }

    /// Reads the name of an instance's set.
    pub fn parse(name: &[u8], interface: &IfName) -> Option<Self> {
        let name = std::str::from_utf8(name).ok()?;
        let rest = name.strip_suffix(interface.as_str())?.strip_suffix('-')?;
        Family::ALL.into_iter().find_map(|family| {
            let key = Self { family, length: 0 };
            let key = Self { length: rest.strip_prefix(key.prefix())?.parse().ok()?, ..key };
            (key.length <= key.width() && key.name(interface) == name).then_some(key)
        })
    }

    const fn prefix(self) -> &'static str {
        match self.family {
            Family::V4 => "v4-",
            Family::V6 => "v6-",
        }
    }

    /// The bits of an address.
    const fn width(self) -> u8 {
        match self.family {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }

    fn network(self, key: &[u8]) -> Option<IpNet> {
        Some(match self.family {
            Family::V4 => {
                let octets: [u8; 4] = key.try_into().ok()?;
                Ipv4Net::new(Ipv4Addr::from(octets), self.length).ok()?.into()
            }
            Family::V6 => {
                let octets: [u8; 16] = key.try_into().ok()?;
                Ipv6Net::new(Ipv6Addr::from(octets), self.length).ok()?.into()
            }
        })
    }
}

fn key_of(network: IpNet) -> Vec<u8> {
    match network {
        IpNet::V4(network) => network.network().octets().to_vec(),
        IpNet::V6(network) => network.network().octets().to_vec(),
    }
}

fn mask_of(key: SetKey) -> Vec<u8> {
    match key.family {
        Family::V4 => Ipv4Net::new(Ipv4Addr::UNSPECIFIED, key.length)
            .map(|net| net.netmask().octets().to_vec()),
        Family::V6 => Ipv6Net::new(Ipv6Addr::UNSPECIFIED, key.length)
            .map(|net| net.netmask().octets().to_vec()),
    }
    .unwrap_or_default()
}

/// The name of the chain for a hook.
pub fn chain_name(hook: Hook, interface: &IfName) -> String {
    match hook {
        Hook::Input => format!("input-{interface}"),
        Hook::Forward => format!("forward-{interface}"),
    }
}

/// `NF_INET_LOCAL_IN`, `NF_INET_FORWARD`
const fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Input => 1,
        Hook::Forward => 2,
    }
}

const NEW_TABLE: u16 = SUBSYSTEM;
const GET_TABLE: u16 = SUBSYSTEM | 0x1;
const DELETE_TABLE: u16 = SUBSYSTEM | 0x2;
const NEW_CHAIN: u16 = SUBSYSTEM | 0x3;
const GET_CHAIN: u16 = SUBSYSTEM | 0x4;
const DELETE_CHAIN: u16 = SUBSYSTEM | 0x5;
const NEW_RULE: u16 = SUBSYSTEM | 0x6;
const GET_RULE: u16 = SUBSYSTEM | 0x7;
const NEW_SET: u16 = SUBSYSTEM | 0x9;
const GET_SET: u16 = SUBSYSTEM | 0xa;
const DELETE_SET: u16 = SUBSYSTEM | 0xb;
const NEW_ELEMENT: u16 = SUBSYSTEM | 0xc;
const GET_ELEMENT: u16 = SUBSYSTEM | 0xd;
const DELETE_ELEMENT: u16 = SUBSYSTEM | 0xe;
const GET_GENERATION: u16 = SUBSYSTEM | 0x10;
/// `NFNL_SUBSYS_NFTABLES`, in the upper byte.
const SUBSYSTEM: u16 = 10 << 8;

/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`, which enclose every change.
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

/// The comments that nft(8) shows are in the user data, as type, length and text (libnftnl, udata.h).
const RULE_COMMENT: u8 = 0;
const TABLE_COMMENT: u8 = 0;
const CHAIN_COMMENT: u8 = 0;
const SET_COMMENT: u8 = 7;

/// The elements that one message adds. The length of a list has 16 bits.
pub const AT_ONCE: usize = 1000;

fn header() -> Nfgenmsg {
    Nfgenmsg { nfgen_family: INET, ..Nfgenmsg::default() }
}

/// The messages that enclose a transaction.
pub fn enclosing() -> [Request; 2] {
    [BATCH_BEGIN, BATCH_END].map(|kind| {
        request(kind, 0, |body| {
            let header = Nfgenmsg { _res_id_be: (SUBSYSTEM >> 8).to_be(), ..Nfgenmsg::default() };
            OpBatchBeginDo::encode_request(body, &header);
        })
    })
}

fn request(kind: u16, flags: u16, encode: impl FnOnce(&mut Vec<u8>)) -> Request {
    let mut body = Vec::new();
    encode(&mut body);
    Request { kind, flags, body: Body::from(body) }
}

fn comment(kind: u8, text: &str) -> Vec<u8> {
    // Every comment here has at most the length of an interface name and a sentence.
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    [&[kind, length], text.as_bytes(), &[0]].concat()
}

pub fn add_table() -> Request {
    request(NEW_TABLE, CREATE, |body| {
        let text = "Drops port scanners. tcptracker repairs changes; stop its instances to remove the table";
        OpNewtableDo::encode_request(body, &header())
            .push_name(TABLE)
            .push_flags(0)
            .push_userdata(&comment(TABLE_COMMENT, text));
    })
}

/// Deletes the table, unless it holds anything.
pub fn delete_table() -> Request {
    request(DELETE_TABLE, NONREC, |body| {
        OpDeltableDo::encode_request(body, &header()).push_name(TABLE);
    })
}

pub fn add_chain(hook: Hook, interface: &IfName) -> Request {
    request(NEW_CHAIN, CREATE, |body| {
        OpNewchainDo::encode_request(body, &header())
            .push_table(TABLE)
            .push_name_bytes(chain_name(hook, interface).as_bytes())
            .nested_hook()
            .push_num(hook_number(hook))
            .push_priority(PRIORITY)
            .end_nested()
            .push_type(c"filter")
            .push_userdata(&comment(CHAIN_COMMENT, &format!("tcptracker@{interface}")));
    })
}

/// Deletes a chain and its rules.
pub fn delete_chain(name: &[u8]) -> Request {
    request(DELETE_CHAIN, 0, |body| {
        OpDelchainDo::encode_request(body, &header()).push_table(TABLE).push_name_bytes(name);
    })
}

pub fn add_set(key: SetKey, interface: &IfName) -> Request {
    let text = match key.length {
        length if length == key.width() => "Addresses that are blocked".to_owned(),
        length => format!("Networks of length /{length} that are blocked"),
    };
    request(NEW_SET, CREATE, |body| {
        OpNewsetDo::encode_request(body, &header())
            .push_table(TABLE)
            .push_name_bytes(key.name(interface).as_bytes())
            .push_flags(SetFlags::Timeout as u32)
            .push_key_type(key_type(key.family))
            .push_key_len(u32::from(key.width()) / 8)
            // The kernel requires a number that identifies the set within the transaction.
            .push_id(u32::from(key.length) + 1)
            .push_userdata(&comment(SET_COMMENT, &text))
            .nested_expr()
            .nested_data_counter();
    })
}

pub fn delete_set(name: &[u8]) -> Request {
    request(DELETE_SET, 0, |body| {
        OpDelsetDo::encode_request(body, &header()).push_table(TABLE).push_name_bytes(name);
    })
}

/// Adds a rule that drops what comes from the networks in a set.
pub fn add_rule(
    hook: Hook,
    key: SetKey,
    established: Established,
    target: Target,
    interface: &IfName,
) -> Request {
    request(NEW_RULE, CREATE | APPEND, |body| {
        OpNewruleDo::encode_request(body, &header())
            .push_table(TABLE)
            .push_chain_bytes(chain_name(hook, interface).as_bytes())
            .push_userdata(&comment(RULE_COMMENT, &format!("tcptracker@{interface}")))
            .nested_expressions()
            .expressions(key, established, target, interface);
    })
}

/// The parts of a rule.
trait Expressions: Sized {
    fn expressions(self, key: SetKey, established: Established, target: Target, interface: &IfName);
    fn load_meta(self, key: MetaKeys) -> Self;
    fn load_payload(self, base: PayloadBase, offset: u32, length: u32) -> Self;
    fn mask(self, mask: &[u8]) -> Self;
    fn equals(self, value: &[u8]) -> Self;
}

const REGISTER: u32 = Registers::Reg1 as u32;

impl<P: Pusher> Expressions for PushExprListAttrs<P> {
    fn expressions(
        self,
        key: SetKey,
        established: Established,
        target: Target,
        interface: &IfName,
    ) {
        /// `IPPROTO_TCP`
        const TCP: u8 = 6;
        /// The byte of the TCP header that has the flags.
        const FLAGS: u32 = 13;
        /// `RST` and `ACK`. Only the first segment of a connection, and stealth probes, have neither.
        const RST_ACK: u8 = 0x14;
        let width = u32::from(key.width()) / 8;
        let (protocol, offset) = match key.family {
            Family::V4 => (2, 12),
            Family::V6 => (10, 8),
        };
        let mut list = self.load_meta(MetaKeys::Nfproto).equals(&[protocol]);
        if established == Established::Keep {
            list = list
                .load_meta(MetaKeys::L4Proto)
                .equals(&[TCP])
                .load_payload(PayloadBase::TransportHeader, FLAGS, 1)
                .mask(&[RST_ACK])
                .equals(&[0]);
        }
        list = list.load_payload(PayloadBase::NetworkHeader, offset, width);
        if key.length < key.width() {
            list = list.mask(&mask_of(key));
        }
        let list = list
            .nested_elem()
            .nested_data_lookup()
            .push_set_bytes(key.name(interface).as_bytes())
            // netlink-bindings 0.3.5 calls the attributes of a lookup by each other's names: number 2 is the
            // source register (NFTA_LOOKUP_SREG).
            .push_set_id(REGISTER)
            .end_nested()
            .end_nested()
            .nested_elem()
            .nested_data_counter()
            .end_nested()
            .end_nested();
        match (target, established) {
            (Target::Drop, _) => {
                list.nested_elem()
                    .nested_data_immediate()
                    .push_dreg(Registers::RegVerdict as u32)
                    .nested_data()
                    .nested_verdict()
                    .push_code(VerdictCode::Drop as u32);
            }
            (Target::Reject, Established::Keep) => {
                list.nested_elem()
                    .nested_data_reject()
                    .push_type(RejectTypes::TcpRst as u32)
                    .push_icmp_code(0);
            }
            (Target::Reject, Established::Cut) => {
                list.nested_elem()
                    .nested_data_reject()
                    .push_type(RejectTypes::IcmpxUnreach as u32)
                    .push_icmp_code(RejectInetCode::IcmpxPortUnreach as u8);
            }
        }
    }

    fn load_meta(self, key: MetaKeys) -> Self {
        self.nested_elem()
            .nested_data_meta()
            .push_key(key as u32)
            .push_dreg(REGISTER)
            .end_nested()
            .end_nested()
    }

    fn load_payload(self, base: PayloadBase, offset: u32, length: u32) -> Self {
        self.nested_elem()
            .nested_data_payload()
            .push_dreg(REGISTER)
            .push_base(base as u32)
            .push_offset(offset)
            .push_len(length)
            .end_nested()
            .end_nested()
    }

    fn mask(self, mask: &[u8]) -> Self {
        self.nested_elem()
            .nested_data_bitwise()
            .push_sreg(REGISTER)
            .push_dreg(REGISTER)
            .push_len(u32::try_from(mask.len()).unwrap_or_default())
            .nested_mask()
            .push_value(mask)
            .end_nested()
            .nested_xor()
            .push_value(&vec![0; mask.len()])
            .end_nested()
            .end_nested()
            .end_nested()
    }

    fn equals(self, value: &[u8]) -> Self {
        self.nested_elem()
            .nested_data_cmp()
            .push_sreg(REGISTER)
            .push_op(CmpOps::Eq as u32)
            .nested_data()
            .push_value(value)
            .end_nested()
            .end_nested()
            .end_nested()
    }
}

/// Adds elements to the set of their length, at most [`AT_ONCE`], each with the time for which the kernel
/// keeps it and the packets that it has dropped. `flags` may be [`EXCL`](crate::system::netlink::EXCL).
pub fn add_elements(
    key: SetKey,
    elements: &[(IpNet, Duration, u64)],
    flags: u16,
    interface: &IfName,
) -> Request {
    request(NEW_ELEMENT, CREATE | flags, |body| {
        let mut list = OpNewsetelemDo::encode_request(body, &header())
            .push_table(TABLE)
            .push_set_bytes(key.name(interface).as_bytes())
            .nested_elements();
        for (network, duration, packets) in elements {
            let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1);
            let element = list
                .nested_elem()
                .nested_key()
                .push_value(&key_of(*network))
                .end_nested()
                // The crate writes the number as it is; the kernel wants it in network byte order.
                .push_timeout(millis.to_be());
            let element = if *packets == 0 {
                element
            } else {
                element
                    .nested_expr()
                    .nested_data_counter()
                    .push_bytes(0)
                    .push_packets(*packets)
                    .end_nested()
                    .end_nested()
            };
            list = element.end_nested();
        }
    })
}

pub fn delete_elements(key: SetKey, networks: &[IpNet], interface: &IfName) -> Request {
    request(DELETE_ELEMENT, 0, |body| {
        let mut list = OpDelsetelemDo::encode_request(body, &header())
            .push_table(TABLE)
            .push_set_bytes(key.name(interface).as_bytes())
            .nested_elements();
        for network in networks {
            list = list
                .nested_elem()
                .nested_key()
                .push_value(&key_of(*network))
                .end_nested()
                .end_nested();
        }
    })
}

/// Deletes all elements of a set.
pub fn flush_set(key: SetKey, interface: &IfName) -> Request {
    request(DELETE_ELEMENT, 0, |body| {
        OpDelsetelemDo::encode_request(body, &header())
            .push_table(TABLE)
            .push_set_bytes(key.name(interface).as_bytes());
    })
}

pub fn get_generation() -> Request {
    request(GET_GENERATION, 0, |body| {
        OpGetgenDo::encode_request(body, &header());
    })
}

pub fn get_table() -> Request {
    request(GET_TABLE, 0, |body| {
        OpGettableDo::encode_request(body, &header()).push_name(TABLE);
    })
}

pub fn get_chains() -> Request {
    request(GET_CHAIN, 0, |body| {
        OpGetchainDump::encode_request(body, &header());
    })
}

pub fn get_rules(hook: Hook, interface: &IfName) -> Request {
    request(GET_RULE, 0, |body| {
        OpGetruleDump::encode_request(body, &header())
            .push_table(TABLE)
            .push_chain_bytes(chain_name(hook, interface).as_bytes());
    })
}

pub fn get_sets() -> Request {
    request(GET_SET, 0, |body| {
        OpGetsetDump::encode_request(body, &header()).push_table(TABLE);
    })
}

/// Asks for one element.
pub fn get_element(network: IpNet, interface: &IfName) -> Request {
    let key = SetKey::of(network);
    request(GET_ELEMENT, 0, |body| {
        OpGetsetelemDump::encode_request(body, &header())
            .push_table(TABLE)
            .push_set_bytes(key.name(interface).as_bytes())
            .nested_elements()
            .nested_elem()
            .nested_key()
            .push_value(&key_of(network));
    })
}

pub fn get_elements(key: SetKey, interface: &IfName) -> Request {
    request(GET_ELEMENT, 0, |body| {
        OpGetsetelemDump::encode_request(body, &header())
            .push_table(TABLE)
            .push_set_bytes(key.name(interface).as_bytes());
    })
}

/// The number of the last change in this network namespace.
pub fn read_generation(answer: &[u8]) -> Option<u32> {
    OpGetgenDo::decode_request(answer).1.get_id().ok()
}

/// Whether another program has switched the table off.
pub fn is_dormant(answer: &[u8]) -> bool {
    let flags = OpGettableDo::decode_request(answer).1.get_flags();
    flags.is_ok_and(|flags| flags & TableFlags::Dormant as u32 != 0)
}

/// A chain or set of the table, as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub name: Vec<u8>,
    /// A number that the kernel never uses twice.
    pub handle: u64,
}

pub fn read_chain(answer: &[u8]) -> Option<Object> {
    let chain = OpGetchainDump::decode_request(answer).1;
    if chain.get_table().ok()? != TABLE {
        return None;
    }
    Some(Object {
        name: chain.get_name().ok()?.to_bytes().to_vec(),
        handle: chain.get_handle().ok()?,
    })
}

pub fn read_set(answer: &[u8]) -> Option<Object> {
    let set = OpGetsetDump::decode_request(answer).1;
    if set.get_table().ok()? != TABLE || set.get_flags().ok()? != SetFlags::Timeout as u32 {
        return None;
    }
    Some(Object { name: set.get_name().ok()?.to_bytes().to_vec(), handle: set.get_handle().ok()? })
}

/// A rule of an instance's chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub handle: u64,
    /// The packets that it has dropped.
    pub packets: u64,
    /// The set that it matches.
    pub set: Option<SetKey>,
}

pub fn read_rule(answer: &[u8], interface: &IfName) -> Option<Rule> {
    let rule = OpGetruleDump::decode_request(answer).1;
    let mut read = Rule { handle: rule.get_handle().ok()?, packets: 0, set: None };
    for expression in rule.get_expressions().ok()?.get_elem() {
        match expression.get_data() {
            Ok(ExprOps::Counter(counter)) => read.packets = counter.get_packets().ok()?,
            Ok(ExprOps::Lookup(lookup)) => {
                read.set = SetKey::parse(lookup.get_set().ok()?.to_bytes(), interface);
            }
            _ => {}
        }
    }
    Some(read)
}

/// Passes on the elements in an answer. One without an end lasts for good.
pub fn read_elements(key: SetKey, answer: &[u8], mut each: impl FnMut(Element)) {
    let Ok(elements) = OpGetsetelemDump::decode_request(answer).1.get_elements() else { return };
    for element in elements.get_elem() {
        let network = element.get_key().and_then(|key| key.get_value()).ok();
        let Some(network) = network.and_then(|bytes| key.network(bytes)) else { continue };
        let packets = match element.get_expr().and_then(|expr| expr.get_data()) {
            Ok(ExprOps::Counter(counter)) => counter.get_packets().unwrap_or_default(),
            _ => 0,
        };
        // The crate reads these numbers as they are; the kernel has written them in network byte order.
        let millis = element.get_expiration().map_or(u64::MAX, u64::from_be);
        each(Element { network, remaining: Duration::from_millis(millis), packets });
    }
}

/// Whether a notification is about the table or something in it.
pub fn concerns_table(body: &[u8]) -> bool {
    // The first attribute of each message is the name of the table.
    let table = OpGettableDo::decode_request(body).1.get_name();
    body.first() == Some(&INET) && table.is_ok_and(|table| table == TABLE)
}

/// Whether a notification says that members of an instance's sets have changed.
pub fn changes_members(kind: u16, body: &[u8], interface: &IfName) -> bool {
    if kind != NEW_ELEMENT && kind != DELETE_ELEMENT {
        return false;
    }
    let elements = OpGetsetelemDump::decode_request(body).1;
    elements.get_table().is_ok_and(|table| table == TABLE)
        && elements.get_set().is_ok_and(|set| SetKey::parse(set.to_bytes(), interface).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_sets_are_read_back() {
        let interface: IfName = "v4-32-x".parse().unwrap();
        for network in ["192.0.2.1/32", "0.0.0.0/0", "2001:db8::/64", "2001:db8::1/128"] {
            let key = SetKey::of(network.parse().unwrap());
            assert_eq!(SetKey::parse(key.name(&interface).as_bytes(), &interface), Some(key));
        }
        let other: IfName = "x".parse().unwrap();
        for name in
            ["v4-32-v4-32-x", "v4-33-x", "v6-129-x", "v4--x", "input-x", "x", "v4-32-y", "v4-+3-x"]
        {
            assert_eq!(SetKey::parse(name.as_bytes(), &other), None, "{name}");
        }
    }
}
