//! The store: blocks, offences and grace periods that must outlive the process.
//!
//! Owns the database file, and what happens while it cannot be written. It decides nothing about blocks, and
//! it never keeps the service from running, whatever is wrong with the file.

pub mod database;
pub mod flusher;
pub mod quarantine;
pub mod records;
pub mod timeline;

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Duration;

use rusqlite::{ErrorCode, ffi};

use crate::block::ledger::Ledger;
use crate::block::store::database::{Content, Database};
use crate::block::store::quarantine::{make_room, quarantine};
use crate::block::store::records::{Record, Remembered};
use crate::block::store::timeline::Timeline;
use crate::types::{IfName, Moment, WallClock, Warning};

/// The file's name within the state directory.
const FILE: &str = "tcptracker.db";

/// An empty file next to the database: some changes are missing there.
const BEHIND: &str = "-behind";

/// The pause after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// Why blocks are not saved, or cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot create its directory: {0}")]
    Directory(std::io::Error),
    #[error("the disk is full; free some space")]
    Full,
    #[error("not writable: the file or its directory is read-only, or belongs to another user")]
    ReadOnly,
    #[error("cannot open it: the file or its directory is read-only, or belongs to another user")]
    Unopenable,
    #[error("another program has locked the file")]
    Locked,
    /// SQLite's log needs shared memory, which some file systems do not have.
    #[error("the file system does not support a write-ahead log; use a local one")]
    NoLog,
    #[error("the file was removed")]
    Removed,
    #[error("{} is not a regular file", .0.display())]
    NoFile(PathBuf),
    #[error("reading it takes too long")]
    Slow,
    /// The content is not what was written.
    #[error("damaged database: {0}")]
    Damaged(String),
    #[error("not a tcptracker database")]
    Foreign,
    #[error("unsupported database version {0}; upgrade tcptracker")]
    Newer(i32),
    #[error("{0}; cannot rename it: {1}")]
    InTheWay(Box<StoreError>, std::io::Error),
    #[error("cannot rename an earlier copy: {0}")]
    Copy(std::io::Error),
    #[error("cannot flush the file to the disk: {0}")]
    Flush(std::io::Error),
    /// Any other error of SQLite.
    #[error("{0}")]
    Sqlite(rusqlite::Error),
}

impl StoreError {
    /// Whether a new file would solve it.
    const fn is_about_the_content(&self) -> bool {
        matches!(
            self,
            Self::NoFile(_) | Self::Slow | Self::Damaged(_) | Self::Foreign | Self::Newer(_)
        )
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        let rusqlite::Error::SqliteFailure(ffi::Error { code, extended_code }, _) = &error else {
            // A value whose type is not the one that the service writes.
            return Self::Damaged(error.to_string());
        };
        match code {
            // Unknown: a table is missing, or has other columns.
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown => {
                Self::Damaged(error.to_string())
            }
            // SHMSIZE: the file with the log's index could not grow.
            ErrorCode::DiskFull => Self::Full,
            _ if *extended_code == ffi::SQLITE_IOERR_SHMSIZE => Self::Full,
            ErrorCode::ReadOnly => Self::ReadOnly,
            ErrorCode::CannotOpen | ErrorCode::PermissionDenied => Self::Unopenable,
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Self::Locked,
            ErrorCode::OperationInterrupted => Self::Slow,
            _ => Self::Sqlite(error),
        }
    }
}

/// The database file of an instance: in the directory that the service manager assigned, or in the default
/// one.
pub fn file_of(interface: &IfName, state_directory: Option<OsString>) -> PathBuf {
    let default = || Path::new("/var/lib/tcptracker").join(interface.as_str());
    state_directory.map_or_else(default, PathBuf::from).join(FILE)
}

/// Returns how many blocks a database holds. Zero if it cannot be read.
pub fn blocks_in(file: &Path) -> u64 {
    let is_file = file.symlink_metadata().is_ok_and(|data| data.is_file());
    let count = is_file.then(|| Database::open_to_read(file)?.count_blocks());
    count.and_then(Result::ok).unwrap_or(0)
}

/// The content of the database at the start, and how far to trust it.
#[derive(Default)]
pub struct Loaded {
    /// On the timeline of the present boot.
    pub remembered: Remembered,
    pub precedence: Precedence,
    /// The whole database has to be written again: it lacks changes, is empty, or is of another boot.
    pub is_outdated: bool,
}

