//! A port scan: what the detector reports, and everybody else reads.
//!
//! Holds no behaviour beyond what the words mean.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::types::clock::Moment;
use crate::types::rule::Rule;
use crate::types::segment::{Outcome, Port};

/// What kind of scan it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScanKind {
    /// Many ports by ordinary connection attempts.
    Vertical,
    /// Many ports, and at least one of them by a segment no honest client sends.
    Stealth,
    /// One port of many hosts.
    Sweep,
    /// Many ports, by many sources with a few each.
    Distributed,
}

impl ScanKind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Vertical, Self::Stealth, Self::Sweep, Self::Distributed];

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Vertical => "vertical",
            Self::Stealth => "stealth",
            Self::Sweep => "sweep",
            Self::Distributed => "distributed",
        }
    }
}

/// How many decoys a scan names at most.
pub const DECOYS_NAMED: usize = 16;

/// A source that tried more ports than the rule allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    /// Who: an address, or for IPv6 a network.
    pub source: IpNet,
    /// The address the last probe came from.
    pub address: IpAddr,
    /// The host the last probe was for.
    pub destination: IpAddr,
    /// What kind of scan.
    pub kind: ScanKind,
    /// The ports that make it one, in the order they were tried.
    pub attempts: Vec<Attempt>,
    /// When the last probe was captured.
    pub moment: Moment,
    /// The source's probes since it was first remembered, this one included.
    pub probes: u64,
    /// The rule it broke.
    pub rule: Rule,
    /// The threshold it exceeded.
    pub threshold: usize,
    /// Within this span.
    pub span: Duration,
    /// The same source was reported a window ago and has gone on since.
    pub continued: bool,
    /// Others that tried the same first ports at the same time: then most of them, and perhaps this
    /// one, are decoys. At most [`DECOYS_NAMED`].
    pub others: Vec<IpAddr>,
}

impl Scan {
    /// The ports alone.
    pub fn ports(&self) -> Vec<Port> {
        self.attempts.iter().map(|attempt| attempt.port).collect()
    }

    /// Whether its source may be a decoy, forged by somebody else.
    pub fn may_be_decoy(&self) -> bool {
        !self.others.is_empty()
    }
}

/// A port and when it was last tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The port.
    pub port: Port,
    /// When it was last tried.
    pub moment: Moment,
    /// What became of it, where the rule looks at that.
    #[serde(default, skip_serializing_if = "Outcome::is_unknown")]
    pub outcome: Outcome,
}

impl Attempt {
    /// An attempt at a port of whose outcome nothing is known.
    pub const fn at(port: Port, moment: Moment) -> Self {
        Self { port, moment, outcome: Outcome::Unknown }
    }

    /// The port, and what became of it if that is known.
    pub fn told(&self) -> String {
        match self.outcome {
            Outcome::Unknown => self.port.to_string(),
            outcome => format!("{} {}", self.port, outcome.as_str()),
        }
    }
}

/// A scan in sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Who.
    pub source: IpNet,
    /// Distinct ports tried.
    pub ports: u32,
    /// Probes, those of the same port included.
    pub probes: u64,
    /// From the first to the last of them.
    pub length: Duration,
    /// It was summed up though it has not fallen silent.
    pub goes_on: bool,
}
