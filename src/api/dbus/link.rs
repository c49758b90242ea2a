//! A connection to the system bus, with the object and the names of an instance.
//!
//! Owns the order in which they come: a caller that sees a name can call the object.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::SocketAddr;
use std::sync::Arc;

use zbus::address::Address;
use zbus::address::transport::{Transport, UnixSocket};
use zbus::connection::Builder;
use zbus::fdo::{RequestNameFlags, RequestNameReply};
use zbus::{Connection, MatchRule};
use zruntime::net::unix::UnixStream;
use zruntime::{Shared, SharedRuntime};

use crate::api::dbus::gate::Gate;
use crate::api::dbus::names::{COMMON_NAME, bus_name, object_path};
use crate::api::dbus::signals::Signals;
use crate::api::dbus::tracker::Tracker;
use crate::types::IfName;

const BUS: &str = "org.freedesktop.DBus";

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
    /// The thread ended before it was on the bus.
    #[error("the bus thread ended while it connected to the system bus")]
    Ended,
}

/// A connection that callers can use.
pub struct Link {
    pub connection: Connection,
    pub signals: Signals,
}

impl Link {
    /// Connects, serves the object, and only then requests the names.
    pub async fn join(runtime: &SharedRuntime, tracker: &Tracker) -> Result<Self, BusError> {
        let tracker = tracker.for_new_connection();
        let interface = tracker.interface_name().clone();
        let connection = connect(runtime, tracker, &interface).await.map_err(BusError::NoBus)?;
        let signals = Signals::new(&connection, &interface).await.map_err(BusError::NoBus)?;
        let own = bus_name(&interface);
        let refused = |name: &str| {
            let name = name.to_owned();
            |error| BusError::NameRefused { name, error }
        };
        let only_one = RequestNameFlags::DO_NOT_QUEUE;
        match connection.request_name_with_flags(own.as_str(), only_one).await {
            Ok(RequestNameReply::PrimaryOwner | RequestNameReply::AlreadyOwner) => {}
            Ok(_) | Err(zbus::Error::NameTaken) => return Err(BusError::AlreadyRunning(interface)),
            Err(error) => return Err(refused(&own)(error)),
        }
        // All instances queue for the common name, so that one rule of the bus policy covers them all.
        match connection.request_name_with_flags(COMMON_NAME, RequestNameFlags::empty()).await {
            Ok(_) | Err(zbus::Error::NameTaken) => Ok(Self { connection, signals }),
            Err(error) => Err(refused(COMMON_NAME)(error)),
        }
    }
}

async fn connect(
    runtime: &SharedRuntime,
    tracker: Tracker,
    interface: &IfName,
) -> zbus::Result<Connection> {
    let gate = Gate::new(open(runtime).await?, Arc::clone(tracker.callers()));
    let connection =
        Builder::socket(gate).serve_at(object_path(interface), tracker).build().await?;
    // The gate hears of connections that have closed.
    let closed = MatchRule::builder()
        .msg_type(zbus::message::Type::Signal)
        .sender(BUS)
        .interface(BUS)
        .member("NameOwnerChanged")
        .arg(2, "")
        .build()?;
    let path = "/org/freedesktop/DBus";
    connection.call_method(Some(BUS), path, Some(BUS), "AddMatch", &closed).await?;
    Ok(connection)
}

/// Opens the socket of the system bus.
async fn open(runtime: &SharedRuntime) -> zbus::Result<UnixStream<Shared>> {
    let address = Address::system()?;
    let Transport::Unix(unix) = address.transport() else { return Err(zbus::Error::Unsupported) };
    let opened = match unix.path() {
        UnixSocket::File(path) => UnixStream::connect(runtime, path).await,
        UnixSocket::Abstract(name) => match SocketAddr::from_abstract_name(name.as_bytes()) {
            Ok(name) => UnixStream::connect_addr(runtime, &name).await,
            Err(error) => Err(error),
        },
        _ => return Err(zbus::Error::Unsupported),
    };
    opened.map_err(|error| zbus::Error::Connection(Arc::new(error), address.clone().into()))
}