/// What is right if the database and the kernel differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precedence {
    /// The kernel: the last changes are not in the database.
    #[default]
    Kernel,
    /// The database, except for what the last instance did in its last moment.
    Store,
    /// The database alone: it is of an earlier boot, and no instance has told this kernel anything yet.
    StoreAlone,
}

/// The database, kept in step with the ledger. It reports failures and never returns one: while the database
/// cannot be written, blocks continue in the kernel, and every few seconds the store tries to write
/// everything again.
pub struct Store {
    file: PathBuf,
    /// With device and number of the opened file. None while it cannot be written.
    database: Option<(Database, Option<(u64, u64)>)>,
    /// The service only observes: the database stays as it is.
    is_paused: bool,
    /// Why changes are not saved, and since when.
    failure: Option<(StoreError, Moment)>,
    warnings: Vec<Warning>,
    /// Tells the flusher that something was written.
    written: SyncSender<()>,
    /// What the flusher could not do.
    not_flushed: Receiver<StoreError>,
    /// Tells the flusher that the file is open for writing.
    in_use: Arc<AtomicBool>,
}

impl Store {
    /// Why changes are not saved.
    pub fn failure(&self) -> Option<String> {
        let (error, _) = self.failure.as_ref()?;
        Some(format!("{}: {error}", self.file.display()))
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

    /// Opens the database to write to, and reads what can be read even if that fails.
    pub fn load(&mut self, clock: &WallClock) -> Loaded {
        self.is_paused = false;
        let present = Timeline::new(boot(), clock);
        let opened = self.open_or_quarantine(true, |file| {
            let database = Database::open(file)?;
            let content = database.load(&present)?;
            Ok((database, content))
        });
        let (mut database, content) = match opened {
            Ok((database, content)) => (Ok(database), content),
            // It may still be readable.
            Err(error) => {
                let read = Database::open_to_read(&self.file).and_then(|file| file.load(&present));
                (Err(error), read.unwrap_or_default())
            }
        };
        let Content { mut remembered, timeline: written_on, wrong } = content;
        if wrong > 0 {
            let kept = match &database {
                Ok(database) => self.keep_copy(database).map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            let file = self.file.clone();
            self.warnings.push(Warning::DatabaseRowsLeftOut { file, count: wrong, kept });
        }
        let is_of_another_boot =
            written_on.as_ref().is_some_and(|line| line.is_of_another_boot_than(&present));
        let is_same_boot = written_on.is_some_and(|line| line.convert(&mut remembered, &present));
        if is_same_boot {
            // Also shows that the file is writable.
            database =
                database.and_then(|database| database.set_timeline(&present).map(|()| database));
        }
        // A file that is not writable now may have been so for some time.
        let is_current = database.is_ok() && !beside(&self.file, BEHIND).exists();
        match database {
            Ok(database) => self.use_database(database),
            Err(error) => self.give_up(error, clock.now()),
        }
        let precedence = match (is_current, is_of_another_boot) {
            (false, _) => Precedence::Kernel,
            (true, false) => Precedence::Store,
            (true, true) => Precedence::StoreAlone,
        };
        let is_outdated = !is_same_boot || !is_current || wrong > 0;
        Loaded { remembered, precedence, is_outdated }
    }

    /// Saves these changes, all or none. When this returns, they survive the process, or [`Self::failure`]
    /// says why not.
    pub fn save<'a>(&mut self, records: impl IntoIterator<Item = Record<'a>>, now: Moment) {
        // What cannot be saved now is saved later, with everything else.
        let Some((database, _)) = self.database.as_mut().filter(|_| !self.is_paused) else {
            return;
        };
        let mut records = records.into_iter().peekable();
        if records.peek().is_some() {
            let result = database.write(records);
            self.is_written(result, now);
        }
    }

    /// Replaces the content of the database by that of the ledger.
    pub fn save_all(&mut self, ledger: &Ledger, clock: &WallClock) {
        let Some((database, _)) = &mut self.database else { return };
        let result = database.replace(&Timeline::new(boot(), clock), ledger.records());
        if result.is_ok() {
            self.mark_behind(false);
        }
        self.is_written(result, clock.now());
    }

    /// Checks for a failure of the flusher and for a removed file, and tries again after a failure.
    pub fn maintain(&mut self, ledger: &Ledger, clock: &WallClock) {
        if self.is_paused {
            return;
        }
        if self.database.is_some() {
            let failure = self.not_flushed.try_iter().last();
            if let Some(error) = failure.or_else(|| self.check_in_place().err()) {
                self.give_up(error, clock.now());
            }
        } else if self.failure.as_ref().is_none_or(|(_, at)| clock.now().since(*at) >= RETRY) {
            self.reopen(ledger, clock);
        }
    }

    /// Makes sure that the next instance finds everything in the database.
    pub fn finish(&mut self, ledger: &Ledger, clock: &WallClock) {
        if self.is_paused {
            return;
        }
        if self.database.is_some()
            && let Err(error) = self.check()
        {
            self.give_up(error, clock.now());
        }
        if self.database.is_none() {
            self.reopen(ledger, clock);
        }
    }

    /// Opens the database, or a new one in its place, and writes all of the ledger.
    fn reopen(&mut self, ledger: &Ledger, clock: &WallClock) {
        // A failure of the previous connection.
        let _ = self.not_flushed.try_iter().last();
        let opened = self.open_or_quarantine(false, |file| {
            let database = Database::open(file)?;
            database.check()?;
            Ok(database)
        });
        match opened {
            Ok(database) => {
                self.use_database(database);
                self.failure = None;
                self.save_all(ledger, clock);
            }
            Err(error) => self.give_up(error, clock.now()),
        }
    }

    /// Opens the file; if its content is unusable, renames it and opens a new one.
    fn open_or_quarantine<T>(
        &mut self,
        at_start: bool,
        open: impl Fn(&Path) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.create_directory().map_err(StoreError::Directory)?;
        match open(&self.file) {
            Err(error) if error.is_about_the_content() => match quarantine(&self.file) {
                Ok(kept) => {
                    let (file, error) = (self.file.clone(), error.to_string());
                    self.warnings.push(Warning::DatabaseQuarantined {
                        file,
                        kept,
                        error,
                        at_start,
                    });
                    open(&self.file)
                }
                Err(why_not) => Err(StoreError::InTheWay(Box::new(error), why_not)),
            },
            result => result,
        }
    }

    fn create_directory(&self) -> std::io::Result<()> {
        let Some(directory) = self.file.parent() else { return Ok(()) };
        // Other users may not read it. The directory above serves all instances, which may have other
        // users.
        directory.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        DirBuilder::new().recursive(true).mode(0o750).create(directory)
    }

    /// Copies the database, whose content will be replaced, for an administrator.
    fn keep_copy(&self, database: &Database) -> Result<PathBuf, StoreError> {
        let kept = make_room(&self.file).map_err(StoreError::Copy)?;
        database.copy_to(&kept)?;
        Ok(kept)
    }

    fn use_database(&mut self, database: Database) {
        self.in_use.store(true, Ordering::Relaxed);
        self.database = Some((database, identity(&self.file)));
    }

    fn is_written(&mut self, result: Result<(), StoreError>, now: Moment) {
        match result {
            // Full: the flusher is awake already. Disconnected: the process is about to end.
            Ok(()) => drop(self.written.try_send(())),
            Err(error) => self.give_up(error, now),
        }
    }

    fn give_up(&mut self, error: StoreError, now: Moment) {
        self.database = None;
        self.failure = Some((error, now));
        self.mark_behind(true);
    }

    /// Notes for the next instance whether the database lacks changes. A full disk mostly has room for a
    /// name.
    fn mark_behind(&self, is_behind: bool) {
        let note = beside(&self.file, BEHIND);
        // If this fails, the note exists, or the next start finds the database not writable.
        let _ =
            if is_behind { File::create_new(note).map(drop) } else { std::fs::remove_file(note) };
    }

    /// Fails if the opened file is no longer in its place: writes to it would be lost.
    fn check_in_place(&self) -> Result<(), StoreError> {
        let opened = self.database.as_ref().and_then(|(_, identity)| *identity);
        let is_same = opened.is_some() && identity(&self.file) == opened;
        if is_same { Ok(()) } else { Err(StoreError::Removed) }
    }

    /// Fails if another connection would not find what was written through this one.
    fn check(&self) -> Result<(), StoreError> {
        self.check_in_place()?;
        if !beside(&self.file, "-wal").exists() {
            return Err(StoreError::Removed);
        }
        Database::open_again(&self.file)?.check()
    }
}

/// Device and number of a file.
fn identity(file: &Path) -> Option<(u64, u64)> {
    file.metadata().ok().map(|data| (data.dev(), data.ino()))
}

/// The kernel's name for this boot (random(4)).
fn boot() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

/// A file next to another: its name with something appended.
fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
