//! Blocking: one thread owns the ledger and the kernel's side of it; everyone else asks it.
//!
//! It is the only place that starts a process or speaks to netfilter. It says that something is
//! blocked, or is no longer, only after the kernel has accepted it.

mod account;
mod actor;
mod address_rules;
mod choice;
mod conntrack;
mod enforce;
mod exemptions;
mod guard;
mod healing;
mod ipset;
mod iptables;
mod keeper;
mod kernel;
mod ledger;
mod listing;
mod members;
mod mixed;
mod nftables;
mod observe;
mod reconfigure;
mod release;
mod restore;
mod rules;
mod tally;
mod verdict;

#[cfg(test)]
mod actor_tests;
#[cfg(test)]
mod enforcement_tests;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod restart_tests;
#[cfg(test)]
mod test_bench;

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use ipnet::IpNet;

pub use account::{Account, BlockAccount};
pub use actor::{Actor, Blocking};
pub use address_rules::AddressRules;
pub use choice::connect;
pub use exemptions::AskSessions;
pub use healing::{Fault, Wanted};
pub use ipset::{Element, IpsetError};
pub use iptables::{Program, RulesError};
pub use kernel::KernelSets;
pub use observe::Observer;
pub use reconfigure::NewBlocking;

use crate::detector::Scan;
use crate::host::Host;
use crate::netlink::NetlinkError;

/// Requests that may wait for the firewall's thread.
pub const QUEUE: usize = 1024;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// Both, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of a network.
    pub const fn of(network: IpNet) -> Self {
        match network {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }

    /// `NFPROTO_IPV4`, `NFPROTO_IPV6`
    pub const fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }
}

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
    #[error("there is room for {0} blocks of a family and no more; unblock others first")]
    Full(u32),
    /// The host speaks no IPv6.
    #[error("this host does not speak IPv6: there is nothing to block")]
    NoIpv6,
    /// Another backend would have no room for all that is blocked.
    #[error(
        "{blocked} are blocked, and backend {backend} has room for {room} of a family; unblock others \
         first, or leave firewall.backend as it is"
    )]
    TooManyFor {
        /// The backend.
        backend: &'static str,
        /// How many are blocked.
        blocked: u32,
        /// How many it could hold.
        room: u32,
    },
    /// Nothing is blocked here.
    #[error(
        "this instance only observes; to let it block, set block.enabled = true and start it without \
         --observe"
    )]
    Observing,
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
    fn check(&mut self, wanted: &Wanted<'_>) -> Result<Vec<Fault>, FirewallError>;

    /// Puts right what is not as it should be.
    fn mend(&mut self, wanted: &Wanted<'_>) -> Result<(), FirewallError>;

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

/// What the firewall's thread is asked to do.
pub enum Order {
    /// A scan was recognised.
    Scan {
        /// The scan.
        scan: Arc<Scan>,
        /// It was listed in the journal, so that what becomes of it is as well.
        listed: bool,
    },
    /// Block by hand.
    Block {
        /// Whom.
        network: IpNet,
        /// For how long; none: until unblocked.
        duration: Option<Duration>,
        /// Why.
        reason: String,
        /// Who asks.
        uid: u32,
        /// Where the answer goes.
        reply: Reply<Result<(), Refusal>>,
    },
    /// Unblock by hand.
    Unblock {
        /// Whom.
        network: IpNet,
        /// Who asks.
        uid: u32,
        /// Where the answer goes.
        reply: Reply<Result<(), Refusal>>,
    },
    /// List what is blocked.
    List {
        /// Where the answer goes.
        reply: Reply<Vec<Listed>>,
    },
    /// Tell all that is known of an address or network.
    Why {
        /// Of whom.
        network: IpNet,
        /// Where the answer goes.
        reply: Reply<Result<Account, Refusal>>,
    },
    /// The host has other addresses.
    Host(Arc<Host>),
    /// Go on with another configuration.
    Reconfigure {
        /// With this one.
        new: Box<NewBlocking>,
        /// Where the answer goes; main waits for it.
        reply: SyncSender<Result<(), FirewallError>>,
    },
    /// Take everything down and end.
    Stop,
}

/// Where the firewall's thread puts an answer. Whoever waits for it waits without a thread.
pub type Reply<T> = async_channel::Sender<T>;

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The network is, or contains, an exempt address.
    #[error("{network} is never blocked: {why}")]
    Exempt {
        /// As people read it.
        network: String,
        /// Which exemption.
        why: String,
    },
    /// There is no such block.
    #[error("{0} is not blocked")]
    NotBlocked(String),
    /// Nothing is known of it.
    #[error(
        "{0} is not blocked, and nothing else is known of it: it is not exempt, was not let in by hand \
         of late, and has no past offence"
    )]
    Unknown(String),
    /// The kernel did not accept it.
    #[error("{0}")]
    Kernel(String),
}

/// A block, as people read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Who.
    pub network: IpNet,
    /// Since when, in Unix seconds.
    pub since: u64,
    /// Until when, in Unix seconds; zero: until unblocked.
    pub until: u64,
    /// Which offence this is; zero if none.
    pub offences: u32,
    /// Why.
    pub reason: String,
}

/// The way to the firewall's thread.
#[derive(Clone)]
pub struct Firewall(SyncSender<Order>);

impl Firewall {
    /// A way to the thread that reads the other end.
    pub fn new(orders: SyncSender<Order>) -> Self {
        Self(orders)
    }

    /// Gives an order if there is room for it; false if not. Never waits.
    #[must_use]
    pub fn try_order(&self, order: Order) -> bool {
        match self.0.try_send(order) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }

    /// Gives an order, waiting for room.
    pub fn order(&self, order: Order) {
        // The thread has ended: the process is about to.
        let _ = self.0.send(order);
    }
}
