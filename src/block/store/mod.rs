//! Store: what must survive the process. Who is blocked and why, who has offended before, who was let
//! in by hand.
//!
//! Owns the database file. Decides nothing: the firewall's thread, which owns the ledger, says what is
//! to be kept, and is told when it could not be. Whatever is wrong with the file, the service runs.

pub mod database;
pub mod flusher;
pub mod quarantine;
pub mod timeline;

#[cfg(test)]
mod tests;

use crate::block::store::timeline::Timeline;
use crate::types::block::Record;
use crate::types::block::Remembered;
use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};

use rusqlite::{ErrorCode, ffi};

use crate::block::store::database::Database;
use crate::types::clock::WallClock;
use crate::types::ifname::IfName;

/// The file's name within the state directory.
const FILE: &str = "tcptracker.db";

/// An empty file beside it, while changes cannot be written to it.
const BEHIND: &str = "-behind";

/// Why nothing is kept, or cannot be found again.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no directory to put it in.
    #[error("its directory cannot be made: {0}")]
    Directory(std::io::Error),
    /// No space is left.
    #[error("the disk is full; free some space")]
    Full,
    /// It can be read, not written.
    #[error("it cannot be written: the file or its directory is read-only, or another user's")]
    ReadOnly,
    /// It cannot be opened.
    #[error("it cannot be opened: the file or its directory is read-only, or another user's")]
    Unopenable,
    /// Somebody keeps it locked.
    #[error("another program keeps it locked")]
    Locked,
    /// SQLite's log needs shared memory, which some file systems do not have.
    #[error("its file system cannot hold a write-ahead log; use a local one")]
    NoLog,
    /// It was taken away while it was in use.
    #[error("it has been removed")]
    Removed,
    /// Its content is not what was written.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// It is another program's.
    #[error("it is no database of tcptracker")]
    Foreign,
    /// It is of another version.
    #[error("it is of format {0}, which this tcptracker does not know")]
    Newer(i32),
    /// It could not be put out of the way.
    #[error("{0}; and it cannot be renamed: {1}")]
    InTheWay(Box<StoreError>, std::io::Error),
    /// The disk failed.
    #[error("it cannot be flushed to the disk: {0}")]
    Flush(std::io::Error),
    /// Anything else SQLite has to say.
    #[error("{0}")]
    Sqlite(rusqlite::Error),
}

impl StoreError {
    /// Whether another file in its place would do.
    const fn is_the_files(&self) -> bool {
        matches!(self, Self::Damaged(_) | Self::Foreign | Self::Newer(_))
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        let rusqlite::Error::SqliteFailure(ffi::Error { code, extended_code }, _) = &error else {
            // A value of another type than we write.
            return Self::Damaged(error.to_string());
        };
        match code {
            // The last: a table is not there, or not as we make it.
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown => {
                Self::Damaged(error.to_string())
            }
            // The second: the file with the log's index could not grow.
            ErrorCode::DiskFull => Self::Full,
            _ if *extended_code == ffi::SQLITE_IOERR_SHMSIZE => Self::Full,
            ErrorCode::ReadOnly => Self::ReadOnly,
            ErrorCode::CannotOpen | ErrorCode::PermissionDenied => Self::Unopenable,
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Self::Locked,
            _ => Self::Sqlite(error),
        }
    }
}

/// Where an instance's database lies: in the directory the service manager gives it, or where that would
/// be.
pub fn file_of(interface: &IfName, state_directory: Option<OsString>) -> PathBuf {
    let default = || Path::new("/var/lib/tcptracker").join(interface.as_str());
    state_directory.map_or_else(default, PathBuf::from).join(FILE)
}

/// What keeps the database: its place, and the way to the thread that flushes it.
pub struct StorePath {
    /// The file.
    pub file: PathBuf,
    /// Told when something was written.
    written: SyncSender<()>,
    /// What the flusher could not do.
    failures: Receiver<StoreError>,
    in_use: Arc<AtomicBool>,
}

/// What was found at the start.
pub struct Found {
    /// What was remembered, on the present timeline.
    pub remembered: Remembered,
    /// The database, to be written to.
    pub store: Result<Store, StoreError>,
    /// It was written until the last instance's end: what is not in it was not so.
    pub is_current: bool,
    /// It was last written in another boot.
    pub is_of_another_boot: bool,
    /// Everything has to be written anew: it is behind, empty, or from another boot.
    pub is_outdated: bool,
    pub set_aside: Option<Quarantined>,
}

/// A file that could not be used, and was moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    pub file: PathBuf,
    /// Where it is now.
    pub kept: PathBuf,
    pub error: String,
}

/// The open database.
pub struct Store {
    file: PathBuf,
    /// Which file that is, if it is there: device and number.
    identity: Option<(u64, u64)>,
    database: Database,
    written: SyncSender<()>,
}

