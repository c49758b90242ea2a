//! The configuration: every key with its type and its default.
//!
//! [`layers`] reads the sources and decides which one wins, [`values`] holds the bounds of values, and
//! [`reference`] the words for users. Nothing here applies a setting.

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

/// The whole configuration. [`reference::KEYS`] says what each key means.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub detection: DetectionConfig,
    pub exempt: ExemptConfig,
    pub block: BlockConfig,
    pub firewall: FirewallConfig,
    pub log: LogConfig,
    pub metrics: MetricsConfig,
    pub bus: BusConfig,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DetectionConfig {
    pub preset: Preset,
    pub ports: Threshold,
    pub window: WindowSpan,
    pub per: Per,
    pub stealth: bool,
    pub max_sources: MaxSources,
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

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExemptConfig {
    #[serde(with = "values::networks")]
    pub networks: Vec<IpNet>,
    pub automatic: bool,
}

impl Default for ExemptConfig {
    fn default() -> Self {
        Self { networks: Vec::new(), automatic: true }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BlockConfig {
    /// False is observe mode.
    pub enabled: bool,
    /// The duration of the first, second, ... offence. The last one repeats. Never empty.
    #[serde(deserialize_with = "values::at_least_one")]
    pub durations: Vec<BlockDuration>,
    pub forget_after: Span,
    pub grace_after_unblock: Span,
    pub max_per_minute: Rate,
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

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FirewallConfig {
    pub backend: Backend,
    /// The built-in chains that jump to tcptracker's chain. Never empty.
    #[serde(deserialize_with = "values::at_least_one")]
    pub hooks: Vec<Hook>,
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

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    pub connections: bool,
    pub rate: Rate,
    pub format: LogFormat,
    pub level: LogLevel,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { connections: true, rate: Rate(100), format: LogFormat::Text, level: LogLevel::Info }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    pub listen: Listen,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BusConfig {
    pub enabled: bool,
}

impl Default for BusConfig {
    fn default() -> Self {
        Self { enabled: true }
    }
}
