//! The way to the bus thread.

use std::sync::Arc;

use crate::types::event::Event;

/// Commands that may wait for the bus thread.
pub const QUEUE: usize = 1024;

/// What the bus thread is asked to do.
#[derive(Clone, Debug)]
pub enum BusCommand {
    /// Send the signal that stands for this event.
    Emit(Arc<Event>),
    /// Tick the thread's heartbeat.
    Heartbeat,
    /// Leave the bus and end.
    Stop,
}
