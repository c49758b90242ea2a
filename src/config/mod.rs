//! The configuration: every key with its type.
//!
//! [`layers`] reads the sources and decides which one wins, [`values`] holds the bounds of values, and
//! [`reference`] the defaults and the words for users. Nothing here applies a setting.

pub mod layers;
pub mod reference;
pub mod values;

use ipnet::IpNet;
use serde::Deserialize;

use crate::types::Port;

pub use layers::{ConfigError, Effective, Origin, Sources};
pub use values::{
    Backend, BlockDuration, Established, Hook, Listen, LogFormat, LogLevel, MaxSources, Per,
    PrefixLength, Preset, Rate, Span, Target, Threshold, WindowSpan,
};

/// The whole configuration. [`reference::KEYS`] has the meaning and the default of each key.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub detection: DetectionConfig,
    pub exempt: ExemptConfig,
    pub block: BlockConfig,
    pub firewall: FirewallConfig,
    pub log: LogConfig,
    pub metrics: MetricsConfig,
    pub bus: BusConfig,
}

impl Default for Config {
    fn default() -> Self {
        Effective::default().into_config()
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetectionConfig {
    pub preset: Preset,
    pub ports: Threshold,
    pub window: WindowSpan,
    pub per: Per,
    pub stealth: bool,
    pub trap_ports: Vec<Port>,
    pub max_sources: MaxSources,
    pub ipv6_prefix: PrefixLength,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExemptConfig {
    #[serde(deserialize_with = "values::networks")]
    pub networks: Vec<IpNet>,
    pub automatic: bool,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
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

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirewallConfig {
    pub backend: Backend,
    /// The built-in chains that jump to tcptracker's chain. Never empty.
    #[serde(deserialize_with = "values::at_least_one")]
    pub hooks: Vec<Hook>,
    pub target: Target,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    pub connections: bool,
    pub rate: Rate,
    pub format: LogFormat,
    pub level: LogLevel,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsConfig {
    pub listen: Listen,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BusConfig {
    pub enabled: bool,
}
