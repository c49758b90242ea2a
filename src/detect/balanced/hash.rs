//! Hashes of addresses and ports.
//!
//! Pure. Owns the key, which is random in each process, so that nothing outside can construct collisions. The
//! number of writes to the hasher is most of the cost of a hash, so addresses are packed into as few writes
//! as possible.

use std::cell::Cell;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use crate::detect::balanced::connections::Flow;
use crate::types::Port;

const UNSPECIFIED: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// The kind of a hash.
const PAIR: u64 = 1 << 32;
const SWEEP: u64 = 2 << 32;
const HOST: u64 = 3 << 32;
const SOURCE: u64 = 4 << 32;

/// The keyed hash functions.
pub struct Hashes {
    keys: RandomState,
    /// The hash of the unspecified address, which stands for this host.
    own_host: u64,
    /// The host of the last call and its hash. The next call usually is about the same host.
    host: Cell<(IpAddr, u64)>,
}

impl Hashes {
    pub fn new() -> Self {
        let (keys, none) = (RandomState::new(), (UNSPECIFIED, 0));
        let hashes = Self { keys, own_host: 0, host: Cell::new(none) };
        Self { own_host: hashes.of(UNSPECIFIED, UNSPECIFIED, HOST), ..hashes }
    }

    /// The hash of a connection, which is the same from both ends.
    pub fn of_flow(&self, flow: &Flow) -> u64 {
        let client = (flow.client, flow.client_port.0);
        let server = (flow.server, flow.port.0);
        let (one, other) = if client < server { (client, server) } else { (server, client) };
        self.of(one.0, other.0, u64::from(one.1) << 16 | u64::from(other.1))
    }

    /// The hash of a source and a host.
    pub fn of_pair(&self, source: &IpNet, host: IpAddr) -> u64 {
        self.of(source.addr(), host, PAIR | u64::from(source.prefix_len()))
    }

    /// A hash combined with a port or a host. Collisions stay unpredictable, because the hash is secret. (The
    /// mixing is `fmix64` of MurmurHash3.)
    pub fn with(hash: u64, which: u32) -> u64 {
        let mut mixed = hash ^ u64::from(which).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ mixed >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed = (mixed ^ mixed >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        mixed ^ mixed >> 33
    }

    /// The hash of a source and a port that it tries on several hosts.
    pub fn of_sweep(&self, source: &IpNet, port: Port) -> u64 {
        let rest = u64::from(port.0) << 8 | u64::from(source.prefix_len());
        self.of(source.addr(), UNSPECIFIED, SWEEP | rest)
    }

    /// The hash of a port of a host.
    pub fn of_port(&self, host: IpAddr, port: Port) -> u64 {
        Self::with(self.of_host(host), port.0.into())
    }

    /// The hash of a host.
    pub fn of_host(&self, host: IpAddr) -> u64 {
        if host == UNSPECIFIED {
            return self.own_host;
        }
        if self.host.get().0 != host {
            self.host.set((host, self.of(host, UNSPECIFIED, HOST)));
        }
        self.host.get().1
    }

    /// The hash of a source.
    pub fn of_source(&self, source: IpAddr) -> u64 {
        self.of(source, UNSPECIFIED, SOURCE)
    }

    fn of(&self, one: IpAddr, other: IpAddr, rest: u64) -> u64 {
        let mut hasher = self.keys.build_hasher();
        match (one, other) {
            (IpAddr::V4(one), IpAddr::V4(other)) => {
                let both = u64::from(one.to_bits()) << 32 | u64::from(other.to_bits());
                hasher.write_u128(u128::from(both) << 64 | u128::from(rest));
            }
            (one, other) => {
                for address in [one, other] {
                    hasher.write_u128(match address {
                        IpAddr::V4(address) => address.to_bits().into(),
                        IpAddr::V6(address) => address.to_bits(),
                    });
                }
                hasher.write_u64(rest);
            }
        }
        hasher.finish()
    }
}
