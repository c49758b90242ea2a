//! What a source has done without being blocked for it, and how far it is from a block.
//!
//! Pure. Plain records.

use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

use crate::types::words::words;
use crate::types::{Attempt, Rule};

/// How a source stands with the detector.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pending {
    /// The rules that the source has come closer to.
    pub progress: Vec<Progress>,
    /// Its recent failures, the oldest first.
    pub failures: Vec<Judged>,
}

impl Pending {
    /// Returns the fewest further ports that would exceed a rule.
    pub fn missing(&self) -> Option<usize> {
        let missing = |progress: &Progress| (progress.threshold + 1).saturating_sub(progress.count);
        self.progress.iter().map(missing).min()
    }
}

/// How close a source has come to a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    pub rule: Rule,
    /// The host whose ports count. None: all addresses of this host, or all hosts.
    pub host: Option<IpAddr>,
    /// The ports that count now.
    pub count: usize,
    pub threshold: usize,
    pub span: Duration,
}

/// A failure of a source, and whether it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    pub source: IpAddr,
    /// None: an address of this host, or unknown.
    pub host: Option<IpAddr>,
    pub attempt: Attempt,
    pub decision: Decision,
}

words! {
    /// Whether a failure counts, and why not.
    #[derive(Serialize)]
    #[serde(rename_all = "kebab-case")]
    Decision {
        Counts = "counts",
        /// The port has replied since, or the failure is too old, or its source was forgotten.
        NoLonger = "no longer counts",
        Used = "excused: the source has used the port",
        KnownOpen = "excused: the port was open recently",
        Offset = "excused: offset by successful connections",
    }
}
