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
    /// The interface is gone.
    Interface,
    /// The interface is down.
    Link,
    /// The kernel refuses blocks.
    Firewall,
    /// The spoofing guard holds blocks back.
    SpoofingGuard,
}

/// The state, shared by all threads. Taken only when something changes or somebody asks, never for
/// a packet.
pub struct StateBoard {
    well: State,
    reasons: Mutex<BTreeMap<Part, String>>,
    reporter: Reporter,
}

impl StateBoard {
    /// A board on which all is well.
    pub fn new(observing: bool, reporter: Reporter) -> Self {
        let well = if observing { State::Observing } else { State::Enforcing };
        reporter.metrics().set_state(well);
        Self { well, reasons: Mutex::default(), reporter }
    }

    /// The state and, where degraded, why.
    pub fn current(&self) -> (State, Option<String>) {
        self.judge(&self.reasons())
    }

    /// A part is unwell. Told once until it is well again or has another reason.
    pub fn raise(&self, part: Part, reason: String) {
        self.change(|reasons| reasons.insert(part, reason));
    }

    /// A part is well again.
    pub fn clear(&self, part: Part) {
        self.change(|reasons| reasons.remove(&part));
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<Part, String>) -> Option<String>) {
        let mut reasons = self.reasons();
        let before = self.judge(&reasons);
        change(&mut reasons);
        let after = self.judge(&reasons);
        // Told before anybody else can change it, so that what was told last is so. Telling never waits.
        if before != after {
            let (state, reason) = after;
            self.reporter.metrics().set_state(state);
            self.reporter.tell(Event::StateChanged { state, reason });
        }
    }

    fn judge(&self, reasons: &BTreeMap<Part, String>) -> (State, Option<String>) {
        if reasons.is_empty() {
            (self.well, None)
        } else {
            let all: Vec<&str> = reasons.values().map(String::as_str).collect();
            (State::Degraded, Some(all.join("; ")))
        }
    }

    fn reasons(&self) -> MutexGuard<'_, BTreeMap<Part, String>> {
        self.reasons.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
