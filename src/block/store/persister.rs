//! Keeps the database in step with the ledger.
//!
//! Owns what happens while the database cannot be written: blocks continue in the kernel, and every few
//! seconds the persister tries to write everything again. It reports failures and never returns one.

use std::time::Duration;

use crate::block::ledger::Ledger;
use crate::block::store::records::Record;
use crate::block::store::{Loaded, Store, StoreError, StorePath};
use crate::types::{Moment, WallClock, Warning};

/// The pause after a failure.
const RETRY: Duration = Duration::from_secs(5);

pub struct Persister {
    /// None: nothing is saved at all.
    path: Option<StorePath>,
    /// None while the database cannot be written.
    store: Option<Store>,
    /// The service only observes: the database stays as it is.
    is_paused: bool,
    /// Why changes are not saved, and since when.
    failure: Option<(StoreError, Moment)>,
    /// Files that could not be used and were renamed.
    warnings: Vec<Warning>,
}

impl Persister {
    pub fn new(path: Option<StorePath>) -> Self {
        Self { path, store: None, is_paused: true, failure: None, warnings: Vec::new() }
    }

    /// Why changes are not saved.
    pub fn failure(&self) -> Option<String> {
        let (path, (error, _)) = self.path.as_ref().zip(self.failure.as_ref())?;
        Some(format!("{}: {error}", path.file().display()))
    }

    /// Returns the warnings since the last call.
    pub fn take_warnings(&mut self) -> Vec<Warning> {
        std::mem::take(&mut self.warnings)
    }

    /// Leaves the database as it is until it is loaded again. It stays open: closing it would remove its
    /// log, and the flusher would report that.
    pub fn pause(&mut self) {
        self.is_paused = true;
        self.failure = None;
    }

    /// Opens the database and reads everything in it.
    pub fn load(&mut self, clock: &WallClock) -> Loaded {
        self.is_paused = false;
        let Some(path) = &self.path else { return Loaded::default() };
        let (loaded, store) = path.load(clock, &mut self.warnings);
        match store {
            Ok(store) => self.store = Some(store),
            Err(error) => self.give_up(error, clock.now()),
        }
        loaded
    }

    /// Saves these changes. When this returns, they survive the process, or [`Self::failure`] says why
    /// not.
    pub fn save<'a>(&mut self, records: impl IntoIterator<Item = Record<'a>>, now: Moment) {
        // What cannot be saved now is saved later, with everything else.
        let Some(store) = self.store.as_mut().filter(|_| !self.is_paused) else { return };
        let mut records = records.into_iter().peekable();
        if records.peek().is_some()
            && let Err(error) = store.write(records)
        {
            self.give_up(error, now);
        }
    }

    /// Replaces the content of the database by that of the ledger.
    pub fn save_all(&mut self, ledger: &Ledger, clock: &WallClock) {
        if let Some((store, path)) = self.store.as_mut().zip(self.path.as_ref()) {
            match store.replace(clock, ledger.records()) {
                Ok(()) => path.mark_behind(false),
                Err(error) => self.give_up(error, clock.now()),
            }
        }
    }

    /// Checks for a failure of the flusher and for a removed file, and tries again after a failure.
    pub fn maintain(&mut self, ledger: &Ledger, clock: &WallClock) {
        let Some(path) = self.path.as_ref().filter(|_| !self.is_paused) else { return };
        if let Some(store) = &self.store {
            let result = path.failure().map_or_else(|| store.check_in_place(), Err);
            if let Err(error) = result {
                self.give_up(error, clock.now());
            }
        } else if self.failure.as_ref().is_none_or(|(_, at)| clock.now().since(*at) >= RETRY) {
            self.reopen(ledger, clock);
        }
    }

    /// Makes sure that the next instance finds everything in the database.
    pub fn finish(&mut self, ledger: &Ledger, clock: &WallClock) {
        if self.path.is_none() || self.is_paused {
            return;
        }
        if let Some(store) = &self.store
            && let Err(error) = store.check()
        {
            self.give_up(error, clock.now());
        }
        if self.store.is_none() {
            self.reopen(ledger, clock);
        }
    }

    /// Opens the database, or a new one in its place, and writes all of the ledger.
    fn reopen(&mut self, ledger: &Ledger, clock: &WallClock) {
        let Some(path) = &self.path else { return };
        match path.reopen(&mut self.warnings) {
            Ok(store) => {
                self.store = Some(store);
                self.failure = None;
                self.save_all(ledger, clock);
            }
            Err(error) => self.give_up(error, clock.now()),
        }
    }

    fn give_up(&mut self, error: StoreError, now: Moment) {
        self.store = None;
        self.failure = Some((error, now));
        if let Some(path) = &self.path {
            path.mark_behind(true);
        }
    }
}
