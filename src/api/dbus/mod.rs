//! The bus: how others look at the service and steer it.
//!
//! Owns the connection and one thread that drives it. Knows nothing of sets and rules: a change is an
//! order to the firewall's thread, whose answer a caller's task awaits without holding up others.
//! Tells only what has happened.

pub mod authority;
pub mod error;
pub mod explanation;
pub mod limiter;
pub mod names;
pub mod semaphore;
pub mod signals;
pub mod tracker;

#[cfg(test)]
mod description_tests;

use crate::api::dbus::names::COMMON_NAME;
use crate::api::dbus::names::bus_name;
use crate::api::dbus::names::object_path;
use crate::api::dbus::tracker::Tracker;
use crate::handles::bus::BusCommand;
use crate::handles::events::{CountEvents, Reader};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use zbus::Connection;
use zbus::connection::Builder;
use zbus::fdo::{RequestNameFlags, RequestNameReply};

use crate::api::dbus::signals::Teller;
use crate::api::metrics::Metrics;
use crate::types::heartbeat::Heartbeat;
use crate::types::ifname::IfName;

/// Why the service is not on the bus.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// There is no bus.
    #[error(
        "cannot reach the system bus ({0}); start it (systemctl start dbus), or run without it: \
         bus.enabled = false"
    )]
    NoBus(zbus::Error),
    /// The bus's policy does not let this process own its name.
    #[error(
        "the system bus does not allow the name {name} ({error}); run as root or as user tcptracker, \
         and install org.tcptracker.Tracker1.conf to /usr/share/dbus-1/system.d"
    )]
    NameRefused {
        /// The name.
        name: String,
        /// The bus's answer.
        error: zbus::Error,
    },
    /// Another process has the name.
    #[error("another tcptracker is running on {0}; stop it first: systemctl stop {unit}", unit = .0.unit())]
    AlreadyRunning(IfName),
    /// The connection was lost.
    #[error("the connection to the system bus was lost")]
    Lost,
}

/// Serves the interface until told to stop. `ready` hears once whether it is on the bus.
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
                // Main is waiting, or the process ends.
                let _ = ready.send(Err(error));
                return Ok(());
            }
        };
        let _ = ready.send(Ok(()));
        let lost = |_| BusError::Lost;
        let mut teller = Teller::new(&connection, interface).await.map_err(lost)?;
        while let Ok(task) = tasks.recv().await {
            heartbeat.tick();
            match task {
                BusCommand::Emit(event) => {
                    if !teller.emit(&event).await.map_err(lost)? {
                        metrics.count_lost(Reader::Bus);
                    }
                }
                BusCommand::Heartbeat if connection.is_closed() => return Err(BusError::Lost),
                BusCommand::Heartbeat => {}
                BusCommand::Stop => break,
            }
            teller.emit_properties().await.map_err(lost)?;
        }
        // What was told last still goes out; the names go with the connection.
        let _ = connection.close().await;
        Ok(())
    })
}

/// Connects, serves the object, and only then asks for the names.
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
    // All instances queue for the common name, so that one policy rule can name them all.
    match connection.request_name_with_flags(COMMON_NAME, RequestNameFlags::empty()).await {
        Ok(_) | Err(zbus::Error::NameTaken) => Ok(connection),
        Err(error) => Err(refused(COMMON_NAME)(error)),
    }
}
