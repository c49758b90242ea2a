//! A port scan, as the detector reports it.
//!
//! Pure. Plain records without behaviour.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::types::words::words;
use crate::types::{Moment, Outcome, Port, Rule};

words! {
    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    ScanKind {
        /// One source tries many ports with ordinary connection attempts.
        Vertical = "vertical",
        /// One source tries many ports, at least one of them with a segment that no honest client sends.
        Stealth = "stealth",
        /// One source tries one port of many hosts (a horizontal scan).
        Sweep = "sweep",
        /// Many sources try many ports, each source a few of them.
        Distributed = "distributed",
        /// One source tries a port of `detection.trap_ports`.
        Trap = "trap",
    }
}

/// How many decoys a scan names at most.
pub const DECOYS_NAMED: usize = 16;

/// A source that exceeded a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    /// An address, or for IPv6 a network.
    pub source: IpNet,
    /// The address that sent the last probe.
    pub address: IpAddr,
    /// The host that the last probe was sent to.
    pub destination: IpAddr,
    pub kind: ScanKind,
    /// The ports that exceed the rule, in the order of their last attempts.
    pub attempts: Vec<Attempt>,
    /// When the last probe was captured.
    pub moment: Moment,
    /// How many probes the source has sent since the detector first remembered it, including the last one.
    pub probes: u64,
    pub rule: Rule,
    /// The source tried more than this many ports or hosts ...
    pub threshold: usize,
    /// ... within this time.
    pub span: Duration,
    /// The distinct ports or hosts that the source has tried since it exceeded the rule, and before.
    pub tried: u32,
    /// The source was reported before and has continued since: it is returned once per window, and each time
    /// `tried` doubles.
    pub continued: bool,
    /// The source may be a decoy, forged by another host.
    pub decoy: bool,
    /// In the first report of a possible decoy: other sources that tried the same first ports at the same time.
    /// Most of them, and perhaps this source, are decoys. At most [`DECOYS_NAMED`].
    pub others: Vec<IpAddr>,
}

impl Scan {
    /// The ports without times and outcomes.
    pub fn ports(&self) -> Vec<Port> {
        self.attempts.iter().map(|attempt| attempt.port).collect()
    }

    /// The ports, each with its outcome if that is known, and the rule that they exceed.
    pub fn evidence(&self) -> String {
        let ports: Vec<String> = self.attempts.iter().map(Attempt::describe).collect();
        let what = if ports.len() == 1 { "port" } else { "ports" };
        format!("{what} {}; {}", ports.join(", "), self.rule.sentence(self.threshold, self.span))
    }
}

/// The last attempt at a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    pub port: Port,
    pub moment: Moment,
    /// Unknown if the rule does not depend on outcomes.
    #[serde(default, skip_serializing_if = "Outcome::is_unknown")]
    pub outcome: Outcome,
}

impl Attempt {
    /// An attempt of unknown outcome.
    pub const fn at(port: Port, moment: Moment) -> Self {
        Self { port, moment, outcome: Outcome::Unknown }
    }

    /// The port, with its outcome if that is known.
    pub fn describe(&self) -> String {
        match self.outcome {
            Outcome::Unknown => self.port.to_string(),
            outcome => format!("{} {}", self.port, outcome.as_str()),
        }
    }
}

/// The summary of a scan that is over, or has run for a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    pub source: IpNet,
    /// Distinct ports.
    pub ports: u32,
    /// Probes, including those of repeated ports.
    pub probes: u64,
    /// The time from the first probe to the last one.
    pub length: Duration,
    /// The scan continues.
    pub goes_on: bool,
}
