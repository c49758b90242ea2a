//! The rules a scan can break, and how each is told to people.
//!
//! Pure. Owns the words; the numbers stand where each rule is applied.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::clock::HumanDuration;

/// A rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Too many ports tried by one source.
    #[default]
    Ports,
    /// Too many ports of one host tried by one source.
    PortsOfHost,
    /// Too many ports of one host at which one source failed.
    FailedPorts,
    /// Too many ports of one host tried by one source in vain, or only to see whether they are open.
    SoundedPorts,
    /// Segments that belong to no connection sent to too many ports of one host.
    StrayPorts,
    /// Too many hosts at which one source failed on the same port.
    FailedHosts,
    /// Very many ports of one host tried by one source, whatever came of it. Reported only.
    ManyPorts,
    /// Too many ports of one host at which many sources, each with a few, failed. Reported only.
    ManySources,
}

impl Rule {
    /// Whether its breaker is blocked: some rules honest hosts may break.
    pub const fn blocks(self) -> bool {
        !matches!(self, Self::ManyPorts | Self::ManySources)
    }

    /// Whether it counts what became of probes.
    pub const fn looks_at_outcomes(self) -> bool {
        !matches!(self, Self::Ports | Self::PortsOfHost)
    }

    /// The rule in words, for a threshold that was exceeded within a span.
    pub fn sentence(self, threshold: usize, span: Duration) -> String {
        let span = HumanDuration(span);
        match self {
            Self::Ports => format!("more than {threshold} ports in {span} from one source"),
            Self::PortsOfHost => {
                format!("more than {threshold} ports of one host in {span} from one source")
            }
            Self::FailedPorts => {
                format!("more than {threshold} failed ports of one host in {span} from one source")
            }
            Self::SoundedPorts => format!(
                "more than {threshold} ports of one host, failed or left unused, in {span} from \
                 one source"
            ),
            Self::StrayPorts => format!(
                "segments of no connection to more than {threshold} ports of one host in {span} \
                 from one source"
            ),
            Self::FailedHosts => {
                format!("more than {threshold} failed hosts on one port in {span} from one source")
            }
            Self::ManyPorts => format!(
                "more than {threshold} ports of one host in {span} from one source, whatever came \
                 of it; only reported"
            ),
            Self::ManySources => format!(
                "more than {threshold} failed ports of one host in {span}, from many sources with \
                 a few each; only reported"
            ),
        }
    }
}
