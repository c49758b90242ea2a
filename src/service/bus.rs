//! The bus thread: serves D-Bus.

use std::sync::mpsc::sync_channel;

use crate::api::dbus;
use crate::api::dbus::link::BusError;
use crate::api::dbus::tracker::Tracker;
use crate::handles::{BusCommand, FirewallHandle, Reloader};
use crate::service::supervisor::Supervisor;
use crate::service::{Context, DaemonError};

/// Starts the bus thread, and waits until it has its names.
pub fn spawn(
    threads: &mut Supervisor,
    context: &Context,
    reloader: Reloader,
    firewall: &FirewallHandle,
    commands: async_channel::Receiver<BusCommand>,
) -> Result<(), DaemonError> {
    let Context { interface, events, metrics, health, .. } = context.clone();
    let tracker = Tracker::new(interface, reloader, firewall.clone(), health, metrics, events);
    let (ready_in, ready) = sync_channel(1);
    threads.start("bus", move |heartbeat| {
        dbus::run(&tracker, &commands, &ready_in, heartbeat);
        Ok::<(), BusError>(())
    })?;
    ready.recv().map_err(|_| BusError::Ended)??;
    Ok(())
}
