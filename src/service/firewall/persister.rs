//! Keeps the database in step with the ledger.
//!
//! Owns what becomes of a database that cannot be written: blocks go on in the kernel, the state says
//! what is wrong, and every few seconds everything is tried anew.

use std::sync::Arc;
use std::time::Duration;

use crate::block::ledger::Ledger;
use crate::block::store::{Found, Quarantined, Store, StoreError, StorePath};
use crate::handles::events::EventSink;
use crate::handles::health::{Component, Health};
use crate::types::block::Remembered;
use crate::types::clock::{Moment, WallClock};
use crate::types::event::{Event, Warning};

/// How long a database that failed is left alone.
const RETRY: Duration = Duration::from_secs(5);

/// What the database remembers at the start.
#[derive(Default)]
pub struct Loaded {
    pub remembered: Remembered,
    pub precedence: Precedence,
    /// Everything has to be written anew.
    pub is_outdated: bool,
}

/// Who is right where the database and the kernel differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precedence {
    /// The kernel: the database was not written to the end.
    #[default]
    Kernel,
    /// The database, but for what the last instance did in its last moment.
    Store,
    /// The database: it is of an earlier boot, since when no instance has told the kernel anything.
    MemoryAlone,
}

/// Who keeps the ledger's records.
pub struct Persister {
    /// None where nothing is to be kept.
    store_path: Option<StorePath>,
    /// None while it cannot be written.
    store: Option<Store>,
    /// Nothing is to be kept for now: nobody is blocked.
    rests: bool,
    /// When it last could not.
    failed: Moment,
    events: EventSink,
    health: Arc<Health>,
}

impl Persister {
    pub fn new(store_path: Option<StorePath>, events: EventSink, health: Arc<Health>) -> Self {
        Self { store_path, store: None, rests: false, failed: Moment::default(), events, health }
    }

    /// Leaves the database as it is until it is recalled: whoever only observes has nothing to remember.
    /// It stays open: were it closed, its log would be gone, and the flusher would miss it.
    pub fn pause(&mut self) {
        self.rests = true;
        self.health.clear(Component::Store);
    }

    /// As [`Self::rest`], where nothing was opened yet.
    pub fn start_paused(&mut self) -> Loaded {
        self.pause();
        Loaded::default()
    }

    /// Opens the database and reads what is in it.
    pub fn load(&mut self, clock: &WallClock) -> Loaded {
        self.rests = false;
        let Some(store_path) = &self.store_path else { return Loaded::default() };
        let found = store_path.load(clock);
        let precedence = match (found.is_current, found.is_of_another_boot) {
            (false, _) => Precedence::Kernel,
            (true, false) => Precedence::Store,
            (true, true) => Precedence::MemoryAlone,
        };
        let Found { remembered, store, is_outdated, set_aside, .. } = found;
        self.warn_of(set_aside, true);
        match store {
            Ok(store) => self.store = Some(store),
            Err(error) => self.give_up(&error, clock.now()),
        }
        Loaded { remembered, precedence, is_outdated }
    }

    /// Keeps what has changed in the ledger. When this returns, it survives the process, or the state
    /// says that it does not.
    pub fn save_changes(&mut self, ledger: &mut Ledger, now: Moment) {
        if let Some(store) = self.store.as_mut().filter(|_| !self.rests) {
            let mut changes = ledger.changes().peekable();
            if changes.peek().is_some()
                && let Err(error) = store.write(changes)
            {
                self.give_up(&error, now);
            }
        }
        // What could not be kept will be with everything else.
        ledger.mark_saved();
    }

    /// Keeps all there is in the ledger, and nothing else.
    pub fn save_all(&mut self, ledger: &mut Ledger, clock: &WallClock) {
        if let Some((store, store_path)) = self.store.as_mut().zip(self.store_path.as_ref()) {
            match store.write_anew(clock, ledger.records()) {
                Ok(()) => store_path.note_behind(false),
                Err(error) => self.give_up(&error, clock.now()),
            }
        }
        ledger.mark_saved();
    }

    /// Hears what the flusher has to say, looks whether the file is still there, and tries again what has
    /// failed.
    pub fn look_round(&mut self, ledger: &mut Ledger, clock: &WallClock) {
        let Some(store_path) = self.store_path.as_ref().filter(|_| !self.rests) else { return };
        if let Some(store) = &self.store {
            let failure = store_path.failure().map_or_else(|| store.is_in_place(), Err);
            if let Err(error) = failure {
                self.give_up(&error, clock.now());
            }
        } else if clock.now().since(self.failed) >= RETRY {
            self.begin_anew(ledger, clock);
        }
    }

    /// What is remembered is all there will be: looks whether it is, and writes it anew if not.
    pub fn finish(&mut self, ledger: &mut Ledger, clock: &WallClock) {
        if self.store_path.is_none() || self.rests {
            return;
        }
        if let Some(store) = &self.store
            && let Err(error) = store.is_sound()
        {
            self.give_up(&error, clock.now());
        }
        if self.store.is_none() {
            self.begin_anew(ledger, clock);
        }
    }

    /// Opens the database that could not be used, or another in its place, and keeps all there is in the
    /// ledger.
    fn begin_anew(&mut self, ledger: &mut Ledger, clock: &WallClock) {
        let Some(store_path) = &self.store_path else { return };
        let mut set_aside = None;
        let opened = store_path.open_anew(&mut set_aside);
        self.warn_of(set_aside, false);
        match opened {
            Ok(store) => {
                self.store = Some(store);
                self.save_all(ledger, clock);
            }
            Err(error) => self.give_up(&error, clock.now()),
        }
        if self.store.is_some() {
            self.health.clear(Component::Store);
        }
    }

    fn warn_of(&self, quarantined: Option<Quarantined>, at_start: bool) {
        if let Some(Quarantined { file, kept, error }) = quarantined {
            let warning = Warning::DatabaseQuarantined { file, kept, error, at_start };
            self.events.emit(Event::Warning(warning));
        }
    }

    fn give_up(&mut self, error: &StoreError, now: Moment) {
        self.store = None;
        self.failed = now;
        let Some(store_path) = &self.store_path else { return };
        store_path.note_behind(true);
        let file = store_path.file.display();
        let reason = format!("a restart would forget what is new: {file}: {error}");
        self.health.set_degraded(Component::Store, reason);
    }
}
