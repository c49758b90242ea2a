//! The configuration: every key, its type, its default and what it means.
//!
//! Owns the values. Where they come from and which of several wins is [`layers`]' business; what a
//! value may be is [`values`]'; what each key is told to mean is [`reference`]'s.

pub mod layers;
pub mod reference;
pub mod values;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use layers::{ConfigError, Effective, Flags, Origin, Sources};
pub use values::{
    Backend, BlockDuration, Established, Hook, Listen, LogFormat, LogLevel, MaxSources, Per,
    PrefixLength, Preset, Rate, Span, Target, Threshold, WindowSpan,
};

/// The whole configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What counts as a scan.
    pub detection: DetectionConfig,
    /// Who is never blocked.
    pub exempt: ExemptConfig,
    /// Whether and how long scanners are blocked.
    pub block: BlockConfig,
    /// How the kernel is told.
    pub firewall: FirewallConfig,
    /// What is written to the journal.
    pub log: LogConfig,
    /// Where Prometheus asks.
    pub metrics: MetricsConfig,
    /// The D-Bus interface.
    pub bus: BusConfig,
}

/// What counts as a scan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DetectionConfig {
    /// The rule.
    pub preset: Preset,
    /// More than this many distinct ports ...
    pub ports: Threshold,
    /// ... within this sliding window.
    pub window: WindowSpan,
    /// Counted per source, or per source and destination.
    pub per: Per,
    /// FIN, NULL and XMAS probes and tiny fragments count too.
    pub stealth: bool,
    /// Sources remembered.
    pub max_sources: MaxSources,
    /// IPv6 sources are networks of this length.
    pub ipv6_prefix: PrefixLength,
}

impl Default for DetectionConfig {
    fn default() -> Self {
        Self {
            preset: Preset::Classic,
            ports: Threshold::default(),
            window: WindowSpan::default(),
            per: Per::Source,
            stealth: true,
            max_sources: MaxSources::default(),
            ipv6_prefix: PrefixLength::default(),
        }
    }
}

/// Who is never blocked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExemptConfig {
    /// Addresses and networks.
    #[serde(with = "values::networks")]
    pub networks: Vec<IpNet>,
    /// The host's own addresses and those it depends on.
    pub automatic: bool,
}

impl Default for ExemptConfig {
    fn default() -> Self {
        Self { networks: Vec::new(), automatic: true }
    }
}

/// Whether and how long scanners are blocked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BlockConfig {
    /// False observes.
    pub enabled: bool,
    /// First, second, ... offence; the last repeats. Never empty.
    #[serde(deserialize_with = "values::at_least_one")]
    pub durations: Vec<BlockDuration>,
    /// An offence older than this no longer counts.
    pub forget_after: Span,
    /// An address unblocked by hand is left alone for this long.
    pub grace_after_unblock: Span,
    /// The spoofing guard.
    pub max_per_minute: Rate,
    /// What becomes of connections that exist already.
    pub established: Established,
}

impl Default for BlockConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            durations: ["1h", "4h", "1d", "1w"].map(BlockDuration::constant).to_vec(),
            forget_after: Span::constant("30d"),
            grace_after_unblock: Span::constant("1h"),
            max_per_minute: Rate(600),
            established: Established::Keep,
        }
    }
}

/// How the kernel is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FirewallConfig {
    /// Kernel sets, or a rule per address.
    pub backend: Backend,
    /// The built-in chains that jump to ours. Never empty.
    #[serde(deserialize_with = "values::at_least_one")]
    pub hooks: Vec<Hook>,
    /// What becomes of a blocked packet.
    pub target: Target,
}

impl Default for FirewallConfig {
    fn default() -> Self {
        Self {
            backend: Backend::Auto,
            hooks: vec![Hook::Input, Hook::Forward],
            target: Target::Drop,
        }
    }
}

/// What is written to the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// An entry for each new connection.
    pub connections: bool,
    /// At most this many a second.
    pub rate: Rate,
    /// How entries look where no journal takes them.
    pub format: LogFormat,
    /// How detailed it is.
    pub level: LogLevel,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { connections: true, rate: Rate(100), format: LogFormat::Text, level: LogLevel::Info }
    }
}

/// Where Prometheus asks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// An address and port, or off.
    pub listen: Listen,
}

/// The D-Bus interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BusConfig {
    /// False where there is no bus.
    pub enabled: bool,
}

impl Default for BusConfig {
    fn default() -> Self {
        Self { enabled: true }
    }
}
