//! The health of the service: its state, the reasons if it is degraded, and the figures of the firewall.
//!
//! Owns one reason per component; a component sets and clears only its own. The state is `starting` until the
//! blocks and the rules are in force. Status line, D-Bus properties
//! and metrics show one snapshot, so that they agree. No value here may decide anything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::handles::EventSink;
use crate::types::{Event, Family, FamilyFigures, State, Status};

/// A component of the service that can be degraded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// Capture waits for the interface.
    Interface,
    Link,
    /// The kernel rejects blocks.
    Firewall,
    /// Rules in the kernel differ from the desired ones, or cannot be read.
    Rules,
    /// Sets in the kernel differ from the desired ones.
    Enforcement,
    /// A program does not end.
    Program,
    /// The set has no room for another block.
    Capacity,
    /// `block.max_per_minute` is reached.
    BlockRate,
    /// The kernel does not report SSH sessions.
    SshSessions,
    /// The database cannot be written.
    Store,
    /// The connection to the bus was lost.
    Bus,
    /// A thread does not respond.
    Threads,
    /// So many blocks may need more memory than the service may take.
    Memory,
}

struct Inner {
    observing: bool,
    /// What is not in force yet since the start.
    awaited: BTreeSet<Component>,
    /// The rules of each family are in force.
    intact: [bool; 2],
    degraded: BTreeMap<Component, String>,
    backend: &'static str,
    families: [FamilyFigures; 2],
}

/// The health of the service, shared by all threads. Locked for a change or a snapshot, never for a packet.
pub struct Health {
    inner: Mutex<Inner>,
    events: EventSink,
}

impl Health {
    /// A service that starts, whose back end has this name. It waits for the firewall and the rules.
    pub fn new(observing: bool, backend: &'static str, events: EventSink) -> Self {
        let families = [FamilyFigures::default(); 2];
        let awaited = [Component::Firewall, Component::Rules].into();
        let degraded = BTreeMap::new();
        let inner = Inner { observing, awaited, intact: [false; 2], degraded, backend, families };
        Self { inner: Mutex::new(inner), events }
    }

    /// Returns a snapshot.
    pub fn status(&self) -> Status {
        let inner = self.inner();
        let (state, reason) = inner.state();
        let mut families = inner.families;
        for (figures, intact) in families.iter_mut().zip(inner.intact) {
            figures.enforced = if intact { figures.enforced } else { 0 };
        }
        Status { state, reason, backend: inner.backend, families }
    }

    /// Notes that a component's part of the start is done. Returns whether the start is over.
    pub fn set_in_force(&self, component: Component) -> bool {
        self.change(|inner| inner.awaited.retain(|awaited| *awaited != component));
        self.inner().awaited.is_empty()
    }

    /// Sets whether the rules of a family are in force, as of the last check.
    pub fn set_intact(&self, family: Family, intact: bool) {
        self.inner().intact[family as usize] = intact;
    }

    /// Sets whether the service only observes.
    pub fn set_observing(&self, observing: bool) {
        self.change(|inner| inner.observing = observing);
    }

    /// Sets the name of the back end that holds the blocks.
    pub fn set_backend(&self, name: &'static str) {
        self.inner().backend = name;
    }

    /// Sets how many networks of a family are to be blocked.
    pub fn set_blocked(&self, family: Family, count: u32) {
        self.inner().families[family as usize].blocked = count;
    }

    /// Sets what the last check of the kernel found for a family: how many networks the kernel drops where the
    /// rules are in force.
    pub fn set_enforced(&self, family: Family, enforced: u32, dropped_packets: u64) {
        let figures = &mut self.inner().families[family as usize];
        (figures.enforced, figures.dropped_packets) = (enforced, dropped_packets);
    }

    /// Marks a component as degraded. Emits an event unless the reason is unchanged.
    pub fn set_degraded(&self, component: Component, reason: String) {
        self.change(|inner| drop(inner.degraded.insert(component, reason)));
    }

    /// Marks a component as working.
    pub fn clear(&self, component: Component) {
        self.change(|inner| drop(inner.degraded.remove(&component)));
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        let mut inner = self.inner();
        let before = inner.state();
        change(&mut inner);
        let after = inner.state();
        // Emitted under the lock, so that the last event is the current state. Emitting never waits.
        if before != after {
            let (state, reason) = after;
            let was_starting = before.0 == State::Starting;
            let has_started = was_starting && !matches!(state, State::Starting | State::Degraded);
            self.events.emit(Event::StateChanged { state, reason, has_started });
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn state(&self) -> (State, Option<String>) {
        if !self.awaited.is_empty() {
            let so_far = "blocks are not in force yet";
            let reasons = std::iter::once(so_far).chain(self.degraded.values().map(String::as_str));
            return (State::Starting, Some(reasons.collect::<Vec<_>>().join("; ")));
        }
        if self.degraded.is_empty() {
            let state = if self.observing { State::Observing } else { State::Enforcing };
            return (state, None);
        }
        // Interface and link may have the same reason.
        let mut all: Vec<&str> = self.degraded.values().map(String::as_str).collect();
        all.dedup();
        (State::Degraded, Some(all.join("; ")))
    }
}
