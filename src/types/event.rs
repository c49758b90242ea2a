//! What happened, told after it has happened.
//!
//! Owns the events and the way to those who pass them on: the journal and the bus. Telling never
//! waits: a full queue drops the event and counts it.

use crate::types::block::BlockCause;
use crate::types::block::SkipReason;
use crate::types::block::UnblockCause;
use crate::types::segment::Direction;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::types::scan::{Scan, Summary};
use crate::types::segment::{Port, SegmentKind};
use crate::types::state::State;

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
        kind: SegmentKind,
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
    NotBlocked {
        /// The scan.
        scan: Arc<Scan>,
        /// Why.
        why: SkipReason,
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
    Repaired {
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
