//! Blocks as values: why they begin and end, why a source is not blocked, and the words for all of it.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use serde::{Deserialize, Serialize};

use crate::types::words::words;
use crate::types::{Attempt, Moment, Port, Rule, Scan, ScanKind, show_network};

/// Ports that a reason names; the rest is counted.
const PORTS_IN_REASON: usize = 8;

/// A block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub since: Moment,
    /// None: until unblocked.
    pub until: Option<Moment>,
    /// Which offence this is; zero: none.
    pub offences: u32,
    pub reason: BlockReason,
}

/// Why a network is blocked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockReason {
    /// The evidence has at most one attempt more than the threshold.
    Scan(Box<Evidence>),
    /// A user's words.
    Manual(String),
    /// The kernel held it at the start, and the database did not.
    Found,
}

impl BlockReason {
    pub fn evidence(&self) -> Option<&Evidence> {
        match self {
            Self::Scan(evidence) => Some(evidence),
            Self::Manual(_) | Self::Found => None,
        }
    }

    pub const fn cause(&self) -> BlockCause {
        match self {
            Self::Scan(_) => BlockCause::Scan,
            Self::Manual(_) => BlockCause::Manual,
            Self::Found => BlockCause::Found,
        }
    }
}

impl fmt::Display for BlockReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scan(evidence) => evidence.fmt(f),
            Self::Manual(text) => f.write_str(text),
            Self::Found => f.write_str("found in the kernel after an unclean shutdown"),
        }
    }
}

/// What makes a source a scanner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    pub kind: ScanKind,
    /// The address that the last probe came from.
    pub address: IpAddr,
    /// The host that the last probe was for.
    pub destination: IpAddr,
    /// The ports that make it a scan, in the order in which the source tried them.
    pub attempts: Vec<Attempt>,
    /// The source's probes since the detector first saw it.
    pub probes: u64,
    #[serde(default)]
    pub rule: Rule,
    /// The threshold that the source exceeded ...
    pub threshold: usize,
    /// ... within this span.
    pub span: Duration,
    /// Other sources tried the same ports at the same time: this one may be a decoy, its address forged.
    #[serde(default)]
    pub decoy: bool,
}

impl From<&Scan> for Evidence {
    fn from(scan: &Scan) -> Self {
        Self {
            kind: scan.kind,
            address: scan.address,
            destination: scan.destination,
            attempts: scan.attempts.clone(),
            probes: scan.probes,
            rule: scan.rule,
            threshold: scan.threshold,
            span: scan.span,
            decoy: scan.decoy,
        }
    }
}

impl Evidence {
    pub fn ports(&self) -> impl Iterator<Item = Port> {
        self.attempts.iter().map(|attempt| attempt.port)
    }
}

/// The reason of a block, as users read it.
impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named: Vec<String> =
            self.ports().take(PORTS_IN_REASON).map(|port| port.to_string()).collect();
        let named = named.join(", ");
        if self.rule == Rule::FailedTargets {
            return write!(f, "sweep: more than {} ports of several hosts", self.threshold);
        }
        if self.kind == ScanKind::Sweep {
            return write!(f, "sweep: port {named} of more than {} hosts", self.threshold);
        }
        write!(f, "{} scan: ports {named}", self.kind.as_str())?;
        match self.attempts.len().saturating_sub(PORTS_IN_REASON) {
            0 => {}
            more => write!(f, " and {more} more")?,
        }
        if self.decoy {
            f.write_str(", as others did at the same time (decoys?)")?;
        }
        Ok(())
    }
}

words! {
    /// Why a block began.
    BlockCause {
        Scan = "scan",
        Manual = "manual",
        Found = "found",
    }
}

words! {
    /// Why a block ended.
    UnblockCause {
        Expired = "expired",
        Manual = "manual",
        /// The address has become exempt.
        Exempt = "exempt",
        /// A newer block needed the room, and this source had sent the fewest probes.
        Evicted = "displaced",
    }
}

/// Why a recognised scanner was not blocked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SkipReason {
    /// `block.enabled` is false.
    Observing,
    Exempt(ExemptReason),
    /// A user unblocked it a short while ago.
    Grace {
        remaining: Duration,
    },
    /// The share of `block.max_per_minute` for sources like this one is used up.
    Throttled {
        limit: u32,
    },
    Failed(BlockFailure),
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Observing => f.write_str("observing only (block.enabled = false)"),
            Self::Exempt(why) => write!(f, "exempt: {why}"),
            Self::Grace { remaining } => {
                write!(f, "unblocked manually; not blocked again for {}s", remaining.as_secs())
            }
            Self::Throttled { limit } => write!(
                f,
                "many new blocks in a minute, perhaps of forged sources; scanners are blocked later or only \
                 reported (block.max_per_minute = {limit})"
            ),
            Self::Failed(error) => write!(f, "blocking failed: {error}"),
        }
    }
}

/// Why the kernel does not hold a block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockFailure {
    #[error(
        "cannot block: this instance only observes; set block.enabled = true and start it without \
         --observe"
    )]
    Observing,
    #[error("block limit reached ({0} per address family); unblock something first")]
    Full(u32),
    #[error("IPv6 is disabled on this host")]
    NoIpv6,
    /// The kernel's error.
    #[error("{0}")]
    Kernel(String),
}

/// Why a network is exempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExemptReason {
    /// It overlaps a network of `exempt.networks`.
    Configured(IpNet),
    /// It contains an address of this host.
    OwnAddress(IpAddr),
    /// It lies within a network in which no remote host can have an address.
    Impossible(IpNet),
    /// It is a broadcast address of a connected network.
    Broadcast(IpAddr),
    Loopback(IpNet),
    LinkLocal(IpNet),
    /// It contains a gateway of this host.
    Gateway(IpAddr),
    /// It contains a name server of this host.
    Resolver(IpAddr),
    /// It contains the peer of a live SSH session.
    SshSession(IpAddr),
    /// It contains a peer of sshd that may be logged in, and a block would end its session.
    SshLogin(IpAddr),
}

impl fmt::Display for ExemptReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configured(network) => {
                write!(f, "{} is listed in exempt.networks", show_network(network))
            }
            Self::OwnAddress(address) => write!(f, "{address} is an address of this host"),
            Self::Impossible(network) => {
                write!(f, "no remote host can have an address in {}", show_network(network))
            }
            Self::Broadcast(address) => {
                write!(f, "{address} is a broadcast address, and no remote host can have it")
            }
            Self::Loopback(network) => write!(f, "{} is loopback", show_network(network)),
            Self::LinkLocal(network) => write!(f, "{} is link-local", show_network(network)),
            Self::Gateway(address) => write!(f, "{address} is a gateway of this host"),
            Self::Resolver(address) => write!(f, "{address} is a name server of this host"),
            Self::SshSession(address) => {
                write!(f, "{address} has an SSH session open to this host")
            }
            Self::SshLogin(address) => write!(
                f,
                "{address} may be logged in over SSH, which is known after LoginGraceTime of sshd, and a \
                 block would end its session (block.established)"
            ),
        }
    }
}
