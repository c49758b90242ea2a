//! The back ends: what makes the kernel drop the packets of blocked networks.
//!
//! Owns all access to the rules and sets of netfilter, and all processes that the service starts. Must not
//! decide what is blocked or for how long, and must not report success before the kernel does.
//!
//! Two threads share the work. What each block changes is a [`Backend`] in the firewall thread, and takes one
//! netlink message. The rules, which need programs, are a [`rulebook::RuleBook`] in the rules thread.

pub mod activity;
pub mod counter_totals;
pub mod ipset;
pub mod iptables;
pub mod nft_fallback;
pub mod nftables;
pub mod program;
pub mod rulebook;
pub mod rules;
pub mod rules_handle;
pub mod ruleset;
pub mod select;

#[cfg(test)]
pub mod fake;

use std::time::Duration;

use ipnet::IpNet;

use crate::block::backend::ipset::netlink::{Element, IpsetError};
use crate::block::backend::program::RulesError;
use crate::block::reconcile::{DesiredState, Fault};
use crate::system::netlink::NetlinkError;
use crate::types::{BlockFailure, Family};

/// The reason why the kernel does not enforce a block as requested.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    #[error(transparent)]
    Set(#[from] IpsetError),
    #[error(transparent)]
    Rules(#[from] RulesError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error("{}", BlockFailure::Full(*.0))]
    Full(u32),
    #[error("{}", BlockFailure::NoIpv6)]
    NoIpv6,
    #[error(
        "cannot switch to firewall.backend = \"{backend}\": {blocked} networks of a family are blocked \
         and it holds {room}; unblock some first, or keep the current back end"
    )]
    TooManyFor { backend: &'static str, blocked: u32, room: u32 },
    /// The rules thread does not answer, or has refused all of several requests.
    #[error("{0}")]
    NoAnswer(String),
    #[error(
        "cannot remove rules of other programs from chain tcptracker: {error}; remove them: {command}"
    )]
    Occupied { error: String, command: String },
    #[error(
        "cannot remove kernel set {name}: rules of other programs use it; remove them: {commands}",
        commands = .commands.join("; ")
    )]
    SetInUse { name: String, commands: Vec<String> },
    #[error("cannot remove the firewall rules: {error}; remove them: {commands}")]
    RulesStay { error: String, commands: String },
}

impl FirewallError {
    /// Whether the only problem is that there is no room for another block.
    pub const fn is_full(&self) -> bool {
        matches!(self, Self::Set(IpsetError::Full(_)) | Self::Full(_))
    }

    /// Whether the next attempt may succeed without a change by an administrator.
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Rules(error) => error.is_transient(),
            Self::Set(IpsetError::InUse(_))
            | Self::NoAnswer(_)
            | Self::Netlink(_)
            | Self::Occupied { .. } => true,
            Self::Set(_)
            | Self::Full(_)
            | Self::NoIpv6
            | Self::TooManyFor { .. }
            | Self::SetInUse { .. }
            | Self::RulesStay { .. } => false,
        }
    }
}

/// Networks that the kernel did not block or unblock.
pub type Refused = Vec<(IpNet, FirewallError)>;

/// Blocks networks one by one, to see which of them the kernel refuses.
fn block_each<B: Backend + ?Sized>(backend: &mut B, networks: &[(IpNet, Duration)]) -> Refused {
    let block = |(network, duration): &(IpNet, Duration)| {
        backend.block(*network, *duration).err().map(|error| (*network, error))
    };
    networks.iter().filter_map(block).collect()
}

/// What holds the blocked networks, whose packets the kernel drops where the rules are in force. Every
/// operation is idempotent.
pub trait Backend {
    /// The name in the configuration, D-Bus and the journal.
    fn name(&self) -> &'static str;

    /// Installs what holds the networks. Returns the blocks that a crashed instance has left, or `None` if it
    /// has left nothing.
    fn install(&mut self) -> Result<Option<Vec<Element>>, FirewallError>;

    /// Drops a network's packets, for this time from now.
    fn block(&mut self, network: IpNet, duration: Duration) -> Result<(), FirewallError>;

    /// Drops many networks' packets. Returns the networks that could not be blocked.
    fn block_all(&mut self, networks: &[(IpNet, Duration)]) -> Refused {
        block_each(self, networks)
    }

    /// Accepts a network's packets again.
    fn unblock(&mut self, network: IpNet) -> Result<(), FirewallError>;

    /// Accepts many networks' packets again. Returns the networks that could not be unblocked.
    fn unblock_all(&mut self, networks: &[IpNet]) -> Refused {
        let unblock = |network: &IpNet| self.unblock(*network).err().map(|error| (*network, error));
        networks.iter().filter_map(unblock).collect()
    }

    /// Finds what is wrong. Called twice a second, so most calls make only a cheap check; the first call
    /// after a repair makes a thorough one.
    fn check(&mut self, desired: &DesiredState<'_>) -> Result<Vec<Fault>, FirewallError>;

    /// Corrects everything that is wrong.
    fn repair(&mut self, desired: &DesiredState<'_>) -> Result<(), FirewallError>;

    /// How many networks of a family the kernel holds, as of the last check.
    fn held(&self, family: Family) -> u32;

    /// The packets of a blocked network that the kernel has dropped since it holds the block.
    fn dropped_from(&mut self, network: IpNet) -> Result<u64, FirewallError>;

    /// Whether the rules thread holds the networks, as rules.
    fn needs_rules(&self) -> bool {
        false
    }

    /// The networks of a family that the back end can hold.
    fn capacity(&self) -> u32;

    /// The longest time that the kernel can hold a block without a new request.
    fn longest(&self) -> Duration;

    /// Makes the rules match nothing, if that takes no program.
    fn clear(&mut self) -> Result<(), FirewallError>;

    /// Removes everything that belongs to this instance, whose rules are gone.
    fn remove(&mut self) -> Result<(), FirewallError>;
}
