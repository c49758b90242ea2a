//! The journal thread: the only one that writes events to the log, as a log may be slow, or never be read.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use crate::api::journal::{LastEvent, QUEUE, run};
use crate::service::supervisor::Supervisor;
use crate::types::{Event, IfName};

/// The way to the journal thread.
pub struct Journal {
    pub queue: SyncSender<Arc<Event>>,
    last: Arc<LastEvent>,
}

impl Journal {
    /// Starts the journal thread, which ends after the last event.
    pub fn spawn(threads: &mut Supervisor, interface: &IfName) -> std::io::Result<Self> {
        let (queue, events) = sync_channel(QUEUE);
        let last = Arc::new(LastEvent::new());
        let (interface, of_thread) = (interface.clone(), Arc::clone(&last));
        threads.start("journal", move |heartbeat| {
            run(&interface, &events, &of_thread, || heartbeat.tick());
            Ok::<(), std::convert::Infallible>(())
        })?;
        Ok(Self { queue, last })
    }

    /// Ends the thread with an event. A full queue does not lose it.
    pub fn end(&self, last: Event) {
        let last = self.last.get_or_init(|| Arc::new(last));
        let _ = self.queue.try_send(Arc::clone(last));
    }
}
