//! The service's state: one word for everyone who asks, and the reasons when all is not well.
//!
//! Owns the reasons, by the part of the service that gives them. A part raises and lowers only its
//! own.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::events::{Event, Reporter};

/// How the service is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Scanners are blocked.
    Enforcing,
    /// Scanners are reported only, as configured.
    Observing,
    /// Something does not work as it should.
    Degraded,
}

impl State {
    /// All states, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Enforcing, Self::Observing, Self::Degraded];

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enforcing => "enforcing",
            Self::Observing => "observing",
            Self::Degraded => "degraded",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A part of the service that can be unwell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The interface cannot be captured on yet, or is gone.
    Interface,
    /// The interface is down.
    Link,
    /// The kernel refuses blocks.
    Firewall,
    /// What blocks are enforced with is not as it should be in the kernel.
    Enforcement,
    /// There is no room for more blocks.
    Capacity,
    /// The spoofing guard holds blocks back.
    SpoofingGuard,
    /// The kernel does not tell who has an SSH session open.
    SshSessions,
    /// The database cannot be written.
    Memory,
    /// A thread makes no progress.
    Threads,
}

/// What the state follows from.
struct Reasons {
    /// The state where all is well.
    well: State,
    unwell: BTreeMap<Part, String>,
}

/// The state, shared by all threads. Taken only when something changes or somebody asks, never for
/// a packet.
pub struct StateBoard {
    reasons: Mutex<Reasons>,
    reporter: Reporter,
}

impl StateBoard {
    /// A board on which all is well.
    pub fn new(observing: bool, reporter: Reporter) -> Self {
        let well = well(observing);
        reporter.metrics().set_state(well);
        Self { reasons: Mutex::new(Reasons { well, unwell: BTreeMap::new() }), reporter }
    }

    /// From now on the service only observes, or does more.
    pub fn set_observing(&self, observing: bool) {
        self.change(|reasons| reasons.well = well(observing));
    }

    /// The state and, where degraded, why.
    pub fn current(&self) -> (State, Option<String>) {
        self.reasons().judge()
    }

    /// A part is unwell. Told once until it is well again or has another reason.
    pub fn raise(&self, part: Part, reason: String) {
        self.change(|reasons| drop(reasons.unwell.insert(part, reason)));
    }

    /// A part is well again.
    pub fn clear(&self, part: Part) {
        self.change(|reasons| drop(reasons.unwell.remove(&part)));
    }

    fn change(&self, change: impl FnOnce(&mut Reasons)) {
        let mut reasons = self.reasons();
        let before = reasons.judge();
        change(&mut reasons);
        let after = reasons.judge();
        // Told before anybody else can change it, so that what was told last is so. Telling never waits.
        if before != after {
            let (state, reason) = after;
            self.reporter.metrics().set_state(state);
            self.reporter.tell(Event::StateChanged { state, reason });
        }
    }

    fn reasons(&self) -> MutexGuard<'_, Reasons> {
        self.reasons.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reasons {
    fn judge(&self) -> (State, Option<String>) {
        if self.unwell.is_empty() {
            (self.well, None)
        } else {
            // Interface and link may say the same.
            let mut all: Vec<&str> = self.unwell.values().map(String::as_str).collect();
            all.dedup();
            (State::Degraded, Some(all.join("; ")))
        }
    }
}

const fn well(observing: bool) -> State {
    if observing { State::Observing } else { State::Enforcing }
}
