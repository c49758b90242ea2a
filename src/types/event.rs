//! What has happened: the one vocabulary of the journal, the signals on D-Bus and the counters.
//!
//! An event is emitted after the fact: a block once the kernel has accepted it. Events carry values;
//! readers make the text.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::types::block::{BlockCause, ExemptReason, SkipReason, UnblockCause};
use crate::types::scan::{Scan, Summary};
use crate::types::segment::{Direction, Port};
use crate::types::state::State;

/// Something that has happened. Readers share it as `Arc`, so that the preallocated slots of their queues
/// stay small.
#[derive(Debug)]
pub enum Event {
    /// A new connection attempt.
    Connection {
        direction: Direction,
        source: IpAddr,
        source_port: Port,
        destination: IpAddr,
        port: Port,
    },
    /// More connections, scans or summaries than `log.rate` allows to list.
    Suppressed {
        what: Suppressed,
        count: u64,
        /// The time in which they came.
        span: Duration,
    },
    /// A source scans.
    Scan(Arc<Scan>),
    /// A scan has ended, or has gone on for a minute: its totals.
    ScanSummary(Summary),
    /// A scanner was not blocked.
    NotBlocked { scan: Arc<Scan>, why: SkipReason },
    /// A scanner is blocked since an earlier scan.
    AlreadyBlocked { source: IpNet },
    /// The kernel drops this network's packets from now on.
    Blocked {
        network: IpNet,
        /// Unix seconds; zero: until unblocked.
        until: u64,
        /// None: until unblocked.
        duration: Option<Duration>,
        reason: String,
        cause: BlockCause,
        /// The ports of the scan; empty for a manual block.
        ports: Vec<Port>,
        /// Which offence this is; zero: none.
        offences: u32,
        /// The user who asked for it.
        uid: Option<u32>,
    },
    /// The service has started and has restored the blocks of its last run.
    Restored {
        blocks: usize,
        /// Blocks that expired while the service was stopped.
        expired: usize,
    },
    /// The kernel no longer drops this network's packets.
    Unblocked {
        network: IpNet,
        cause: UnblockCause,
        /// The user who asked for it.
        uid: Option<u32>,
    },
    /// A user's request was refused.
    Refused { request: Request, why: Refusal, uid: u32 },
    /// The configuration was reloaded and is in force.
    Reloaded {
        /// A changed key with both values each.
        changes: Vec<String>,
        notes: Vec<ReloadNote>,
        /// The user who asked for it; none: a signal.
        uid: Option<u32>,
    },
    /// The configuration could not be reloaded; the running one stays in force.
    ReloadFailed {
        /// A problem per line.
        error: String,
        /// The user who asked for it; none: a signal.
        uid: Option<u32>,
    },
    /// Rules or set members that other programs had changed are as they should be again.
    Repaired {
        /// What was found, in words.
        found: String,
    },
    /// The state of the service has changed.
    StateChanged {
        state: State,
        /// Why it is degraded.
        reason: Option<String>,
    },
    /// Something an operator should know.
    Warning(Warning),
}

/// What `log.rate` keeps out of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suppressed {
    Connections,
    Scans,
    Summaries,
}

/// What a user asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Block(IpNet),
    Unblock(IpNet),
    Reload,
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The user may not do this, in words.
    NotAuthorized(String),
    Exempt(ExemptReason),
    NotBlocked,
    /// The kernel did not accept it: its error.
    Kernel(String),
}

/// What else is to be known of a reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReloadNote {
    /// What the detector knew of sources means nothing under the new rule.
    SourcesReset,
    /// This key takes effect at the next start.
    AtNextStart(&'static str),
    /// The back end that was asked for is not available.
    Backend(BackendNote),
}

/// Why another back end holds the blocks than one might expect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendNote {
    /// Why the kernel cannot do better.
    pub error: String,
    /// How many networks of a family the back end holds at most.
    pub capacity: u32,
}

/// Something an operator should know; each kind has its own `MESSAGE_ID`.
#[derive(Debug)]
pub enum Warning {
    /// A process that is not tcptracker holds the lock's socket.
    LockHeldByOther { socket: String, uid: Option<u32> },
    /// `metrics.listen` cannot be served.
    MetricsUnavailable { address: SocketAddr, error: String },
    /// `metrics.listen` names an address that the host does not have yet.
    MetricsAddressMissing { address: IpAddr },
    /// A file that may name sshd's ports cannot be read.
    SshConfigUnreadable {
        /// The file and the error.
        file: String,
    },
    /// Capture does not see the replies to probes, or not all.
    RepliesMissing,
    /// Capture sees the replies to probes again.
    RepliesVisible,
    /// The back end that was asked for is not available.
    Backend(BackendNote),
    /// The service only observes from now on.
    BlocksSuspended { count: usize },
    /// Another program restored blocks to the kernel that had ended; they were removed.
    StaleBlocksRemoved { count: usize },
    /// The kernel did not take back some blocks of the last run.
    RestoreIncomplete { count: usize, error: String },
    /// A database could not be used and was moved out of the way.
    DatabaseQuarantined {
        file: PathBuf,
        kept: PathBuf,
        error: String,
        /// The service has just started, and knows only the blocks that the kernel still holds.
        at_start: bool,
    },
}

impl Event {
    /// Whether D-Bus has a signal for it.
    pub const fn is_signal(&self) -> bool {
        matches!(
            self,
            Self::Scan(_)
                | Self::Blocked { .. }
                | Self::Unblocked { .. }
                | Self::StateChanged { .. }
        )
    }
}
