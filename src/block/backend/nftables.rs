//! Questions that nf_tables answers without iptables: whether a rule has changed, how many packets the
//! rules of this instance have matched, and which rules jump to the chain `tcptracker` if iptables cannot
//! tell.
//!
//! Owns the few messages for this (linux/netfilter/nf_tables.h). Must not make a rule: iptables makes
//! them, so that they look to other programs as they always have.

use rustix::net::netlink::NETFILTER;

use crate::block::backend::ruleset::CHAIN;
use crate::system::netlink::{Attributes, Body, NetlinkError, NetlinkSocket, Request};
use crate::types::Family;

const NUMBER: u8 = 10;
const SUBSYSTEM: u16 = (NUMBER as u16) << 8;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const GET_RULE: u16 = SUBSYSTEM | 7;
const DELETE_RULE: u16 = SUBSYSTEM | 8;
const GET_GENERATION: u16 = SUBSYSTEM | 16;

/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`, which enclose every change.
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

/// A rule in table `filter`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub chain: String,
    /// A number that the kernel never uses twice.
    pub handle: u64,
    /// The rule in the words of iptables, as far as they concern the chain `tcptracker`.
    pub text: String,
}

/// A connection to nf_tables, for table `filter` of one family.
pub struct Nftables {
    socket: NetlinkSocket,
    family: Family,
}

impl Nftables {
    pub fn connect(family: Family) -> Result<Self, NetlinkError> {
        Ok(Self { socket: NetlinkSocket::open(Some(NETFILTER), 0)?, family })
    }

    /// The number of the last change to any rule in this network namespace.
    pub fn generation(&mut self) -> Result<u32, NetlinkError> {
        let mut generation = None;
        self.socket.query(GET_GENERATION, &Body::with_header(&[0; 4]), |_, answer| {
            let id = Attributes::of_netfilter(answer).find(ATTR_GENERATION_ID);
            generation = id.and_then(|id| id.try_into().ok()).map(u32::from_be_bytes);
        })?;
        generation.ok_or(NetlinkError::Garbled)
    }

    /// Returns, for each rule with this comment in the chain `tcptracker`, its handle and the number of
    /// packets that it has matched.
    pub fn counters(&mut self, comment: &str) -> Result<Vec<(u64, u64)>, NetlinkError> {
        let body = self.rule_request().text(ATTR_RULE_CHAIN, CHAIN);
        // Some versions of iptables store the comment in a match, others in user data. Both end with NUL.
        let comment = [comment.as_bytes(), &[0]].concat();
        let mut counters = Vec::new();
        self.socket.dump(GET_RULE, &body, |kind, rule| {
            if kind == NEW_RULE && rule.windows(comment.len()).any(|part| part == comment) {
                counters.extend(read_counter(rule));
            }
        })?;
        Ok(counters)
    }

    /// Whether the chain `tcptracker` exists.
    pub fn has_chain(&mut self) -> Result<bool, NetlinkError> {
        let body = Body::for_family(self.family)
            .text(ATTR_CHAIN_TABLE, TABLE)
            .text(ATTR_CHAIN_NAME, CHAIN);
        match self.socket.query(GET_CHAIN, &body, |_, _| {}) {
            Ok(()) => Ok(true),
            Err(NetlinkError::Refused(ENOENT)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The rules of all chains except `tcptracker`, chain by chain, in order.
    pub fn rules_of_other_chains(&mut self) -> Result<Vec<Rule>, NetlinkError> {
        let body = self.rule_request();
        let mut rules = Vec::new();
        self.socket.dump(GET_RULE, &body, |kind, rule| {
            if kind == NEW_RULE {
                rules.extend(read_rule(rule).filter(|rule| rule.chain != CHAIN));
            }
        })?;
        Ok(rules)
    }

    /// Deletes rules. A rule that does not exist is no error.
    pub fn delete_all(&mut self, rules: &[Rule]) -> Result<(), NetlinkError> {
        let limit = |kind| Request { kind, flags: 0, body: Body::with_header(&[0, 0, 0, NUMBER]) };
        let limits = [limit(BEGIN), limit(END)];
        for Rule { chain, handle, .. } in rules {
            let body = self
                .rule_request()
                .text(ATTR_RULE_CHAIN, chain)
                .attribute(ATTR_RULE_HANDLE, &handle.to_be_bytes());
            let delete = Request { kind: DELETE_RULE, flags: 0, body };
            match self.socket.transact(&limits, &[delete]) {
                Ok(()) | Err(NetlinkError::Refused(ENOENT)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn rule_request(&self) -> Body {
        Body::for_family(self.family).text(ATTR_RULE_TABLE, TABLE)
    }
}

pub fn read_rule(rule: &[u8]) -> Option<Rule> {
    let rule = Attributes::of_netfilter(rule);
    let (mut has_jump, mut has_match) = (false, false);
    for (_, expression) in Attributes::of(rule.find(ATTR_RULE_EXPRESSIONS).unwrap_or_default()) {
        let expression = Attributes::of(expression);
        match expression.find(ATTR_EXPRESSION_NAME) {
            Some(b"immediate\0") => {
                let target = [
                    ATTR_EXPRESSION_DATA,
                    ATTR_IMMEDIATE_DATA,
                    ATTR_DATA_VERDICT,
                    ATTR_VERDICT_CHAIN,
                ];
                has_jump |= expression.find_nested(&target).map(text).as_deref() == Some(CHAIN);
            }
            Some(b"counter\0") => {}
            _ => has_match = true,
        }
    }
    let (chain, handle) = (text(rule.find(ATTR_RULE_CHAIN)?), read_handle(&rule)?);
    let text = match (has_jump, has_match) {
        (true, false) => format!("-A {chain} -j {CHAIN}"),
        // iptables has no such match; it identifies the rule.
        (true, true) => format!("-A {chain} -m handle --handle {handle} -j {CHAIN}"),
        (false, _) => format!("-A {chain}"),
    };
    Some(Rule { chain, handle, text })
}

pub fn read_counter(rule: &[u8]) -> Option<(u64, u64)> {
    let rule = Attributes::of_netfilter(rule);
    let counter = Attributes::of(rule.find(ATTR_RULE_EXPRESSIONS)?)
        .map(|(_, expression)| Attributes::of(expression))
        .find(|expression| expression.find(ATTR_EXPRESSION_NAME) == Some(b"counter\0"))?;
    let packets = counter.find_nested(&[ATTR_EXPRESSION_DATA, ATTR_COUNTER_PACKETS])?;
    Some((read_handle(&rule)?, u64::from_be_bytes(packets.try_into().ok()?)))
}

fn read_handle(rule: &Attributes<'_>) -> Option<u64> {
    Some(u64::from_be_bytes(rule.find(ATTR_RULE_HANDLE)?.try_into().ok()?))
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}
