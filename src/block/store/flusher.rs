//! The thread that flushes: what was written outlives the process at once, and a power cut once this
//! thread has been there. Nobody waits for it.
//!
//! Owns when the log is flushed and when it is moved into the file; and the note of where the wall
//! clock stands, which is all the next boot has to go by.

use std::fs::File;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use crate::block::store::database::Database;
use crate::block::store::timeline::Timeline;
use crate::block::store::{StoreError, StorePath, beside, boot};
use crate::types::clock::{Moment, WallClock};

/// How long a change may wait. A power cut costs what is younger, and what a flush takes.
const PACE: Duration = Duration::from_millis(500);

/// How large the log may grow. SQLite begins it anew with the next change after it was moved, and
/// flushes then: once in some thousand changes.
const LOG_LIMIT: u64 = 4 << 20;

/// The thread.
pub struct Flusher {
    file: PathBuf,
    written: Receiver<()>,
    failures: SyncSender<StoreError>,
    /// Somebody has opened the database for writing: until then it is left alone.
    in_use: Arc<AtomicBool>,
}

/// A database's place, and the flusher that belongs to it.
pub fn flusher(file: PathBuf) -> (StorePath, Flusher) {
    let (tell, written) = sync_channel(1);
    let (failures_in, failures) = sync_channel(1);
    let in_use = Arc::new(AtomicBool::new(false));
    let place =
        StorePath { file: file.clone(), written: tell, failures, in_use: Arc::clone(&in_use) };
    (place, Flusher { file, written, failures: failures_in, in_use })
}

impl Flusher {
    /// Works until nobody is left who could write.
    pub fn run(self, beat: impl Fn()) {
        let boot = boot();
        let present = || Timeline::new(boot.clone(), &WallClock::read());
        let mut noted = present();
        let mut last_round = Moment::default();
        let mut is_dirty = false;
        loop {
            beat();
            match self.written.recv_timeout(PACE) {
                Ok(()) => is_dirty = true,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = present();
            if now.moment.since(last_round) < PACE {
                continue;
            }
            last_round = now.moment;
            if !now.agrees_with(&noted) && self.in_use.load(Ordering::Relaxed) {
                // The wall clock was set. Tried once: the next move of the log notes it as well.
                self.report(self.note(&now));
                noted = now.clone();
                is_dirty = true;
            }
            if std::mem::take(&mut is_dirty) {
                self.report(self.flush(&now));
            }
        }
    }

    pub fn flush(&self, now: &Timeline) -> Result<(), StoreError> {
        let log = File::open(beside(&self.file, "-wal")).map_err(|error| match error.kind() {
            ErrorKind::NotFound => StoreError::Removed,
            _ => StoreError::Flush(error),
        })?;
        log.sync_data().map_err(StoreError::Flush)?;
        if log.metadata().map_err(StoreError::Flush)?.len() > LOG_LIMIT {
            Database::open_again(&self.file)?.checkpoint()?;
            // The first change to a new log is flushed by whoever makes it. So it is not a caller.
            self.note(now)?;
        }
        Ok(())
    }

    fn note(&self, timeline: &Timeline) -> Result<(), StoreError> {
        Database::open_again(&self.file)?.set_timeline(timeline)
    }

    fn report(&self, result: Result<(), StoreError>) {
        if let Err(error) = result {
            // One that has not been heard yet is enough.
            let _ = self.failures.try_send(error);
        }
    }
}
