//! Blocking: one thread owns the ledger and the kernel's side of it; everyone else asks it.
//!
//! It is the only place that starts a process or speaks to netfilter. It says that something is
//! blocked, or is no longer, only after the kernel has accepted it.

pub mod counter_totals;
pub mod ipset;
pub mod iptables;
pub mod nft_fallback;
pub mod nftables;
pub mod program;
pub mod rules;
pub mod ruleset;
pub mod select;

#[cfg(test)]
pub mod fake;

use crate::block::backend::ipset::netlink::Element;
use crate::block::backend::ipset::netlink::IpsetError;
use crate::block::backend::program::RulesError;
use crate::block::reconcile::DesiredState;
use crate::block::reconcile::Fault;
use crate::types::block::BlockFailure;
use crate::types::network::Family;
use std::time::Duration;

use ipnet::IpNet;

use crate::system::netlink::NetlinkError;

/// Why the kernel's side of a block could not be had.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// A set.
    #[error(transparent)]
    Set(#[from] IpsetError),
    /// A rule, chain or hook.
    #[error(transparent)]
    Rules(#[from] RulesError),
    /// What the kernel tells of its rules or connections.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// There is no room for another block of its family.
    #[error("{}", BlockFailure::Full(*.0))]
    Full(u32),
    #[error("{}", BlockFailure::NoIpv6)]
    NoIpv6,
    /// Another back end has no room for all blocks.
    #[error(
        "back end {backend} holds at most {capacity} blocks per address family, and there are {blocked}; \
         unblock some first, or leave firewall.backend as it is"
    )]
    TooManyFor { backend: &'static str, blocked: u32, capacity: u32 },
}

impl FirewallError {
    /// Whether there is merely no room for another block.
    pub const fn is_full(&self) -> bool {
        matches!(self, Self::Set(IpsetError::Full(_)) | Self::Full(_))
    }
}

/// The kernel's side: what can hold a block. Every operation is idempotent; what is already so is
/// success.
pub trait Backend {
    /// Its name, as users read it.
    fn name(&self) -> &'static str;

    /// Puts up everything that blocks need, and finds what an instance that did not stop in order
    /// has left behind; none if there was none.
    fn install(&mut self) -> Result<Option<Vec<Element>>, FirewallError>;

    /// Drops a network's packets for so long, or for so long from now on.
    fn block(&mut self, network: IpNet, duration: Duration) -> Result<(), FirewallError>;

    /// Drops many networks' packets, each for so long. Returns those it could not.
    fn block_all(&mut self, networks: &[(IpNet, Duration)]) -> Vec<(IpNet, FirewallError)> {
        let block = |(network, duration): &(IpNet, Duration)| {
            self.block(*network, *duration).err().map(|error| (*network, error))
        };
        networks.iter().filter_map(block).collect()
    }

    /// Lets a network in again.
    fn unblock(&mut self, network: IpNet) -> Result<(), FirewallError>;

    /// Lets many networks in again. Returns those it could not.
    fn unblock_all(&mut self, networks: &[IpNet]) -> Vec<(IpNet, FirewallError)> {
        let unblock = |network: &IpNet| self.unblock(*network).err().map(|error| (*network, error));
        networks.iter().filter_map(unblock).collect()
    }

    /// Looks for what is not as it should be, as thoroughly as it costs next to nothing; after a mend
    /// thoroughly.
    fn check(&mut self, desired: &DesiredState<'_>) -> Result<Vec<Fault>, FirewallError>;

    /// Puts right what is not as it should be.
    fn repair(&mut self, desired: &DesiredState<'_>) -> Result<(), FirewallError>;

    /// How many networks of a family are blocked in fact, as of the last check.
    fn enforced(&self, family: Family) -> u32;

    /// Packets of a family dropped since the start, as of the last check.
    fn dropped(&self, family: Family) -> u64;

    /// Packets of one blocked network the kernel has dropped since it was put where it is.
    fn dropped_from(&mut self, network: IpNet) -> Result<u64, FirewallError>;

    /// How many networks of a family it can hold.
    fn capacity(&self) -> u32;

    /// The longest block it can hold without being told again.
    fn longest(&self) -> Duration;

    /// Takes everything down that is this instance's.
    fn remove(&mut self) -> Result<(), FirewallError>;
}
