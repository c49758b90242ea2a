//! How the service is doing: one snapshot for everyone who asks, and the reasons if it is degraded.
//!
//! Owns the reasons, by the component that gives them (a component sets and clears only its own), and
//! the figures that status line, D-Bus properties and metrics show alike. The firewall thread sets the
//! figures; nothing reads them to decide anything.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::handles::events::EventSink;
use crate::types::event::Event;
use crate::types::network::Family;
use crate::types::state::State;

/// A component of the service that can be degraded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// The interface cannot be captured on yet, or is gone.
    Interface,
    /// The interface is down.
    Link,
    /// The kernel refuses blocks.
    Firewall,
    /// The kernel's rules or sets differ from what blocks need.
    Enforcement,
    /// The set is full.
    Capacity,
    /// The rate limit of blocks (`block.max_per_minute`) holds blocks back.
    BlockRate,
    /// The kernel does not report SSH sessions.
    SshSessions,
    /// The database cannot be written.
    Store,
    /// A thread makes no progress.
    Threads,
}

/// What the kernel does for one address family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FamilyFigures {
    /// Networks that are to be blocked.
    pub blocked: u32,
    /// Networks found blocked in the kernel, as of the last check.
    pub enforced: u32,
    /// Packets that the kernel has dropped since the start, as of the last check.
    pub dropped_packets: u64,
}

/// The service's condition at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The state in one word.
    pub state: State,
    /// Why it is degraded.
    pub reason: Option<String>,
    /// The back end that holds the blocks; `none` while the service only observes.
    pub backend: &'static str,
    /// IPv4 and IPv6, in the order of [`Family::ALL`].
    pub families: [FamilyFigures; 2],
}

impl Default for Status {
    fn default() -> Self {
        let families = [FamilyFigures::default(); 2];
        Self { state: State::Enforcing, reason: None, backend: "none", families }
    }
}

impl Status {
    /// Networks that are to be blocked, of both families.
    pub fn blocked(&self) -> u32 {
        self.families.iter().map(|figures| figures.blocked).sum()
    }
}

struct Inner {
    observing: bool,
    degraded: BTreeMap<Component, String>,
    backend: &'static str,
    families: [FamilyFigures; 2],
}

/// The condition of the service, shared by all threads. Locked only when something changes or somebody
/// asks, never for a packet.
pub struct Health {
    inner: Mutex<Inner>,
    events: EventSink,
}

impl Health {
    /// A service in good condition whose back end has this name.
    pub fn new(observing: bool, backend: &'static str, events: EventSink) -> Self {
        let families = [FamilyFigures::default(); 2];
        let inner = Inner { observing, degraded: BTreeMap::new(), backend, families };
        Self { inner: Mutex::new(inner), events }
    }

    /// The condition at this moment.
    pub fn status(&self) -> Status {
        let inner = self.inner();
        let (state, reason) = inner.state();
        Status { state, reason, backend: inner.backend, families: inner.families }
    }

    /// The service only observes from now on, or blocks.
    pub fn set_observing(&self, observing: bool) {
        self.change(|inner| inner.observing = observing);
    }

    /// Another back end holds the blocks.
    pub fn set_backend(&self, name: &'static str) {
        self.inner().backend = name;
    }

    /// Networks of a family that are to be blocked.
    pub fn set_blocked(&self, family: Family, count: u32) {
        self.inner().families[family as usize].blocked = count;
    }

    /// What the kernel holds and has dropped of a family, as of the last check.
    pub fn set_enforced(&self, family: Family, enforced: u32, dropped_packets: u64) {
        let figures = &mut self.inner().families[family as usize];
        (figures.enforced, figures.dropped_packets) = (enforced, dropped_packets);
    }

    /// A component is degraded. Emitted once until it is cleared or has another reason.
    pub fn set_degraded(&self, component: Component, reason: String) {
        self.change(|inner| drop(inner.degraded.insert(component, reason)));
    }

    /// A component works again.
    pub fn clear(&self, component: Component) {
        self.change(|inner| drop(inner.degraded.remove(&component)));
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        let mut inner = self.inner();
        let before = inner.state();
        change(&mut inner);
        let after = inner.state();
        // Emitted under the lock, so that the last event emitted is the state in force. Emitting never
        // waits.
        if before != after {
            let (state, reason) = after;
            self.events.emit(Event::StateChanged { state, reason });
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn state(&self) -> (State, Option<String>) {
        if self.degraded.is_empty() {
            let state = if self.observing { State::Observing } else { State::Enforcing };
            return (state, None);
        }
        // Interface and link may say the same.
        let mut all: Vec<&str> = self.degraded.values().map(String::as_str).collect();
        all.dedup();
        (State::Degraded, Some(all.join("; ")))
    }
}
