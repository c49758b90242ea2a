//! Events: the common vocabulary of journal, D-Bus signals and counters.
//!
//! Owns values only. The readers of events make the text for people.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::types::{
    BlockCause, BlockFailure, Direction, ExemptReason, Port, Scan, SkipReason, State, Summary,
    UnblockCause,
};

/// An event, emitted after the fact: a block when the kernel has accepted it. Readers share it as `Arc`, so
/// that the preallocated slots of their queues stay small.
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
    /// More connections, scans or summaries than `log.rate` allows.
    Suppressed {
        what: Suppressed,
        count: u64,
        /// The time in which they occurred.
        span: Duration,
    },
    /// A source scans ports.
    Scan(Arc<Scan>),
    /// The totals of a scan that has ended or has lasted for a minute.
    ScanSummary(Summary),
    /// A scanner was not blocked.
    NotBlocked { scan: Arc<Scan>, why: SkipReason },
    /// A scanner is blocked since an earlier scan.
    AlreadyBlocked { source: IpNet },
    /// The kernel blocks a network from now on.
    Blocked {
        network: IpNet,
        /// Unix seconds; 0: until unblocked.
        until: u64,
        /// None: until unblocked.
        duration: Option<Duration>,
        reason: String,
        cause: BlockCause,
        /// The ports of the scan; empty for a manual block.
        ports: Vec<Port>,
        /// The number of the offence; 0 for a manual block.
        offences: u32,
        /// The user that requested it.
        uid: Option<u32>,
    },
    /// The service has restored the blocks of its previous run.
    Restored {
        blocks: usize,
        /// Blocks that expired while the service was stopped.
        expired: usize,
    },
    /// The kernel no longer blocks a network.
    Unblocked {
        network: IpNet,
        cause: UnblockCause,
        /// The user that requested it.
        uid: Option<u32>,
    },
    /// A user's request was refused.
    Refused { request: Request, why: Refusal, uid: u32 },
    Reloaded {
        /// The changed keys, each with both values.
        changes: Vec<String>,
        notes: Vec<ReloadNote>,
        /// The user that requested it. None: a signal did.
        uid: Option<u32>,
    },
    /// The configuration has mistakes. The previous one stays in force.
    ReloadFailed {
        /// One mistake per line.
        error: String,
        /// The user that requested it. None: a signal did.
        uid: Option<u32>,
    },
    /// Rules or set members that another program had changed were repaired.
    Repaired {
        /// The faults, in words.
        found: String,
    },
    StateChanged {
        state: State,
        /// Why it is degraded, or what it still waits for.
        reason: Option<String>,
        /// The start is over, which has its own entry in the journal.
        has_started: bool,
    },
    /// No capture was open for this long. It is open now.
    CaptureReopened { gap: Duration },
    /// A message for the search for a fault, at `log.level = "debug"` or `"trace"`.
    Debug { is_trace: bool, text: String },
    /// Something an operator should know.
    Warning(Warning),
}

/// What `log.rate` limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suppressed {
    Connections,
    Scans,
    Summaries,
}

/// What a user requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Block(IpNet),
    Unblock(IpNet),
    Reload,
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Why the user may not make the change, in words.
    NotAuthorized(String),
    Exempt(ExemptReason),
    NotBlocked,
    /// The kernel did not accept it.
    Failed(BlockFailure),
}

/// A note about a reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReloadNote {
    /// The new rule cannot use what the detector knew about sources.
    SourcesReset,
    /// The key takes effect at the next start.
    AtNextStart(&'static str),
    Backend(BackendNote),
}

/// Why the back end with one rule per address holds the blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendNote {
    /// Why sets are not available.
    pub error: String,
    /// The limit of networks per family.
    pub capacity: u32,
}

/// A condition that an administrator should know. Each kind has its own `MESSAGE_ID`.
#[derive(Debug)]
pub enum Warning {
    /// A process that is not tcptracker owns the lock socket.
    LockHeldByOther {
        socket: String,
        uid: Option<u32>,
    },
    /// `metrics.listen` cannot be served.
    MetricsUnavailable {
        address: SocketAddr,
        error: String,
    },
    /// The host does not have the address of `metrics.listen` yet.
    MetricsAddressMissing {
        address: IpAddr,
    },
    /// A file that may set ports of sshd cannot be read.
    SshConfigUnreadable {
        /// The file and the error.
        file: String,
    },
    /// Capture does not see all replies to probes.
    RepliesMissing,
    RepliesVisible,
    Backend(BackendNote),
    /// The service only observes from now on.
    BlocksSuspended {
        count: usize,
    },
    /// Another program restored ended blocks to the kernel. They were removed.
    StaleBlocksRemoved {
        count: usize,
    },
    /// The kernel did not accept some blocks of the previous run.
    RestoreIncomplete {
        count: usize,
        error: String,
    },
    /// A database could not be used and was moved to another name.
    DatabaseQuarantined {
        file: PathBuf,
        kept: PathBuf,
        error: String,
        /// The service has just started, and knows only the blocks in the kernel.
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
