//! The store thread: flushes what the firewall thread has written to the database, as a disk may be slow.

use std::convert::Infallible;

use crate::block::store::flusher::flusher;
use crate::block::store::{Store, file_of};
use crate::service::supervisor::Supervisor;
use crate::types::IfName;

/// Starts the store thread. It ends when the store is dropped.
pub fn spawn(threads: &mut Supervisor, interface: &IfName) -> std::io::Result<Store> {
    let file = file_of(interface, std::env::var_os("STATE_DIRECTORY"));
    let (store, flusher) = flusher(file);
    threads.start("store", move |heartbeat| {
        flusher.run(|| heartbeat.tick());
        Ok::<(), Infallible>(())
    })?;
    Ok(store)
}
