//! The key by which both engines count ports.
//!
//! Pure. A plain record.

use std::net::IpAddr;

use ipnet::IpNet;

/// A source, and the host whose ports are counted if the rule counts each host separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub source: IpNet,
    pub destination: Option<IpAddr>,
}
