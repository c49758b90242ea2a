//! Hashes of addresses and ports.
//!
//! Pure. Keyed anew in each process: nobody outside can choose sources that collide. They are handed to the
//! hasher in as few pieces as they fit in, which is most of what hashing costs.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::pending::Flow;
use crate::probe::Port;

const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// The keys.
pub(super) struct Hashes(RandomState);

impl Hashes {
    pub(super) fn new() -> Self {
        Self(RandomState::new())
    }

    /// Of a connection: the same from both ends.
    pub(super) fn of_flow(&self, flow: &Flow) -> u64 {
        let client = (flow.client, flow.client_port.0);
        let server = (flow.server, flow.port.0);
        let (one, other) = if client < server { (client, server) } else { (server, client) };
        self.of(one.0, other.0, u64::from(one.1) << 16 | u64::from(other.1))
    }

    /// Of a source and a host.
    pub(super) fn of_pair(&self, source: &IpNet, host: IpAddr) -> u64 {
        self.of(source.addr(), host, 1 << 32 | u64::from(source.prefix_len()))
    }

    /// Of what has this hash, and one of its ports or hosts.
    pub(super) fn with(hash: u64, which: u32) -> u64 {
        hash ^ u64::from(which).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// Of a source and a port it tries on several hosts.
    pub(super) fn of_sweep(&self, source: &IpNet, port: Port) -> u64 {
        let rest = u64::from(port.0) << 8 | u64::from(source.prefix_len());
        self.of(source.addr(), NOBODY, 2 << 32 | rest)
    }

    /// Of a port of a host.
    pub(super) fn of_port(&self, host: IpAddr, port: Port) -> u64 {
        self.of(host, NOBODY, 3 << 32 | u64::from(port.0))
    }

    /// Of a host.
    pub(super) fn of_host(&self, host: IpAddr) -> u64 {
        self.of(host, NOBODY, 4 << 32)
    }

    fn of(&self, one: IpAddr, other: IpAddr, rest: u64) -> u64 {
        let mut hasher = self.0.build_hasher();
        match (one, other) {
            (IpAddr::V4(one), IpAddr::V4(other)) => {
                hasher.write_u64(u64::from(one.to_bits()) << 32 | u64::from(other.to_bits()));
            }
            (one, other) => {
                for address in [one, other] {
                    hasher.write_u128(match address {
                        IpAddr::V4(address) => address.to_bits().into(),
                        IpAddr::V6(address) => address.to_bits(),
                    });
                }
            }
        }
        hasher.write_u64(rest);
        hasher.finish()
    }
}
