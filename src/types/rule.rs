//! The rules that a scan can exceed, and the sentence for each.
//!
//! Pure. Owns the words. The thresholds belong to the code that applies a rule.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::HumanDuration;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// One source tried too many ports.
    #[default]
    Ports,
    /// One source tried too many ports of one host.
    PortsOfHost,
    /// One source failed on too many ports of one host.
    FailedPorts,
    /// One source failed on, or connected without data to, too many ports of one host. The database contains
    /// the name of an earlier version.
    #[serde(rename = "sounded-ports")]
    ConnectScan,
    /// One source sent segments that belong to no connection to too many ports of one host. The database
    /// contains the name of an earlier version.
    #[serde(rename = "stray-ports")]
    OutOfState,
    /// One source failed on the same port of too many hosts.
    FailedHosts,
    /// One source failed with crafted SYNs on too many ports of any hosts.
    FailedTargets,
    /// One source tried very many ports of one host, whatever the outcome. Reported only.
    ManyPorts,
    /// Many sources with a few ports each failed on too many ports of one host. Reported only.
    ManySources,
    /// One source tried a port of `detection.trap_ports`.
    TrapPort,
}

impl Rule {
    /// Whether tcptracker blocks the source. Honest hosts may exceed some rules.
    pub const fn blocks(self) -> bool {
        !matches!(self, Self::ManyPorts | Self::ManySources)
    }

    /// Whether the rule depends on the outcome of probes.
    pub const fn looks_at_outcomes(self) -> bool {
        !matches!(self, Self::Ports | Self::PortsOfHost)
    }

    /// The rule in words, with the threshold that was exceeded within a span.
    pub fn sentence(self, threshold: usize, span: Duration) -> String {
        let (what, origin) = match self {
            Self::Ports => ("ports", "one source"),
            Self::PortsOfHost => ("ports of one host", "one source"),
            Self::FailedPorts => ("failed ports of one host", "one source"),
            Self::ConnectScan => {
                ("ports of one host, failed or connected without data,", "one source")
            }
            Self::OutOfState => {
                ("ports of one host", "one source, by segments outside any connection")
            }
            Self::FailedHosts => ("failed hosts on one port", "one source"),
            Self::FailedTargets => ("failed ports of several hosts", "one source"),
            Self::TrapPort => return "a trap port (detection.trap_ports)".to_owned(),
            Self::ManyPorts => {
                ("ports of one host", "one source, whatever the outcome; only reported")
            }
            Self::ManySources => {
                ("failed ports of one host", "many sources with a few ports each; only reported")
            }
        };
        format!("more than {threshold} {what} in {} from {origin}", HumanDuration(span))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn database_names_of_rules_stay() {
        for (rule, name) in [
            (Rule::Ports, "ports"),
            (Rule::PortsOfHost, "ports-of-host"),
            (Rule::FailedPorts, "failed-ports"),
            (Rule::ConnectScan, "sounded-ports"),
            (Rule::OutOfState, "stray-ports"),
            (Rule::FailedHosts, "failed-hosts"),
            (Rule::FailedTargets, "failed-targets"),
            (Rule::ManyPorts, "many-ports"),
            (Rule::ManySources, "many-sources"),
            (Rule::TrapPort, "trap-port"),
        ] {
            assert_eq!(serde_json::to_value(rule).unwrap(), name);
        }
    }
}
