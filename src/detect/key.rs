//! What the detectors count together.

use std::net::IpAddr;

use ipnet::IpNet;

/// Whose ports are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub source: IpNet,
    pub destination: Option<IpAddr>,
}
