//! Hashes of addresses and ports.
//!
//! Pure. Keyed anew in each process: nobody outside can choose sources that collide. They are handed to the
//! hasher in as few pieces as they fit in, which is most of what hashing costs; and what is known of one host
//! is mixed with its ports.

use std::cell::Cell;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use crate::detect::balanced::connections::Flow;
use crate::types::segment::Port;

const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Of what kind a hash is.
const PAIR: u64 = 1 << 32;
const SWEEP: u64 = 2 << 32;
const HOST: u64 = 3 << 32;
const SOURCE: u64 = 4 << 32;

/// The keys.
pub struct Hashes {
    keys: RandomState,
    /// The hash of nobody, who stands for this host; and of the host asked about last, which most often is the
    /// next one too.
    nobody: u64,
    host: Cell<(IpAddr, u64)>,
}

impl Hashes {
    pub fn new() -> Self {
        let (keys, none) = (RandomState::new(), (NOBODY, 0));
        let hashes = Self { keys, nobody: 0, host: Cell::new(none) };
        Self { nobody: hashes.of(NOBODY, NOBODY, HOST), ..hashes }
    }

    /// Of a connection: the same from both ends.
    pub fn of_flow(&self, flow: &Flow) -> u64 {
        let client = (flow.client, flow.client_port.0);
        let server = (flow.server, flow.port.0);
        let (one, other) = if client < server { (client, server) } else { (server, client) };
        self.of(one.0, other.0, u64::from(one.1) << 16 | u64::from(other.1))
    }

    /// Of a source and a host.
    pub fn of_pair(&self, source: &IpNet, host: IpAddr) -> u64 {
        self.of(source.addr(), host, PAIR | u64::from(source.prefix_len()))
    }

    /// Of what has this hash, and one of its ports or hosts: nobody who does not know the one can tell which
    /// of the others share a place (the mixing is MurmurHash3's, `fmix64`).
    pub fn with(hash: u64, which: u32) -> u64 {
        let mut mixed = hash ^ u64::from(which).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ mixed >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed = (mixed ^ mixed >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        mixed ^ mixed >> 33
    }

    /// Of a source and a port it tries on several hosts.
    pub fn of_sweep(&self, source: &IpNet, port: Port) -> u64 {
        let rest = u64::from(port.0) << 8 | u64::from(source.prefix_len());
        self.of(source.addr(), NOBODY, SWEEP | rest)
    }

    /// Of a port of a host.
    pub fn of_port(&self, host: IpAddr, port: Port) -> u64 {
        Self::with(self.of_host(host), port.0.into())
    }

    /// Of a host.
    pub fn of_host(&self, host: IpAddr) -> u64 {
        if host == NOBODY {
            return self.nobody;
        }
        if self.host.get().0 != host {
            self.host.set((host, self.of(host, NOBODY, HOST)));
        }
        self.host.get().1
    }

    /// Of a source, whatever it tries.
    pub fn of_source(&self, source: IpAddr) -> u64 {
        self.of(source, NOBODY, SOURCE)
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
