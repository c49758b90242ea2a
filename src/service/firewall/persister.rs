//! Keeps the database in step with the ledger.
//!
//! Owns what becomes of a database that cannot be written: blocks go on in the kernel, the state says
//! what is wrong, and every few seconds everything is tried anew.

use std::sync::Arc;
use std::time::Duration;

use crate::block::ledger::Ledger;
use crate::block::store::{Found, Memory, MemoryError, Place};
use crate::handles::events::Reporter;
use crate::handles::health::{Part, StateBoard};
use crate::types::block::Remembered;
use crate::types::clock::{Moment, WallClock};
use crate::types::event::Event;

/// How long a database that failed is left alone.
const RETRY: Duration = Duration::from_secs(5);

/// What the database remembers at the start.
#[derive(Default)]
pub struct Recalled {
    pub remembered: Remembered,
    pub right: Right,
    /// Everything has to be written anew.
    pub is_outdated: bool,
}

/// Who is right where the database and the kernel differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Right {
    /// The kernel: the database was not written to the end.
    #[default]
    Kernel,
    /// The database, but for what the last instance did in its last moment.
    Memory,
    /// The database: it is of an earlier boot, since when no instance has told the kernel anything.
    MemoryAlone,
}

/// Who keeps the ledger's records.
pub struct Keeper {
    /// None where nothing is to be kept.
    place: Option<Place>,
    /// None while it cannot be written.
    memory: Option<Memory>,
    /// Nothing is to be kept for now: nobody is blocked.
    rests: bool,
    /// When it last could not.
    failed: Moment,
    reporter: Reporter,
    board: Arc<StateBoard>,
}

impl Keeper {
    pub fn new(place: Option<Place>, reporter: Reporter, board: Arc<StateBoard>) -> Self {
        Self { place, memory: None, rests: false, failed: Moment::default(), reporter, board }
    }

    /// Leaves the database as it is until it is recalled: whoever only observes has nothing to remember.
    /// It stays open: were it closed, its log would be gone, and the flusher would miss it.
    pub fn rest(&mut self) {
        self.rests = true;
        self.board.clear(Part::Store);
    }

    /// As [`Self::rest`], where nothing was opened yet.
    pub fn rest_from_the_start(&mut self) -> Recalled {
        self.rest();
        Recalled::default()
    }

    /// Opens the database and reads what is in it.
    pub fn recall(&mut self, clock: &WallClock) -> Recalled {
        self.rests = false;
        let Some(place) = &self.place else { return Recalled::default() };
        let found = place.recall(clock);
        let right = match (found.is_current, found.is_of_another_boot) {
            (false, _) => Right::Kernel,
            (true, false) => Right::Memory,
            (true, true) => Right::MemoryAlone,
        };
        let Found { remembered, memory, is_outdated, set_aside, .. } = found;
        if let Some(sentence) = set_aside {
            let instead = "starting with what the kernel still holds";
            self.reporter.tell(Event::Warning(format!("{sentence}; {instead}")));
        }
        match memory {
            Ok(memory) => self.memory = Some(memory),
            Err(error) => self.give_up(&error, clock.now()),
        }
        Recalled { remembered, right, is_outdated }
    }

    /// Keeps what has changed in the ledger. When this returns, it survives the process, or the state
    /// says that it does not.
    pub fn keep(&mut self, ledger: &mut Ledger, now: Moment) {
        if let Some(memory) = self.memory.as_mut().filter(|_| !self.rests) {
            let mut changes = ledger.changes().peekable();
            if changes.peek().is_some()
                && let Err(error) = memory.write(changes)
            {
                self.give_up(&error, now);
            }
        }
        // What could not be kept will be with everything else.
        ledger.settle();
    }

    /// Keeps all there is in the ledger, and nothing else.
    pub fn keep_all(&mut self, ledger: &mut Ledger, clock: &WallClock) {
        if let Some((memory, place)) = self.memory.as_mut().zip(self.place.as_ref()) {
            match memory.write_anew(clock, ledger.records()) {
                Ok(()) => place.note_behind(false),
                Err(error) => self.give_up(&error, clock.now()),
            }
        }
        ledger.settle();
    }

    /// Hears what the flusher has to say, looks whether the file is still there, and tries again what has
    /// failed.
    pub fn look_round(&mut self, ledger: &mut Ledger, clock: &WallClock) {
        let Some(place) = self.place.as_ref().filter(|_| !self.rests) else { return };
        if let Some(memory) = &self.memory {
            let failure = place.failure().map_or_else(|| memory.is_in_place(), Err);
            if let Err(error) = failure {
                self.give_up(&error, clock.now());
            }
        } else if clock.now().since(self.failed) >= RETRY {
            self.begin_anew(ledger, clock);
        }
    }

    /// What is remembered is all there will be: looks whether it is, and writes it anew if not.
    pub fn finish(&mut self, ledger: &mut Ledger, clock: &WallClock) {
        if self.place.is_none() || self.rests {
            return;
        }
        if let Some(memory) = &self.memory
            && let Err(error) = memory.is_sound()
        {
            self.give_up(&error, clock.now());
        }
        if self.memory.is_none() {
            self.begin_anew(ledger, clock);
        }
    }

    /// Opens the database that could not be used, or another in its place, and keeps all there is in the
    /// ledger.
    fn begin_anew(&mut self, ledger: &mut Ledger, clock: &WallClock) {
        let Some(place) = &self.place else { return };
        let mut set_aside = None;
        let opened = place.open_anew(&mut set_aside);
        if let Some(sentence) = set_aside {
            self.reporter.tell(Event::Warning(format!("{sentence}; a new one takes its place")));
        }
        match opened {
            Ok(memory) => {
                self.memory = Some(memory);
                self.keep_all(ledger, clock);
            }
            Err(error) => self.give_up(&error, clock.now()),
        }
        if self.memory.is_some() {
            self.board.clear(Part::Store);
        }
    }

    fn give_up(&mut self, error: &MemoryError, now: Moment) {
        self.memory = None;
        self.failed = now;
        let Some(place) = &self.place else { return };
        place.note_behind(true);
        let file = place.file.display();
        let reason = format!("a restart would forget what is new: {file}: {error}");
        self.board.raise(Part::Store, reason);
    }
}
