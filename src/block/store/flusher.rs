//! The flusher: a written change outlives the process at once, and a power cut after the next flush.
//!
//! Owns when the log is flushed and when its content moves into the file, and the note of the wall clock,
//! which the next boot needs. No other thread may wait for it.

use std::fs::File;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use crate::block::store::database::Database;
use crate::block::store::timeline::Timeline;
use crate::block::store::{Store, StoreError, beside, boot};
use crate::system::reserve;
use crate::types::{Moment, WallClock};

/// How long a change may wait. A power cut loses changes younger than this and the time of a flush.
const PACE: Duration = Duration::from_millis(500);

/// The longest sleep.
const TICK: Duration = Duration::from_secs(1);

/// The size at which the log's content moves into the file. SQLite then restarts the log with the next
/// change and flushes: once in some thousand changes.
const LOG_LIMIT: u64 = 4 << 20;

pub struct Flusher {
    file: PathBuf,
    written: Receiver<()>,
    failures: SyncSender<StoreError>,
    /// The database is open for writing; before that, the flusher does not touch it.
    in_use: Arc<AtomicBool>,
}

/// Returns the store in a file and the flusher that belongs to it.
pub fn flusher(file: PathBuf) -> (Store, Flusher) {
    let (written_in, written) = sync_channel(1);
    let (failures, not_flushed) = sync_channel(1);
    let in_use = Arc::new(AtomicBool::new(false));
    let store = Store {
        file: file.clone(),
        database: None,
        is_paused: true,
        failure: None,
        warnings: Vec::new(),
        written: written_in,
        not_flushed,
        in_use: Arc::clone(&in_use),
    };
    (store, Flusher { file, written, failures, in_use })
}

impl Flusher {
    /// Runs until the last writer has ended.
    pub fn run(self, tick: impl Fn()) {
        let boot = boot();
        let present = || Timeline::new(boot.clone(), &WallClock::read());
        let mut noted = present();
        let mut last_round = Moment::default();
        let mut is_dirty = false;
        loop {
            tick();
            match self.written.recv_timeout(if is_dirty { PACE } else { TICK }) {
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
                // The wall clock was set. One attempt is enough: each move of the log notes it again.
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
        let log = beside(&self.file, "-wal");
        let log = reserve::spend(|| File::open(&log)).map_err(|error| match error.kind() {
            ErrorKind::NotFound => StoreError::Removed,
            _ => StoreError::Flush(error),
        })?;
        log.sync_data().map_err(StoreError::Flush)?;
        if log.metadata().map_err(StoreError::Flush)?.len() > LOG_LIMIT {
            Database::open_again(&self.file)?.checkpoint()?;
            // The writer of the first change to a new log flushes it. This note makes the flusher that
            // writer, so that no caller waits.
            self.note(now)?;
        }
        Ok(())
    }

    fn note(&self, timeline: &Timeline) -> Result<(), StoreError> {
        Database::open_again(&self.file)?.set_timeline(timeline)
    }

    fn report(&self, result: Result<(), StoreError>) {
        if let Err(error) = result {
            // One failure that nothing has read yet is enough.
            let _ = self.failures.try_send(error);
        }
    }
}
