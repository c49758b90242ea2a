//! D-Bus: the interface that other programs use to observe and control the service.
//!
//! Owns the connection and drives it in one thread. Must never change anything itself: a change is a command
//! to the firewall thread, and a caller that waits for the answer does not delay others. Emits an event only
//! after the fact.

pub mod authority;
pub mod error;
pub mod explanation;
pub mod names;
pub mod signals;
pub mod tracker;
pub mod until_sent;

#[cfg(test)]
mod description_tests;

use crate::api::dbus::names::COMMON_NAME;
use crate::api::dbus::names::bus_name;
use crate::api::dbus::names::object_path;
use crate::api::dbus::tracker::Tracker;
use crate::handles::{BusCommand, CountEvents, Reader};
use crate::types::{Heartbeat, IfName};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use zbus::Connection;
use zbus::connection::Builder;
use zbus::fdo::{RequestNameFlags, RequestNameReply};

use crate::api::dbus::signals::Signals;
use crate::api::metrics::Metrics;

/// Why the service is not on the bus.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    #[error(
        "cannot reach the system bus ({0}); start it (systemctl start dbus), or run without it: \
         bus.enabled = false"
    )]
    NoBus(zbus::Error),
    #[error(
        "the system bus does not allow the name {name} ({error}); run as root or as user tcptracker, \
         and install org.tcptracker.Tracker1.conf to /usr/share/dbus-1/system.d"
    )]
    NameRefused { name: String, error: zbus::Error },
    /// Another process owns the name.
    #[error("another tcptracker is running on {0}; stop it first: systemctl stop {unit}", unit = .0.unit())]
    AlreadyRunning(IfName),
    #[error("the connection to the system bus was lost")]
    Lost,
}

/// Serves the interface until the thread has to stop. Sends once to `ready` whether it is on the bus.
pub fn run(
    tracker: Tracker,
    interface: &IfName,
    tasks: &async_channel::Receiver<BusCommand>,
    metrics: &Arc<Metrics>,
    ready: &SyncSender<Result<(), BusError>>,
    heartbeat: &Heartbeat,
) -> Result<(), BusError> {
    zbus::block_on(async {
        heartbeat.tick();
        let connection = match join(tracker, interface).await {
            Ok(connection) => connection,
            Err(error) => {
                // Fails only if the process is about to end.
                let _ = ready.send(Err(error));
                return Ok(());
            }
        };
        let _ = ready.send(Ok(()));
        let lost = |_| BusError::Lost;
        let mut signals = Signals::new(&connection, interface).await.map_err(lost)?;
        while let Ok(task) = tasks.recv().await {
            heartbeat.tick();
            match task {
                BusCommand::Emit(event) => {
                    if !signals.emit(&event).await.map_err(lost)? {
                        metrics.count_lost(Reader::Bus);
                    }
                }
                BusCommand::Heartbeat if connection.is_closed() => return Err(BusError::Lost),
                BusCommand::Heartbeat => {}
                BusCommand::Stop => break,
            }
            signals.emit_properties().await.map_err(lost)?;
        }
        // The last signals are still sent. The bus releases the names with the connection.
        let _ = connection.close().await;
        Ok(())
    })
}

/// Connects, serves the object, and only then requests the names: a caller that sees a name can call it.
async fn join(tracker: Tracker, interface: &IfName) -> Result<Connection, BusError> {
    let connection = Builder::system()
        .serve_at(object_path(interface), tracker)
        .build()
        .await
        .map_err(BusError::NoBus)?;
    let refused = |name: &str| {
        let name = name.to_owned();
        |error| BusError::NameRefused { name, error }
    };
    let own = bus_name(interface);
    match connection.request_name_with_flags(own.as_str(), RequestNameFlags::DO_NOT_QUEUE).await {
        Ok(RequestNameReply::PrimaryOwner | RequestNameReply::AlreadyOwner) => {}
        Ok(_) | Err(zbus::Error::NameTaken) => {
            return Err(BusError::AlreadyRunning(interface.clone()));
        }
        Err(error) => return Err(refused(&own)(error)),
    }
    // All instances queue for the common name, so that one rule of the bus policy covers them all.
    match connection.request_name_with_flags(COMMON_NAME, RequestNameFlags::empty()).await {
        Ok(_) | Err(zbus::Error::NameTaken) => Ok(connection),
        Err(error) => Err(refused(COMMON_NAME)(error)),
    }
}
