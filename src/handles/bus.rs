//! The commands for the bus thread.

use std::sync::Arc;

use crate::types::Event;

/// Commands that may wait for the bus thread.
pub const QUEUE: usize = 1024;

/// A command for the bus thread.
#[derive(Clone, Debug)]
pub enum BusCommand {
    /// Emit the signal of an event.
    Emit(Arc<Event>),
    /// Tick the heartbeat: unlike other threads, this one sleeps without a time limit.
    Heartbeat,
    Stop,
}
