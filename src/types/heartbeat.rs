//! A thread's heartbeat.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Shows that a thread makes progress: it ticks each time the thread passes through its loop.
#[derive(Clone, Debug, Default)]
pub struct Heartbeat(Arc<AtomicU64>);

impl Heartbeat {
    /// Returns how often it has ticked.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Ticks once.
    pub fn tick(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}
