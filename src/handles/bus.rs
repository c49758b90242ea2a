//! The way to the bus's thread.

use std::sync::Arc;

use crate::types::event::Event;

/// Tasks that may wait for the bus's thread.
pub const QUEUE: usize = 1024;

/// What the bus's thread is asked to do.
#[derive(Clone, Debug)]
pub enum BusCommand {
    /// Tell everyone who listens.
    Emit(Arc<Event>),
    /// Show that the thread is alive.
    Heartbeat,
    /// Leave the bus.
    Stop,
}
