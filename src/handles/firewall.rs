//! The way to the firewall's thread: what it can be asked, and what it answers.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use ipnet::IpNet;

use crate::config::Config;
use crate::types::block::{Evidence, ExemptReason};
use crate::types::event::{BackendNote, Refusal};
use crate::types::host::Host;
use crate::types::network::show_network;
use crate::types::scan::Scan;

/// Requests that may wait for the firewall's thread.
pub const QUEUE: usize = 1024;

/// What the firewall's thread is asked to do.
pub enum Command {
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
        reply: Reply<Result<(), RequestError>>,
    },
    /// Unblock by hand.
    Unblock {
        /// Whom.
        network: IpNet,
        /// Who asks.
        uid: u32,
        /// Where the answer goes.
        reply: Reply<Result<(), RequestError>>,
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
        reply: Reply<Result<Explanation, RequestError>>,
    },
    /// The host has other addresses.
    Host(Arc<Host>),
    /// Apply another configuration.
    Reconfigure {
        /// The new configuration.
        config: Box<Config>,
        /// Where the answer goes; main waits for it: what else is to be known of the change, or why the
        /// kernel does not take it.
        reply: SyncSender<Result<Option<BackendNote>, String>>,
    },
    /// Take everything down and end.
    Stop,
}

/// Where the firewall's thread puts an answer. Whoever waits for it waits without a thread.
pub type Reply<T> = async_channel::Sender<T>;

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The network is, or contains, an exempt address.
    #[error("{} is never blocked: {why}", show_network(.network))]
    Exempt { network: IpNet, why: ExemptReason },
    /// There is no such block.
    #[error("{} is not blocked", show_network(.0))]
    NotBlocked(IpNet),
    /// Nothing is known of it.
    #[error(
        "nothing is known about {}: it is not blocked, not exempt, was not unblocked recently, and has no \
         earlier offences",
        show_network(.0)
    )]
    Unknown(IpNet),
    /// The kernel did not accept it.
    #[error("{0}")]
    Kernel(String),
}

impl RequestError {
    /// The same for an event, whose request names the network.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Exempt { why, .. } => Refusal::Exempt(why.clone()),
            Self::NotBlocked(_) | Self::Unknown(_) => Refusal::NotBlocked,
            Self::Kernel(error) => Refusal::Kernel(error.clone()),
        }
    }
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
pub struct FirewallHandle(SyncSender<Command>);

impl FirewallHandle {
    /// A way to the thread that reads the other end.
    pub fn new(orders: SyncSender<Command>) -> Self {
        Self(orders)
    }

    /// Gives an order if there is room for it; false if not. Never waits.
    #[must_use]
    pub fn try_send(&self, order: Command) -> bool {
        match self.0.try_send(order) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }

    /// Gives an order, waiting for room.
    pub fn send(&self, order: Command) {
        // The thread has ended: the process is about to.
        let _ = self.0.send(order);
    }
}

/// A block, as people read it, with the evidence and what has come of it.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockExplanation {
    /// Since when, in Unix seconds.
    pub since: u64,
    /// Until when, in Unix seconds; zero: until unblocked.
    pub until: u64,
    /// Why.
    pub reason: String,
    /// The scan it is for; none for a block by hand.
    pub evidence: Option<Evidence>,
    /// When each of the evidence's ports was tried, in Unix seconds.
    pub times: Vec<f64>,
    /// Packets the kernel has dropped since; none where it does not tell.
    pub dropped: Option<u64>,
}

/// Everything that is known of an address or network.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// Whom it is about: as asked for, or the network around it that is blocked or has offended.
    pub network: IpNet,
    /// Its block.
    pub block: Option<BlockExplanation>,
    /// How often it has scanned and was blocked for that, the present block included.
    pub offences: u32,
    /// Why it is never blocked.
    pub exempt: Option<ExemptReason>,
    /// Until when it is left alone, having been let in by hand, in Unix seconds.
    pub grace_until: Option<u64>,
}
