//! What the kernel's nf_tables can be asked in one small message: has anything changed, and how many
//! packets have matched our rules.
//!
//! Owns the few messages that takes (linux/netfilter/nf_tables.h). Changes nothing: rules are made by
//! iptables, which keeps compatible what others see.

use rustix::net::netlink::NETFILTER;

use super::Family;
use super::listing::CHAIN;
use crate::netlink::{Attributes, Body, NetlinkError, NetlinkSocket};

const SUBSYSTEM: u16 = 10 << 8;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const GET_RULE: u16 = SUBSYSTEM | 7;
const GET_GENERATION: u16 = SUBSYSTEM | 16;

const ATTR_GENERATION_ID: u16 = 1;
const ATTR_RULE_TABLE: u16 = 1;
const ATTR_RULE_CHAIN: u16 = 2;
const ATTR_RULE_HANDLE: u16 = 3;
const ATTR_RULE_EXPRESSIONS: u16 = 4;
const ATTR_EXPRESSION_NAME: u16 = 1;
const ATTR_EXPRESSION_DATA: u16 = 2;
const ATTR_COUNTER_PACKETS: u16 = 2;

/// A connection to nf_tables.
pub struct Nftables(NetlinkSocket);

impl Nftables {
    /// Connects.
    pub fn connect() -> Result<Self, NetlinkError> {
        NetlinkSocket::open(Some(NETFILTER), 0).map(Self)
    }

    /// The number of the last change to any rule of this network namespace.
    pub fn generation(&mut self) -> Result<u32, NetlinkError> {
        let mut generation = None;
        self.0.query(GET_GENERATION, &Body::with_header(&[0; 4]), |_, answer| {
            let id = attributes(answer).find(ATTR_GENERATION_ID);
            generation = id.and_then(|id| id.try_into().ok()).map(u32::from_be_bytes);
        })?;
        generation.ok_or(NetlinkError::Garbled)
    }

    /// Of each rule in our chain with this comment: its handle, never used twice, and the packets that
    /// have matched it.
    pub fn counters(
        &mut self,
        family: Family,
        comment: &str,
    ) -> Result<Vec<(u64, u64)>, NetlinkError> {
        let body = Body::with_header(&[family.number(), 0, 0, 0])
            .text(ATTR_RULE_TABLE, "filter")
            .text(ATTR_RULE_CHAIN, CHAIN);
        // iptables has it in a match or in user data, as its version goes; closed with NUL in both.
        let comment = [comment.as_bytes(), &[0]].concat();
        let mut counters = Vec::new();
        self.0.dump(GET_RULE, &body, |kind, rule| {
            if kind == NEW_RULE && rule.windows(comment.len()).any(|part| part == comment) {
                counters.extend(read_counter(rule));
            }
        })?;
        Ok(counters)
    }
}

fn read_counter(rule: &[u8]) -> Option<(u64, u64)> {
    let handle = attributes(rule).find(ATTR_RULE_HANDLE)?.try_into().ok()?;
    let expressions = attributes(rule).find(ATTR_RULE_EXPRESSIONS)?;
    let counter = Attributes(expressions).find_map(|(_, expression)| {
        let name = Attributes(expression).find(ATTR_EXPRESSION_NAME)?;
        (name == b"counter\0").then(|| Attributes(expression).find(ATTR_EXPRESSION_DATA))?
    })?;
    let packets = Attributes(counter).find(ATTR_COUNTER_PACKETS)?.try_into().ok()?;
    Some((u64::from_be_bytes(handle), u64::from_be_bytes(packets)))
}

/// The attributes behind an answer's `struct nfgenmsg`.
fn attributes(answer: &[u8]) -> Attributes<'_> {
    Attributes(answer.get(4..).unwrap_or_default())
}
