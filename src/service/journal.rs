//! The journal thread: the only one that writes events to the log, as a log may be slow.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use crate::api::journal::{QUEUE, run};
use crate::service::supervisor::Supervisor;
use crate::types::{Event, IfName};

/// Starts the journal thread. It ends when all senders of events are dropped.
pub fn spawn(
    threads: &mut Supervisor,
    interface: &IfName,
) -> std::io::Result<SyncSender<Arc<Event>>> {
    let (events_in, events) = sync_channel(QUEUE);
    let interface = interface.clone();
    threads.start("journal", move |heartbeat| {
        run(&interface, &events, || heartbeat.tick());
        Ok::<(), std::convert::Infallible>(())
    })?;
    Ok(events_in)
}
