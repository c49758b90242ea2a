//! The store: blocks, offences and grace periods that must outlive the process.
//!
//! Owns the database file. It decides nothing about blocks, and it never keeps the service from running,
//! whatever is wrong with the file.

pub mod database;
pub mod flusher;
pub mod persister;
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

use rusqlite::{ErrorCode, ffi};

use crate::block::store::database::Database;
use crate::block::store::quarantine::quarantine;
use crate::block::store::records::{Record, Remembered};
use crate::block::store::timeline::Timeline;
use crate::types::{IfName, WallClock, Warning};

/// The file's name within the state directory.
const FILE: &str = "tcptracker.db";

/// An empty file next to the database: some changes are missing there.
const BEHIND: &str = "-behind";

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
    /// The content is not what was written.
    #[error("damaged database: {0}")]
    Damaged(String),
    #[error("not a tcptracker database")]
    Foreign,
    #[error("unsupported database version {0}; upgrade tcptracker")]
    Newer(i32),
    #[error("{0}; cannot rename it: {1}")]
    InTheWay(Box<StoreError>, std::io::Error),
    #[error("cannot flush the file to the disk: {0}")]
    Flush(std::io::Error),
    /// Any other error of SQLite.
    #[error("{0}")]
    Sqlite(rusqlite::Error),
}

impl StoreError {
    /// Whether a new file would solve it.
    const fn is_about_the_content(&self) -> bool {
        matches!(self, Self::Damaged(_) | Self::Foreign | Self::Newer(_))
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

/// Where the database is, and the way to the thread that flushes it.
pub struct StorePath {
    file: PathBuf,
    /// Tells the flusher that something was written.
    written: SyncSender<()>,
    /// What the flusher could not do.
    failures: Receiver<StoreError>,
    in_use: Arc<AtomicBool>,
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

/// The open database.
pub struct Store {
    file: PathBuf,
    /// Device and number of the opened file, if it exists.
    identity: Option<(u64, u64)>,
    database: Database,
    written: SyncSender<()>,
}

impl StorePath {
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Opens the database to write to, and reads what can be read even if that fails. Warns of a file that
    /// was renamed.
    pub fn load(
        &self,
        clock: &WallClock,
        warnings: &mut Vec<Warning>,
    ) -> (Loaded, Result<Store, StoreError>) {
        let present = Timeline::new(boot(), clock);
        let opened = self.create_directory().and_then(|()| {
            self.open_or_quarantine(true, warnings, |file| {
                let database = Database::open(file)?;
                let content = database.load()?;
                Ok((database, content))
            })
        });
        let (database, content) = match opened {
            Ok((database, content)) => (Ok(database), content),
            // It may still be readable.
            Err(error) => {
                let read = Database::open_to_read(&self.file).and_then(|file| file.load());
                (Err(error), read.unwrap_or_default())
            }
        };
        let (mut remembered, written_on) = content;
        let is_of_another_boot =
            written_on.as_ref().is_some_and(|line| line.is_of_another_boot_than(&present));
        let is_same_boot = written_on.is_some_and(|line| line.convert(&mut remembered, &present));
        let store = database.and_then(|database| {
            if is_same_boot {
                // Also shows that the file is writable.
                database.set_timeline(&present)?;
            }
            Ok(self.store(database))
        });
        // A file that is not writable now may have been so for some time.
        let is_current = store.is_ok() && !beside(&self.file, BEHIND).exists();
        let precedence = match (is_current, is_of_another_boot) {
            (false, _) => Precedence::Kernel,
            (true, false) => Precedence::Store,
            (true, true) => Precedence::StoreAlone,
        };
        (Loaded { remembered, precedence, is_outdated: !is_same_boot || !is_current }, store)
    }

    /// Notes for the next instance whether the database lacks changes. A full disk mostly has room for a
    /// name.
    pub fn mark_behind(&self, is_behind: bool) {
        let note = beside(&self.file, BEHIND);
        // If this fails, the next start finds the database not writable.
        let _ = if is_behind { File::create(note).map(drop) } else { std::fs::remove_file(note) };
    }

    /// Opens the database to replace its content. Warns of a file that was renamed.
    pub fn reopen(&self, warnings: &mut Vec<Warning>) -> Result<Store, StoreError> {
        // A failure of the previous connection.
        let _ = self.failure();
        self.create_directory()?;
        let database = self.open_or_quarantine(false, warnings, |file| {
            let database = Database::open(file)?;
            database.check()?;
            Ok(database)
        })?;
        Ok(self.store(database))
    }

    fn store(&self, database: Database) -> Store {
        self.in_use.store(true, Ordering::Relaxed);
        let (file, written) = (self.file.clone(), self.written.clone());
        Store { identity: identity(&file), file, database, written }
    }

    /// The flusher's latest failure since the last call.
    pub fn failure(&self) -> Option<StoreError> {
        self.failures.try_iter().last()
    }

    fn create_directory(&self) -> Result<(), StoreError> {
        let Some(directory) = self.file.parent() else { return Ok(()) };
        // Other users may not read it. The directory above serves all instances, which may have other
        // users.
        let above = directory.parent().map_or(Ok(()), std::fs::create_dir_all);
        let made =
            above.and_then(|()| DirBuilder::new().recursive(true).mode(0o750).create(directory));
        made.map_err(StoreError::Directory)
    }

    /// Opens the file; if its content is unusable, renames it and opens a new one.
    fn open_or_quarantine<T>(
        &self,
        at_start: bool,
        warnings: &mut Vec<Warning>,
        open: impl Fn(&Path) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match open(&self.file) {
            Err(error) if error.is_about_the_content() => match quarantine(&self.file) {
                Ok(kept) => {
                    let (file, error) = (self.file.clone(), error.to_string());
                    warnings.push(Warning::DatabaseQuarantined { file, kept, error, at_start });
                    open(&self.file)
                }
                Err(why_not) => Err(StoreError::InTheWay(Box::new(error), why_not)),
            },
            result => result,
        }
    }
}

impl Store {
    /// Fails if the opened file is no longer in its place: writes to it would be lost.
    pub fn check_in_place(&self) -> Result<(), StoreError> {
        let is_same = self.identity.is_some() && identity(&self.file) == self.identity;
        if is_same { Ok(()) } else { Err(StoreError::Removed) }
    }

    /// Fails if another connection would not find what was written through this one.
    pub fn check(&self) -> Result<(), StoreError> {
        self.check_in_place()?;
        if !beside(&self.file, "-wal").exists() {
            return Err(StoreError::Removed);
        }
        Database::open_again(&self.file)?.check()
    }

    /// Writes all of these records or none. When this returns, they outlive the process.
    pub fn write<'a>(
        &mut self,
        records: impl Iterator<Item = Record<'a>>,
    ) -> Result<(), StoreError> {
        self.database.write(records)?;
        self.wake_flusher();
        Ok(())
    }

    /// Replaces the content of the database by these records.
    pub fn replace<'a>(
        &mut self,
        clock: &WallClock,
        records: impl Iterator<Item = Record<'a>>,
    ) -> Result<(), StoreError> {
        self.database.replace(&Timeline::new(boot(), clock), records)?;
        self.wake_flusher();
        Ok(())
    }

    fn wake_flusher(&self) {
        // Full: the flusher is awake already. Disconnected: the process is about to end.
        let _ = self.written.try_send(());
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
