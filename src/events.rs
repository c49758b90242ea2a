//! What happened, told after it has happened.
//!
//! Owns the events and the way to those who pass them on: the journal and the bus. Telling never
//! waits: a full queue drops the event and counts it.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use ipnet::IpNet;

use crate::dbus::Task;
use crate::detector::{Scan, Summary};
use crate::metrics::Metrics;
use crate::probe::{Port, ProbeKind};
use crate::state::State;

/// Which way a probe goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To one of this host's addresses.
    Inbound,
    /// Through this host, to somebody behind it.
    Forwarded,
    /// From one of this host's addresses.
    Outbound,
}

impl Direction {
    /// All directions, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Inbound, Self::Forwarded, Self::Outbound];

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Forwarded => "forwarded",
            Self::Outbound => "outbound",
        }
    }
}

/// Why a block began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockCause {
    /// A scan was recognised.
    Scan,
    /// Somebody asked for it.
    Manual,
    /// It was found in the kernel at the start, left by an instance that did not stop in order.
    Found,
}

impl BlockCause {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scan => "scan",
            Self::Manual => "manual",
            Self::Found => "found",
        }
    }
}

/// Why a block ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnblockCause {
    /// Its time was up.
    Expired,
    /// Somebody asked for it.
    Manual,
    /// The address has become exempt.
    Exempt,
    /// There was no room for another block, and this one was nearest its end.
    Displaced,
}

impl UnblockCause {
    /// All causes, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Expired, Self::Manual, Self::Exempt, Self::Displaced];

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Manual => "manual",
            Self::Exempt => "exempt",
            Self::Displaced => "displaced",
        }
    }
}

/// Why a recognised scanner was not blocked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spared {
    /// `block.enabled` is false.
    Observing,
    /// It is, or contains, an exempt address.
    Exempt(String),
    /// It was unblocked by hand a short while ago.
    Grace {
        /// How long that still holds.
        remaining: Duration,
    },
    /// `block.max_per_minute` is reached.
    Throttled {
        /// The limit.
        limit: u32,
    },
    /// The kernel did not accept it.
    Failed(String),
}

impl fmt::Display for Spared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Observing => f.write_str("observing only (block.enabled = false)"),
            Self::Exempt(why) => write!(f, "exempt: {why}"),
            Self::Grace { remaining } => {
                write!(f, "unblocked by hand; not blocked again for {}s", remaining.as_secs())
            }
            Self::Throttled { limit } => write!(
                f,
                "more than {limit} new blocks in a minute (block.max_per_minute); \
                 the sources may be forged"
            ),
            Self::Failed(error) => write!(f, "blocking failed: {error}"),
        }
    }
}

/// Something that has happened. Whom it is told to shares it: a queue's place is taken from the start, and
/// had rather be small.
#[derive(Debug)]
pub enum Event {
    /// A new connection was tried.
    Connection {
        /// Which way.
        direction: Direction,
        /// From.
        source: IpAddr,
        /// From this port.
        source_port: Port,
        /// To.
        destination: IpAddr,
        /// To this port.
        port: Port,
        /// By which kind of probe.
        kind: ProbeKind,
    },
    /// More connections, or scans, than `log.rate` allows to list.
    NotListed {
        /// Of what.
        what: &'static str,
        /// How many were left out.
        count: u64,
        /// Over how long.
        span: Duration,
    },
    /// A source scans.
    Scan(Arc<Scan>),
    /// A scan has fallen silent, or has gone on for a minute: what it was in all.
    ScanSummary(Summary),
    /// A scanner was left alone.
    Spared {
        /// The scan.
        scan: Arc<Scan>,
        /// Why.
        why: Spared,
    },
    /// The kernel drops this network's packets from now on.
    Blocked {
        /// Who.
        network: IpNet,
        /// Until when, in Unix seconds; zero: until unblocked.
        until: u64,
        /// For how long; none: until unblocked.
        duration: Option<Duration>,
        /// Why, in words.
        reason: String,
        /// Why.
        cause: BlockCause,
        /// The ports that were tried; none unless it is for a scan.
        ports: Vec<Port>,
        /// Which offence this is; zero if none.
        offences: u32,
        /// The user who asked for it.
        uid: Option<u32>,
    },
    /// The service has started, and blocks again whom it blocked when it last ran.
    Restored {
        /// How many.
        blocks: usize,
        /// How many more there would be if their time had not been up meanwhile.
        expired: usize,
    },
    /// The kernel lets this network in again.
    Unblocked {
        /// Who.
        network: IpNet,
        /// Why.
        cause: UnblockCause,
        /// The user who asked for it.
        uid: Option<u32>,
    },
    /// A change somebody asked for on the bus was refused.
    Refused {
        /// What was asked for.
        request: String,
        /// Why not.
        why: String,
        /// The user who asked.
        uid: u32,
    },
    /// The configuration was read again, and holds.
    Reloaded {
        /// What is another than before, a key and its values each.
        changes: Vec<String>,
        /// What else is to be known of it, a sentence each.
        notes: Vec<String>,
        /// The user who asked for it; none: a signal.
        uid: Option<u32>,
    },
    /// What others had removed or changed of the kernel's side is as it should be again.
    Mended {
        /// What was found, in words.
        found: String,
    },
    /// The service's state is another.
    StateChanged {
        /// The new state.
        state: State,
        /// Why, unless all is well.
        reason: Option<String>,
    },
    /// Something an operator should know, in a sentence.
    Warning(String),
}

/// Where events are told. Cheap to clone; every thread has one.
#[derive(Clone)]
pub struct Reporter {
    journal: SyncSender<Arc<Event>>,
    bus: Option<async_channel::Sender<Task>>,
    metrics: Arc<Metrics>,
}

impl Reporter {
    /// A reporter to the journal and, where there is one, the bus.
    pub fn new(
        journal: SyncSender<Arc<Event>>,
        bus: Option<async_channel::Sender<Task>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { journal, bus, metrics }
    }

    /// Tells an event. Never waits.
    pub fn tell(&self, event: Event) {
        self.metrics.count(&event);
        let event = Arc::new(event);
        if let Some(bus) = self.bus.as_ref().filter(|_| event.is_signal())
            && bus.try_send(Task::Tell(Arc::clone(&event))).is_err()
        {
            self.metrics.events_lost_on_bus.inc();
        }
        match self.journal.try_send(event) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.metrics.events_lost_on_journal.inc();
            }
        }
    }

    /// The metrics that are counted along.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }
}

impl Event {
    /// Whether the bus has a signal for it.
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
