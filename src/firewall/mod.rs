//! Blocking: one thread owns the ledger and the kernel's side of it; everyone else asks it.
//!
//! It is the only place that starts a process or speaks to netfilter. It says that something is
//! blocked, or is no longer, only after the kernel has accepted it.

mod actor;
mod guard;
mod ipset;
mod kernel;
mod ledger;
mod observe;
mod rules;
mod verdict;

#[cfg(test)]
mod actor_tests;
#[cfg(test)]
mod fake;

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use ipnet::IpNet;

pub use actor::{Actor, Blocking};
pub use ipset::{Element, IpsetError};
pub use kernel::KernelSets;
pub use observe::Observer;
pub use rules::RulesError;

use crate::detector::Scan;
use crate::host::Host;

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
    /// The host speaks no IPv6.
    #[error("this host does not speak IPv6: there is nothing to block")]
    NoIpv6,
    /// Nothing is blocked here.
    #[error("this instance only observes; set block.enabled = true to let it block")]
    Observing,
}

/// The kernel's side: what can hold a block. Every operation is idempotent; what is already so is
/// success.
pub trait Backend {
    /// Its name, as users read it.
    fn name(&self) -> &'static str;

    /// Puts up everything that blocks need, and finds what an instance that did not stop in order
    /// has left behind.
    fn install(&mut self) -> Result<Vec<Element>, FirewallError>;

    /// Drops a network's packets for so long, or for so long from now on.
    fn block(&mut self, network: IpNet, duration: Duration) -> Result<(), FirewallError>;

    /// Lets a network in again.
    fn unblock(&mut self, network: IpNet) -> Result<(), FirewallError>;

    /// How many networks of a family are blocked in fact.
    fn enforced(&mut self, family: Family) -> Result<u32, FirewallError>;

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
    /// The host has other addresses.
    Host(Arc<Host>),
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
