//! The types of the configuration's values: each holds only what makes sense.
//!
//! Owns bounds and spelling. A value out of bounds cannot be made, so nobody downstream checks again.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize};

use crate::types::clock::HumanDuration;

/// A whole number within bounds, with its default.
macro_rules! bounded_number {
    ($(#[$doc:meta])* $name:ident($inner:ty) in $least:literal..=$most:literal, default $default:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(try_from = "u64")]
        pub struct $name($inner);

        impl $name {
            /// The number.
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
    /// Distinct ports a source may try within the window. Above 64 a scan is beyond doubt long
    /// before, and each source would cost more memory for nothing.
    Threshold(usize) in 1..=64, default 3
}
bounded_number! {
    /// Sources of several ports remembered at a time; three times as many of one port beside them.
    MaxSources(usize) in 1024..=16_777_216, default 131_072
}
bounded_number! {
    /// The length of an IPv6 network that counts as one source. /64 is what one link, so one
    /// customer at least, has (RFC 4291, 2.5.1; RFC 6177).
    PrefixLength(u8) in 16..=128, default 64
}

/// Events a minute, or a second.
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

/// A length of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(Duration);

impl Span {
    /// The length.
    pub const fn get(self) -> Duration {
        self.0
    }

    #[expect(clippy::expect_used, reason = "for the defaults, which a test goes through")]
    pub(crate) fn constant(text: &str) -> Self {
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

/// The sliding window: from a second to a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Span", into = "Span")]
pub struct WindowSpan(Span);

impl WindowSpan {
    /// The length.
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

/// How long an offence is punished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum BlockDuration {
    /// For this long.
    For(Duration),
    /// Until unblocked.
    Forever,
}

impl BlockDuration {
    /// The length; none: until unblocked.
    pub const fn get(self) -> Option<Duration> {
        match self {
            Self::For(duration) => Some(duration),
            Self::Forever => None,
        }
    }

    #[expect(clippy::expect_used, reason = "for the defaults, which a test goes through")]
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
        // The kernel counts whole seconds.
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

/// The rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// More than so many distinct ports within the window.
    Classic,
    /// Only what failed counts.
    Balanced,
}

impl Preset {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Classic => "classic",
            Self::Balanced => "balanced",
        }
    }
}

/// Whose ports are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Per {
    /// All a source tries.
    Source,
    /// All a source tries on one destination.
    Pair,
}

/// What becomes of a blocked source's connections that exist already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Established {
    /// They go on; only new ones are dropped.
    Keep,
    /// Everything from the source is dropped.
    Cut,
}

/// How the kernel holds the blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The best there is.
    Auto,
    /// A kernel set per family and one rule.
    Ipset,
    /// A rule per address.
    Iptables,
}

/// A built-in chain of the filter table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Hook {
    /// Packets to this host.
    Input,
    /// Packets through this host: containers, virtual machines, a routed network.
    Forward,
}

impl Hook {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Input, Self::Forward];

    /// The chain's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Input => "INPUT",
            Self::Forward => "FORWARD",
        }
    }
}

/// What becomes of a blocked packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Target {
    /// No answer.
    Drop,
    /// As a closed port answers.
    Reject,
}

/// How detailed the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Warn,
    Info,
    /// Also the evidence of each verdict.
    Debug,
    /// Also each step that leads to a verdict.
    Trace,
}

/// How entries look on stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// Objects for programs, one a line.
    Json,
}

/// Where the metrics are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Listen {
    /// Nowhere.
    Off,
    /// Here.
    At(SocketAddr),
}

impl Default for Listen {
    fn default() -> Self {
        // The original's port; loopback, since there is no authentication.
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

/// A list that must not be empty.
pub fn at_least_one<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    let list = Vec::deserialize(deserializer)?;
    if list.is_empty() { Err(D::Error::custom("at least one")) } else { Ok(list) }
}

/// Addresses and networks, a single address without its length.
pub mod networks {
    use super::{Deserialize, Deserializer, Error, IpNet};
    use crate::types::network::{parse_network, show_network};
    use serde::{Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        networks: &[IpNet],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        networks.iter().map(show_network).collect::<Vec<_>>().serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<IpNet>, D::Error> {
        Vec::<String>::deserialize(deserializer)?
            .iter()
            .map(|text| parse_network(text).map_err(D::Error::custom))
            .collect()
    }
}
