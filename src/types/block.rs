//! What is remembered of a network: the ledger holds it, the database keeps it.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::types::network::show_network;
use serde::{Deserialize, Serialize};

use crate::types::clock::Moment;
use crate::types::rule::Rule;
use crate::types::scan::{Attempt, Scan, ScanKind};

/// A block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Since when.
    pub since: Moment,
    /// Until when; none: until unblocked.
    pub until: Option<Moment>,
    /// Which offence this is; zero if none.
    pub offences: u32,
    /// Why, in words.
    pub reason: String,
    /// The scan it is for; none for a block by hand. At most one attempt more than the threshold.
    pub evidence: Option<Box<Evidence>>,
}

/// What makes a source a scanner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// What kind of scan.
    pub kind: ScanKind,
    /// The address the last probe came from.
    pub address: IpAddr,
    /// The host the last probe was for.
    pub destination: IpAddr,
    /// The ports that make it one, in the order they were tried, and when.
    pub attempts: Vec<Attempt>,
    /// The source's probes since it was first remembered.
    pub probes: u64,
    /// The rule it broke.
    #[serde(default)]
    pub rule: Rule,
    /// The threshold it exceeded ...
    pub threshold: usize,
    /// ... within this span.
    pub span: Duration,
    /// Others tried the same ports at the same time: this one may be a decoy, its address forged.
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
            decoy: scan.may_be_decoy(),
        }
    }
}

/// How often a network has been blocked for a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offences {
    /// How often.
    pub count: u32,
    /// The last time.
    pub latest: Moment,
}

/// One thing to be kept; none: no longer.
#[derive(Clone, Copy, Debug)]
pub enum Record<'a> {
    /// Who is blocked.
    Block(IpNet, Option<&'a Block>),
    /// Who has offended before.
    Offences(IpNet, Option<Offences>),
    /// Who is left alone until when, having been unblocked by hand.
    Grace(IpNet, Option<Moment>),
}

/// Everything that was kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    /// Who is blocked.
    pub blocks: Vec<(IpNet, Block)>,
    /// Who has offended before, the longest ago first.
    pub offences: Vec<(IpNet, Offences)>,
    /// Who is left alone until when, the first to end first.
    pub graces: Vec<(IpNet, Moment)>,
}

/// Why a block began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockCause {
    /// A scan was recognised.
    Scan,
    /// Somebody asked for it.
    Manual,
    /// It was found in the kernel at the start, left by an instance that did not stop in order.
    Found,
}

impl BlockCause {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scan => "scan",
            Self::Manual => "manual",
            Self::Found => "found",
        }
    }
}

/// Why a block ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnblockCause {
    /// Its time was up.
    Expired,
    /// Somebody asked for it.
    Manual,
    /// The address has become exempt.
    Exempt,
    /// There was no room for another block, and this one was nearest its end.
    Evicted,
}

impl UnblockCause {
    /// All causes, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Expired, Self::Manual, Self::Exempt, Self::Evicted];

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Manual => "manual",
            Self::Exempt => "exempt",
            Self::Evicted => "displaced",
        }
    }
}

/// Why a recognised scanner was not blocked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SkipReason {
    /// `block.enabled` is false.
    Observing,
    /// It is, or contains, an exempt address.
    Exempt(ExemptReason),
    /// It was unblocked by hand a short while ago.
    Grace {
        /// How long that still holds.
        remaining: Duration,
    },
    /// `block.max_per_minute` is reached.
    Throttled {
        /// The limit.
        limit: u32,
    },
    /// The kernel did not accept it.
    Failed(String),
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Observing => f.write_str("observing only (block.enabled = false)"),
            Self::Exempt(why) => write!(f, "exempt: {why}"),
            Self::Grace { remaining } => {
                write!(f, "unblocked by hand; not blocked again for {}s", remaining.as_secs())
            }
            Self::Throttled { limit } => write!(
                f,
                "more than {limit} new blocks in a minute (block.max_per_minute); \
                 the sources may be forged"
            ),
            Self::Failed(error) => write!(f, "blocking failed: {error}"),
        }
    }
}

/// Why a network is exempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExemptReason {
    /// It overlaps a network of `exempt.networks`.
    Configured(IpNet),
    /// It contains an address of this host.
    OwnAddress(IpAddr),
    Loopback(IpNet),
    LinkLocal(IpNet),
    /// It contains a gateway of this host.
    Gateway(IpAddr),
    /// It contains a name server of this host.
    Resolver(IpAddr),
    /// It contains the peer of a live SSH session.
    SshSession(IpAddr),
}

impl fmt::Display for ExemptReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configured(network) => {
                write!(f, "{} is listed in exempt.networks", show_network(network))
            }
            Self::OwnAddress(address) => write!(f, "{address} is an address of this host"),
            Self::Loopback(network) => write!(f, "{} is loopback", show_network(network)),
            Self::LinkLocal(network) => write!(f, "{} is link-local", show_network(network)),
            Self::Gateway(address) => write!(f, "{address} is a gateway of this host"),
            Self::Resolver(address) => write!(f, "{address} is a name server of this host"),
            Self::SshSession(address) => {
                write!(f, "{address} has an SSH session open to this host")
            }
        }
    }
}