impl StorePath {
    /// Opens the database and reads everything. Cannot fail: what is wrong is said in the result.
    pub fn load(&self, clock: &WallClock) -> Found {
        let present = Timeline::new(boot(), clock);
        let mut set_aside = None;
        let opened = self.directory().and_then(|()| {
            self.replacing_a_useless_file(&mut set_aside, |file| {
                let database = Database::open(file)?;
                let loaded = database.load()?;
                Ok((database, loaded))
            })
        });
        let (database, loaded) = match opened {
            Ok((database, loaded)) => (Ok(database), loaded),
            // Perhaps it can be read at least.
            Err(error) => {
                let read = Database::open_to_read(&self.file).and_then(|file| file.load());
                (Err(error), read.unwrap_or_default())
            }
        };
        let (mut remembered, kept_on) = loaded;
        let is_of_another_boot =
            kept_on.as_ref().is_some_and(|kept_on| kept_on.is_of_another_boot_than(&present));
        let is_same_boot =
            kept_on.is_some_and(|kept_on| kept_on.bring_over(&mut remembered, &present));
        let store = database.and_then(|database| {
            if is_same_boot {
                // Shows that it can be written as well.
                database.set_timeline(&present)?;
            }
            Ok(self.store(database))
        });
        // One that cannot be written now may have been so before.
        let is_current = store.is_ok() && !beside(&self.file, BEHIND).exists();
        let is_outdated = !is_same_boot || !is_current;
        Found { remembered, store, is_current, is_of_another_boot, is_outdated, set_aside }
    }

    /// Leaves word for the next instance that the database is no longer written, or is again. On a disk
    /// that is full there is mostly room for a name.
    pub fn note_behind(&self, is_behind: bool) {
        let note = beside(&self.file, BEHIND);
        // Where that is not possible either, the next start sees that it cannot write.
        let _ = if is_behind { File::create(note).map(drop) } else { std::fs::remove_file(note) };
    }

    /// Opens the database to replace what is in it. Tells of a file it had to put aside.
    pub fn open_anew(&self, set_aside: &mut Option<Quarantined>) -> Result<Store, StoreError> {
        // What it has found of the last connection is of no interest any more.
        let _ = self.failure();
        self.directory()?;
        let database = self.replacing_a_useless_file(set_aside, |file| {
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

    /// What the flusher could not do since the last call.
    pub fn failure(&self) -> Option<StoreError> {
        self.failures.try_iter().last()
    }

    fn directory(&self) -> Result<(), StoreError> {
        let Some(directory) = self.file.parent() else { return Ok(()) };
        // Nobody else may read it. What is above it is for all instances, whoever they run as.
        let above = directory.parent().map_or(Ok(()), std::fs::create_dir_all);
        let made =
            above.and_then(|()| DirBuilder::new().recursive(true).mode(0o750).create(directory));
        made.map_err(StoreError::Directory)
    }

    fn replacing_a_useless_file<T>(
        &self,
        set_aside: &mut Option<Quarantined>,
        open: impl Fn(&Path) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match open(&self.file) {
            Err(error) if error.is_the_files() => match quarantine::set_aside(&self.file) {
                Ok(kept) => {
                    let (file, error) = (self.file.clone(), error.to_string());
                    *set_aside = Some(Quarantined { file, kept, error });
                    open(&self.file)
                }
                Err(why_not) => Err(StoreError::InTheWay(Box::new(error), why_not)),
            },
            result => result,
        }
    }
}

impl Store {
    /// Fails where the file is no longer where it was opened: what is written is lost with this connection.
    pub fn is_in_place(&self) -> Result<(), StoreError> {
        let is_same = self.identity.is_some() && identity(&self.file) == self.identity;
        if is_same { Ok(()) } else { Err(StoreError::Removed) }
    }

    /// Fails where another connection would not find what was written through this one.
    pub fn is_sound(&self) -> Result<(), StoreError> {
        self.is_in_place()?;
        if !beside(&self.file, "-wal").exists() {
            return Err(StoreError::Removed);
        }
        Database::open_again(&self.file)?.check()
    }

    /// Keeps some records: all or none. When this returns, they outlive the process.
    pub fn write<'a>(
        &mut self,
        records: impl Iterator<Item = Record<'a>>,
    ) -> Result<(), StoreError> {
        self.database.write(records)?;
        self.wake_the_flusher();
        Ok(())
    }

    /// Keeps these records and no others.
    pub fn write_anew<'a>(
        &mut self,
        clock: &WallClock,
        records: impl Iterator<Item = Record<'a>>,
    ) -> Result<(), StoreError> {
        self.database.write_anew(&Timeline::new(boot(), clock), records)?;
        self.wake_the_flusher();
        Ok(())
    }

    fn wake_the_flusher(&self) {
        // Full: it is awake. Gone: the process is about to be.
        let _ = self.written.try_send(());
    }
}

/// Which file it is.
fn identity(file: &Path) -> Option<(u64, u64)> {
    file.metadata().ok().map(|data| (data.dev(), data.ino()))
}

/// The kernel's name for this boot (random(4)).
fn boot() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

/// A file beside another: its name with something appended.
fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
