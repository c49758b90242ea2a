//! Keeps the database in step with the ledger.
//!
//! Owns what happens while the database cannot be written: blocks continue in the kernel, and every few
//! seconds the persister tries to write everything again. It reports failures and never returns one.

use std::path::PathBuf;
use std::time::Duration;

use crate::block::ledger::Ledger;
use crate::block::store::records::Record;
use crate::block::store::{Loaded, Opened, Quarantined, Store, StoreError, StorePath};
use crate::types::{Moment, WallClock};

/// The pause after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// Something that has happened to the database.
#[derive(Debug)]
pub enum StoreNews {
    /// From now on changes are not saved.
    Failed { file: PathBuf, error: StoreError },
    /// Everything is saved, or nothing has to be.
    Recovered,
    /// A file could not be used and was renamed.
    Quarantined {
        file: Quarantined,
        /// The blocks of the last run were in it.
        at_start: bool,
    },
}

pub struct Persister {
    /// None: nothing is saved at all.
    path: Option<StorePath>,
    /// None while the database cannot be written.
    store: Option<Store>,
    /// The service only observes: the database stays as it is.
    is_paused: bool,
    /// The last failure.
    failed: Moment,
    news: Vec<StoreNews>,
}

impl Persister {
    pub fn new(path: Option<StorePath>) -> Self {
        Self { path, store: None, is_paused: true, failed: Moment::default(), news: Vec::new() }
    }

    /// What has happened since the last call, in order.
    pub fn take_news(&mut self) -> Vec<StoreNews> {
        std::mem::take(&mut self.news)
    }

    /// Leaves the database as it is until it is loaded again. It stays open: closing it would remove its
    /// log, and the flusher would report that.
    pub fn pause(&mut self) {
        self.is_paused = true;
        self.news.push(StoreNews::Recovered);
    }

    /// Opens the database and reads everything in it.
    pub fn load(&mut self, clock: &WallClock) -> Loaded {
        self.is_paused = false;
        let Some(path) = &self.path else { return Loaded::default() };
        let Opened { loaded, store, quarantined } = path.load(clock);
        self.report_quarantined(quarantined, true);
        match store {
            Ok(store) => self.store = Some(store),
            Err(error) => self.give_up(error, clock.now()),
        }
        loaded
    }

    /// Saves these changes. When this returns, they survive the process, or the news say that they do
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
        } else if clock.now().since(self.failed) >= RETRY {
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
        let mut quarantined = None;
        let opened = path.reopen(&mut quarantined);
        self.report_quarantined(quarantined, false);
        match opened {
            Ok(store) => {
                self.store = Some(store);
                self.save_all(ledger, clock);
            }
            Err(error) => self.give_up(error, clock.now()),
        }
        if self.store.is_some() {
            self.news.push(StoreNews::Recovered);
        }
    }

    fn report_quarantined(&mut self, quarantined: Option<Quarantined>, at_start: bool) {
        self.news.extend(quarantined.map(|file| StoreNews::Quarantined { file, at_start }));
    }

    fn give_up(&mut self, error: StoreError, now: Moment) {
        self.store = None;
        self.failed = now;
        let Some(path) = &self.path else { return };
        path.mark_behind(true);
        self.news.push(StoreNews::Failed { file: path.file().to_owned(), error });
    }
}
