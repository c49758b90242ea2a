//! The client's side of the bus: finds the running instances and turns what can go wrong into
//! sentences.

use std::collections::HashMap;

use ipnet::IpNet;
use zbus::fdo::DBusProxy;
use zbus::proxy::CacheProperties;
use zbus::{Connection, DBusError, proxy};

use crate::dbus::{bus_name, interface_of, object_path};
use crate::interface::InterfaceName;
use crate::network::{InvalidAddress, show_network};

/// Why the service did not answer as hoped.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// There is no bus.
    #[error("cannot reach the system bus ({0}); is dbus running? systemctl status dbus")]
    NoBus(zbus::Error),
    /// No instance at all.
    #[error("tcptracker is not running; start it: systemctl start tcptracker@INTERFACE")]
    NotRunning,
    /// Not on this interface.
    #[error("tcptracker is not running on {0}; start it: systemctl start tcptracker@{0}")]
    NotRunningOn(InterfaceName),
    /// The bus or the service does not let this user.
    #[error(
        "permission denied: only root and members of group tcptracker may change blocks; try sudo"
    )]
    Denied,
    /// What was typed is no address.
    #[error(transparent)]
    InvalidAddress(#[from] InvalidAddress),
    /// The service said no; its own sentence.
    #[error("{0}")]
    Refused(String),
    /// No instance blocks it.
    #[error("{} is not blocked; `tcptracker list` shows what is", show_network(.0))]
    NotBlocked(IpNet),
    /// Anything else on the way.
    #[error("the service on {interface} did not answer: {error}")]
    Bus {
        /// The interface.
        interface: InterfaceName,
        /// What happened.
        error: zbus::Error,
    },
}

const NOT_BLOCKED: &str = "org.tcptracker.Tracker1.Error.NotBlocked";

/// A block as the bus tells it: address, since, until, offences, reason.
pub(super) type Block = (String, u64, u64, u32, String);

#[proxy(interface = "org.tcptracker.Tracker1")]
trait Tracker {
    fn block(&self, address: &str, seconds: u64, reason: &str) -> zbus::Result<()>;
    fn unblock(&self, address: &str) -> zbus::Result<()>;
    fn list(&self) -> zbus::Result<Vec<Block>>;
    fn stats(&self) -> zbus::Result<HashMap<String, u64>>;
}

/// A running instance.
pub(super) struct Instance {
    pub(super) interface: InterfaceName,
    proxy: TrackerProxy<'static>,
}

impl Instance {
    pub(super) async fn list(&self) -> Result<Vec<Block>, ClientError> {
        self.proxy.list().await.map_err(|error| self.explain(error))
    }

    pub(super) async fn stats(&self) -> Result<HashMap<String, u64>, ClientError> {
        self.proxy.stats().await.map_err(|error| self.explain(error))
    }

    pub(super) async fn block(
        &self,
        network: IpNet,
        seconds: u64,
        reason: &str,
    ) -> Result<(), ClientError> {
        let address = show_network(&network);
        self.proxy.block(&address, seconds, reason).await.map_err(|error| self.explain(error))
    }

    /// False if it was not blocked.
    pub(super) async fn unblock(&self, network: IpNet) -> Result<bool, ClientError> {
        match self.proxy.unblock(&show_network(&network)).await {
            Ok(()) => Ok(true),
            Err(error) if error_name(&error) == Some(NOT_BLOCKED.to_owned()) => Ok(false),
            Err(error) => Err(self.explain(error)),
        }
    }

    fn explain(&self, error: zbus::Error) -> ClientError {
        match error_name(&error).as_deref() {
            Some("org.freedesktop.DBus.Error.AccessDenied") => ClientError::Denied,
            Some(
                "org.freedesktop.DBus.Error.ServiceUnknown"
                | "org.freedesktop.DBus.Error.NameHasNoOwner",
            ) => ClientError::NotRunningOn(self.interface.clone()),
            _ => match error {
                zbus::Error::MethodError(_, Some(text), _) => ClientError::Refused(text),
                error => ClientError::Bus { interface: self.interface.clone(), error },
            },
        }
    }
}

/// The name of an error that came as the answer to a call.
fn error_name(error: &zbus::Error) -> Option<String> {
    match error {
        zbus::Error::MethodError(name, ..) => Some(name.to_string()),
        zbus::Error::FDO(error) => Some(error.name().to_string()),
        _ => None,
    }
}

/// The running instances, or the one on an interface; at least one.
pub(super) async fn instances(only: Option<&InterfaceName>) -> Result<Vec<Instance>, ClientError> {
    let connection = Connection::system().await.map_err(ClientError::NoBus)?;
    let names = async { DBusProxy::new(&connection).await?.list_names().await.map_err(Into::into) };
    let mut interfaces: Vec<InterfaceName> = names
        .await
        .map_err(ClientError::NoBus)?
        .iter()
        .filter_map(|name| interface_of(name.as_str()))
        .filter(|interface| only.is_none_or(|only| only == interface))
        .collect();
    interfaces.sort_unstable();
    if interfaces.is_empty() {
        return Err(only.cloned().map_or(ClientError::NotRunning, ClientError::NotRunningOn));
    }
    let mut instances = Vec::with_capacity(interfaces.len());
    for interface in interfaces {
        let proxy = async {
            TrackerProxy::builder(&connection)
                .destination(bus_name(&interface))
                .path(object_path(&interface))
                .cache_properties(CacheProperties::No)
                .build()
                .await
        };
        match proxy.await {
            Ok(proxy) => instances.push(Instance { interface, proxy }),
            Err(error) => return Err(ClientError::Bus { interface, error }),
        }
    }
    Ok(instances)
}
