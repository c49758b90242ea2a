//! A thread's heartbeat.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A thread's sign of life: it beats whenever the thread comes round its loop.
#[derive(Clone, Debug, Default)]
pub struct Heartbeat(Arc<AtomicU64>);

impl Heartbeat {
    /// How often it has beaten.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Shows that the thread makes progress.
    pub fn tick(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}
