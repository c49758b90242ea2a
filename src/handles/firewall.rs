//! The way to the firewall thread: its commands and its answers.
//!
//! Holds values only; the thread decides.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use ipnet::IpNet;

use crate::config::Config;
use crate::types::{
    BackendNote, BlockFailure, Evidence, ExemptReason, Host, Pending, Refusal, Scan, SshSessions,
    show_network,
};

/// Commands that may wait for the firewall thread.
pub const QUEUE: usize = 1024;

pub enum Command {
    /// The detector has recognised a scan.
    Scan {
        scan: Arc<Scan>,
        /// The journal lists the scan, so it also lists that the source is not blocked.
        listed: bool,
    },
    /// A user blocks a network.
    Block {
        network: IpNet,
        /// None: until unblocked.
        duration: Option<Duration>,
        reason: String,
        uid: u32,
        reply: Reply<Result<(), RequestError>>,
    },
    /// A user unblocks a network.
    Unblock {
        network: IpNet,
        uid: u32,
        reply: Reply<Result<(), RequestError>>,
    },
    List {
        reply: Reply<Vec<Listed>>,
    },
    Why {
        network: IpNet,
        reply: Reply<Result<Explanation, RequestError>>,
    },
    /// Passed on to the detector, which answers.
    Pending {
        network: IpNet,
        reply: Reply<Pending>,
    },
    /// The addresses of the host have changed.
    Host(Arc<Host>),
    /// The SSH sessions of the host have changed.
    Sessions(Arc<SshSessions>),
    /// Applies another configuration. Main waits for the reply: a note on the back end, or why the kernel
    /// does not accept the configuration.
    Reconfigure {
        config: Box<Config>,
        reply: SyncSender<Result<Option<BackendNote>, String>>,
    },
    /// The rules of the configuration that is being applied are in force, or why they are not.
    RulesInstalled(Result<(), String>),
    /// Another program has changed the table of nf_tables: compares it with what it should be, now.
    Look,
    /// Removes everything from the kernel and ends the thread.
    Stop,
}

/// Where the firewall thread puts an answer. A caller on the bus waits for it without a thread.
pub type Reply<T> = async_channel::Sender<T>;

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The network is, contains or lies within something exempt.
    #[error("{} is never blocked: {why}", show_network(.network))]
    Exempt { network: IpNet, why: ExemptReason },
    #[error("{} is not blocked", show_network(.0))]
    NotBlocked(IpNet),
    #[error(
        "nothing is known about {}: it is not blocked, not exempt, was not unblocked recently, and has no \
         earlier offences",
        show_network(.0)
    )]
    Unknown(IpNet),
    #[error(transparent)]
    Failed(#[from] BlockFailure),
}

impl RequestError {
    /// The reason for an event, whose request names the network already.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Exempt { why, .. } => Refusal::Exempt(why.clone()),
            Self::NotBlocked(_) | Self::Unknown(_) => Refusal::NotBlocked,
            Self::Failed(why) => Refusal::Failed(why.clone()),
        }
    }
}

/// A block in the list. Times are Unix seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub network: IpNet,
    pub since: u64,
    /// Zero: until unblocked.
    pub until: u64,
    /// Which offence this is; zero: none.
    pub offences: u32,
    pub reason: String,
}

/// The way to the firewall thread. A failure to send means that the thread has ended, and the process is
/// about to end; or, for `try_send`, that there is no room.
pub type FirewallHandle = SyncSender<Command>;

/// A block with its evidence and its effect. Times are Unix seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockExplanation {
    pub since: u64,
    /// Zero: until unblocked.
    pub until: u64,
    pub reason: String,
    /// None for a block that no scan has caused.
    pub evidence: Option<Evidence>,
    /// When the source tried each port of the evidence.
    pub times: Vec<f64>,
    /// Packets that the kernel has dropped; none if it does not tell.
    pub dropped: Option<u64>,
}

/// Everything that is known about an address or network.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// As in the question, or the network around it that is blocked or has offended.
    pub network: IpNet,
    pub block: Option<BlockExplanation>,
    /// How often it was blocked for a scan, the present block included.
    pub offences: u32,
    /// Why it is never blocked.
    pub exempt: Option<ExemptReason>,
    /// Until when it is not blocked for a scan because a user unblocked it, in Unix seconds.
    pub grace_until: Option<u64>,
}
