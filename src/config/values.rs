//! The types of the configuration's values.
//!
//! Owns bounds and spelling. A value out of bounds cannot be constructed, so that no user of a value
//! checks it again.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize};

use crate::types::HumanDuration;

/// A whole number within bounds, with its default.
macro_rules! bounded_number {
    ($(#[$doc:meta])* $name:ident($inner:ty) in $least:literal..=$most:literal, default $default:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(try_from = "u64")]
        pub struct $name($inner);

        impl $name {
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self($default)
            }
        }

        impl TryFrom<u64> for $name {
            type Error = &'static str;

            fn try_from(number: u64) -> Result<Self, Self::Error> {
                const OUT_OF_BOUNDS: &str =
                    concat!("a whole number from ", $least, " to ", $most);
                if !($least..=$most).contains(&number) {
                    return Err(OUT_OF_BOUNDS);
                }
                <$inner>::try_from(number).map(Self).map_err(|_| OUT_OF_BOUNDS)
            }
        }
    };
}

bounded_number! {
    /// The number of distinct ports that a source may try within the window. At most 64, because each
    /// source needs memory for as many ports, and a scan is certain long before.
    Threshold(usize) in 1..=64, default 3
}
bounded_number! {
    /// The number of sources with several ports that the detector remembers. It remembers three times
    /// as many with one port.
    MaxSources(usize) in 1024..=16_777_216, default 131_072
}
bounded_number! {
    /// The length of an IPv6 network that counts as one source. A link, and so at least one customer,
    /// has a /64 (RFC 4291, 2.5.1; RFC 6177).
    PrefixLength(u8) in 16..=128, default 64
}

/// A number of events per second or per minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64")]
pub struct Rate(pub u32);

impl TryFrom<u64> for Rate {
    type Error = &'static str;

    fn try_from(number: u64) -> Result<Self, Self::Error> {
        match u32::try_from(number) {
            Ok(rate @ 1..=100_000) => Ok(Self(rate)),
            _ => Err("a whole number from 1 to 100000"),
        }
    }
}

/// A length of time, written as `1h 30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(Duration);

impl Span {
    pub const fn get(self) -> Duration {
        self.0
    }

    #[expect(clippy::expect_used, reason = "only for defaults, which a test constructs")]
    pub fn constant(text: &str) -> Self {
        Self::try_from(text.to_owned()).expect("a default is valid")
    }
}

impl TryFrom<String> for Span {
    type Error = humantime::DurationError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        humantime::parse_duration(text.trim()).map(Self)
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        HumanDuration(span.0).to_string()
    }
}

/// The length of the sliding window, from 1 s to 1 day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Span", into = "Span")]
pub struct WindowSpan(Span);

impl WindowSpan {
    pub const fn get(self) -> Duration {
        self.0.get()
    }
}

impl Default for WindowSpan {
    fn default() -> Self {
        Self(Span(Duration::from_secs(60)))
    }
}

impl TryFrom<Span> for WindowSpan {
    type Error = &'static str;

    fn try_from(span: Span) -> Result<Self, Self::Error> {
        if (Duration::from_secs(1)..=Duration::from_secs(86_400)).contains(&span.0) {
            Ok(Self(span))
        } else {
            Err("a length of time from 1s to 1d")
        }
    }
}

impl From<WindowSpan> for Span {
    fn from(window: WindowSpan) -> Self {
        window.0
    }
}

/// The length of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum BlockDuration {
    For(Duration),
    /// Until a user unblocks the source.
    Forever,
}

impl BlockDuration {
    /// Returns the length, or none for `forever`.
    pub const fn get(self) -> Option<Duration> {
        match self {
            Self::For(duration) => Some(duration),
            Self::Forever => None,
        }
    }

    #[expect(clippy::expect_used, reason = "only for defaults, which a test constructs")]
    pub fn constant(text: &str) -> Self {
        Self::try_from(text.to_owned()).expect("a default is valid")
    }
}

impl TryFrom<String> for BlockDuration {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text == "forever" {
            return Ok(Self::Forever);
        }
        let duration = Span::try_from(text).map_err(|error| error.to_string())?.get();
        // Timeouts of kernel sets are whole seconds.
        if duration < Duration::from_secs(1) {
            return Err("at least 1s".to_owned());
        }
        Ok(Self::For(duration))
    }
}

impl From<BlockDuration> for String {
    fn from(duration: BlockDuration) -> Self {
        match duration {
            BlockDuration::For(duration) => HumanDuration(duration).to_string(),
            BlockDuration::Forever => "forever".to_owned(),
        }
    }
}

/// The detection rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// Counts all distinct ports within the window.
    Classic,
    /// Counts only connections that failed.
    Balanced,
}

impl Preset {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Classic => "classic",
            Self::Balanced => "balanced",
        }
    }
}

/// What the classic rule counts together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Per {
    /// All ports that a source tries.
    Source,
    /// The ports that a source tries on one destination.
    Pair,
}

/// What happens to the existing connections of a blocked source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Established {
    /// They continue: only new connections are dropped.
    Keep,
    /// They are cut: every packet from the source is dropped.
    Cut,
}

/// How the kernel stores blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The best one that the kernel supports.
    Auto,
    /// One kernel set and one rule per address family.
    Ipset,
    /// One rule per address.
    Iptables,
}

/// A built-in chain of the filter table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Hook {
    /// Packets to this host.
    Input,
    /// Packets that this host forwards to containers, virtual machines or a routed network.
    Forward,
}

impl Hook {
    pub const ALL: [Self; 2] = [Self::Input, Self::Forward];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Input => "INPUT",
            Self::Forward => "FORWARD",
        }
    }
}

/// What the kernel does with a blocked packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Target {
    Drop,
    /// Answers as a closed port does.
    Reject,
}

/// The level of detail of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Warn,
    Info,
    /// Adds the evidence of each verdict.
    Debug,
    /// Adds each step that leads to a verdict.
    Trace,
}

/// The format of log entries on stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    /// One JSON object per line.
    Json,
}

/// The address on which the service serves metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Listen {
    Off,
    At(SocketAddr),
}

impl Default for Listen {
    fn default() -> Self {
        // Loopback, because there is no authentication.
        Self::At(SocketAddr::from(([127, 0, 0, 1], 8081)))
    }
}

impl TryFrom<String> for Listen {
    type Error = std::net::AddrParseError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text == "off" { Ok(Self::Off) } else { text.parse().map(Self::At) }
    }
}

impl From<Listen> for String {
    fn from(listen: Listen) -> Self {
        listen.to_string()
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::At(address) => address.fmt(f),
        }
    }
}

/// Reads a list that must not be empty.
pub fn at_least_one<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    let list = Vec::deserialize(deserializer)?;
    if list.is_empty() { Err(D::Error::custom("at least one")) } else { Ok(list) }
}

/// Reads and writes addresses and networks; a single address has no prefix length.
pub mod networks {
    use super::{Deserialize, Deserializer, Error, IpNet};
    use crate::types::{parse_network, show_network};
    use serde::{Serialize, Serializer};

    pub fn serialize<S: Serializer>(networks: &[IpNet], serializer: S) -> Result<S::Ok, S::Error> {
        networks.iter().map(show_network).collect::<Vec<_>>().serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
        Vec::<String>::deserialize(deserializer)?
            .iter()
            .map(|text| parse_network(text).map_err(D::Error::custom))
            .collect()
    }
}
