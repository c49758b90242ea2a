//! The types of the configuration's values.
//!
//! Owns bounds and spelling. A value out of bounds cannot be constructed, so that no user of a value
//! checks it again.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};

use crate::types::{LONGEST_BLOCK, parse_network};

/// A whole number within bounds.
macro_rules! bounded_number {
    ($(#[$doc:meta])* $name:ident($inner:ty) in $least:literal..=$most:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
        #[serde(try_from = "u64")]
        pub struct $name($inner);

        impl $name {
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl TryFrom<u64> for $name {
            type Error = &'static str;

            fn try_from(number: u64) -> Result<Self, Self::Error> {
                let within = Some(number).filter(|number| ($least..=$most).contains(number));
                let converted = within.and_then(|number| number.try_into().ok());
                converted.map(Self).ok_or(concat!("a whole number from ", $least, " to ", $most))
            }
        }
    };
}

bounded_number! {
    /// The number of distinct ports that a source may try within the window. At most 64, because each
    /// source needs memory for as many ports, and a scan is certain long before.
    Threshold(usize) in 1..=64
}
bounded_number! {
    /// The number of sources with several ports that the detector remembers. It remembers three times
    /// as many with one port.
    MaxSources(usize) in 1024..=16_777_216
}
bounded_number! {
    /// The length of an IPv6 network that counts as one source. A link, and so at least one customer,
    /// has a /64 (RFC 4291, 2.5.1; RFC 6177).
    PrefixLength(u8) in 16..=128
}
bounded_number! {
    /// A number of events per second or per minute.
    Rate(u32) in 1..=100_000
}

/// A length of time, written as `1h 30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Span(Duration);

impl Span {
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl TryFrom<String> for Span {
    type Error = humantime::DurationError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        humantime::parse_duration(text.trim()).map(Self)
    }
}

/// The length of the sliding window, from 1 s to 1 day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct WindowSpan(Duration);

impl WindowSpan {
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl TryFrom<String> for WindowSpan {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let span = Span::try_from(text).ok().map(Span::get);
        let within = span.filter(|span| (1.0..=86_400.0).contains(&span.as_secs_f64()));
        within.map(Self).ok_or("a length of time from 1s to 1d, such as 60s")
    }
}

/// The length of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
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
}

impl TryFrom<String> for BlockDuration {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text == "forever" {
            return Ok(Self::Forever);
        }
        // Timeouts of kernel sets are whole seconds.
        let within = 1..=LONGEST_BLOCK.as_secs();
        let span = Span::try_from(text).ok().filter(|span| within.contains(&span.0.as_secs()));
        span.map(|span| Self::For(span.0))
            .ok_or("forever or a length of time from 1s to 100y, such as 30m, 1h or 7d")
    }
}

/// The detection rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Per {
    /// All ports that a source tries.
    Source,
    /// The ports that a source tries on one destination.
    Pair,
}

/// What happens to the existing connections of a blocked source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Established {
    /// They continue: only new connections are dropped.
    Keep,
    /// They are cut: every packet from the source is dropped.
    Cut,
}

/// How the kernel stores blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The best one that the kernel supports.
    Auto,
    /// One kernel set and one rule per address family.
    Ipset,
    /// A table of its own, without any program.
    Nftables,
    /// One rule per address.
    Iptables,
}

/// A built-in chain of the filter table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Target {
    Drop,
    /// Answers as a closed port does.
    Reject,
}

/// The level of detail of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    /// One JSON object per line.
    Json,
}

/// Reads an address and port; none for `off`.
pub fn listen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "off" => Ok(None),
        text => text.parse().map(Some).map_err(D::Error::custom),
    }
}

/// Reads a list that must not be empty.
pub fn at_least_one<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    let list = Vec::deserialize(deserializer)?;
    if list.is_empty() { Err(D::Error::custom("at least one")) } else { Ok(list) }
}

/// Reads addresses and networks; a single address has no prefix length.
pub fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| parse_network(text).map_err(D::Error::custom)).collect()
}
