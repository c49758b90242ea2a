//! What the kernel's nf_tables is asked without iptables: has anything changed, how many packets have
//! matched our rules, and who jumps to our chain where iptables cannot tell.
//!
//! Owns the few messages that takes (linux/netfilter/nf_tables.h). Makes no rule: that is iptables', which
//! keeps compatible what others see.

use rustix::net::netlink::NETFILTER;

use crate::block::backend::ruleset::CHAIN;
use crate::system::netlink::{Attributes, Body, NetlinkError, NetlinkSocket};
use crate::types::network::Family;

const NUMBER: u8 = 10;
const SUBSYSTEM: u16 = (NUMBER as u16) << 8;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const GET_RULE: u16 = SUBSYSTEM | 7;
const DELETE_RULE: u16 = SUBSYSTEM | 8;
const GET_GENERATION: u16 = SUBSYSTEM | 16;

/// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`: changes are carried out between them.
const BEGIN: u16 = 16;
const END: u16 = 17;

const TABLE: &str = "filter";

const ATTR_GENERATION_ID: u16 = 1;
const ATTR_CHAIN_TABLE: u16 = 1;
const ATTR_CHAIN_NAME: u16 = 3;
const ATTR_RULE_TABLE: u16 = 1;
const ATTR_RULE_CHAIN: u16 = 2;
const ATTR_RULE_HANDLE: u16 = 3;
const ATTR_RULE_EXPRESSIONS: u16 = 4;
const ATTR_EXPRESSION_NAME: u16 = 1;
const ATTR_EXPRESSION_DATA: u16 = 2;
const ATTR_COUNTER_PACKETS: u16 = 2;
const ATTR_IMMEDIATE_DATA: u16 = 2;
const ATTR_DATA_VERDICT: u16 = 2;
const ATTR_VERDICT_CHAIN: u16 = 2;

const ENOENT: i32 = 2;

/// A rule of table `filter`, by what of it is of interest here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The chain it is in.
    pub chain: String,
    /// Its number, never used twice.
    pub handle: u64,
    /// Whether it goes to our chain.
    pub goes_to_ours: Goes,
}

/// Which of a chain's packets go to ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goes {
    /// All.
    Always,
    /// Some.
    Sometimes,
    /// None.
    Never,
}

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
            .text(ATTR_RULE_TABLE, TABLE)
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

    /// Whether our chain is there.
    pub fn has_our_chain(&mut self, family: Family) -> Result<bool, NetlinkError> {
        let body = Body::with_header(&[family.number(), 0, 0, 0])
            .text(ATTR_CHAIN_TABLE, TABLE)
            .text(ATTR_CHAIN_NAME, CHAIN);
        match self.0.query(GET_CHAIN, &body, |_, _| {}) {
            Ok(()) => Ok(true),
            Err(NetlinkError::Refused(ENOENT)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// All rules of the table, chain by chain, in order.
    pub fn rules(&mut self, family: Family) -> Result<Vec<Rule>, NetlinkError> {
        let body = Body::with_header(&[family.number(), 0, 0, 0]).text(ATTR_RULE_TABLE, TABLE);
        let mut rules = Vec::new();
        self.0.dump(GET_RULE, &body, |kind, rule| {
            if kind == NEW_RULE {
                rules.extend(read_rule(rule));
            }
        })?;
        Ok(rules)
    }

    /// Deletes a rule; one that is not there is no error.
    pub fn delete(&mut self, family: Family, chain: &str, handle: u64) -> Result<(), NetlinkError> {
        let limit = Body::with_header(&[0, 0, 0, NUMBER]);
        let rule = Body::with_header(&[family.number(), 0, 0, 0])
            .text(ATTR_RULE_TABLE, TABLE)
            .text(ATTR_RULE_CHAIN, chain)
            .attribute(ATTR_RULE_HANDLE, &handle.to_be_bytes());
        match self.0.request_between((BEGIN, &limit), (DELETE_RULE, &rule), (END, &limit)) {
            Ok(()) | Err(NetlinkError::Refused(ENOENT)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

pub fn read_rule(rule: &[u8]) -> Option<Rule> {
    let chain = text(attributes(rule).find(ATTR_RULE_CHAIN)?);
    let handle = attributes(rule).find(ATTR_RULE_HANDLE)?.try_into().ok()?;
    let expressions = attributes(rule).find(ATTR_RULE_EXPRESSIONS).unwrap_or_default();
    let name = |expression| Attributes(expression).find(ATTR_EXPRESSION_NAME).map(text);
    let (mut goes, mut asks) = (false, false);
    for (_, expression) in Attributes(expressions) {
        match name(expression).as_deref() {
            Some("immediate") => goes |= target(expression).as_deref() == Some(CHAIN),
            Some("counter") => {}
            _ => asks = true,
        }
    }
    let goes_to_ours = match (goes, asks) {
        (true, false) => Goes::Always,
        (true, true) => Goes::Sometimes,
        (false, _) => Goes::Never,
    };
    Some(Rule { chain, handle: u64::from_be_bytes(handle), goes_to_ours })
}

/// Where a rule's verdict jumps or goes to.
fn target(expression: &[u8]) -> Option<String> {
    let data = Attributes(expression).find(ATTR_EXPRESSION_DATA)?;
    let value = Attributes(data).find(ATTR_IMMEDIATE_DATA)?;
    let verdict = Attributes(value).find(ATTR_DATA_VERDICT)?;
    Attributes(verdict).find(ATTR_VERDICT_CHAIN).map(text)
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

pub fn read_counter(rule: &[u8]) -> Option<(u64, u64)> {
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
