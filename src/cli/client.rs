//! The client side of D-Bus: finds the running instances, asks all of them at once, and makes errors of
//! what can go wrong.
//!
//! Must not wait for an instance longer than [`PATIENCE`].

use std::collections::HashMap;
use std::future::{Future, ready};
use std::io::IsTerminal;
use std::pin::Pin;
use std::time::Duration;

use futures_lite::future::zip;
use ipnet::IpNet;
use serde::Serialize;
use zbus::connection::Builder;
use zbus::fdo::DBusProxy;
use zbus::proxy::MethodFlags;
use zbus::wire::DynamicDeserialize;
use zbus::{Connection, DBusError, DynamicType, OwnedVariant, Proxy};

use crate::api::dbus::names::{INTERFACE, bus_name, interface_of, object_path};
use crate::cli::interfaces::{is_present, listed, present, start_command};
use crate::cli::units;
use crate::types::{IfName, show_network};

/// How long an instance may take to answer. It takes milliseconds on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Why a request to the service failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot reach the system bus: {0}; start it: systemctl start dbus")]
    NoBus(zbus::Error),
    #[error("the connection to the system bus was closed; try again when the bus runs")]
    BusGone,
    /// No instance runs, or not the one that was asked for. The text says what to do.
    #[error("{0}")]
    NotRunning(String),
    #[error("there is no interface {interface} on this host; {others}")]
    NoSuchInterface { interface: IfName, others: String },
    /// The service's own text.
    #[error("permission denied: {0}")]
    Denied(String),
    #[error(
        "permission denied: the bus does not allow calls to the service; use sudo, and check the bus \
         policy with `tcptracker doctor`"
    )]
    DeniedByBus,
    /// The service's own text.
    #[error("{why}")]
    Refused { interface: IfName, why: String },
    /// The service's own text, a line per problem.
    #[error("{0}")]
    Configuration(String),
    /// The address is not blocked, or nothing is known about it. The service's own text.
    #[error("{0}")]
    Unknown(String),
    #[error("{} is not blocked; `tcptracker list` shows what is", show_network(.0))]
    NotBlocked(IpNet),
    #[error(
        "nothing is known about {}: it is not blocked, not exempt, was not unblocked recently, and has no \
         earlier offences; `tcptracker list` shows what is blocked",
        show_network(.0)
    )]
    NothingKnown(IpNet),
    #[error(
        "no answer from the service on {0} for {seconds} s; check it: systemctl status {unit}",
        unit = .0.unit(),
        seconds = PATIENCE.as_secs()
    )]
    Silent(IfName),
    #[error(
        "the service on {0} does not know this command: it is an older version; restart it: \
         systemctl restart {unit}",
        unit = .0.unit(),
    )]
    Outdated(IfName),
    #[error(
        "no answer from the service on {interface}: {error}; check it: systemctl status {unit}",
        unit = .interface.unit(),
    )]
    Bus { interface: IfName, error: zbus::Error },
}

impl ClientError {
    /// Adds the interface to the text, for failures that only some instances report.
    pub fn name_interface(&mut self) {
        if let Self::Refused { interface, why } = self {
            *why = format!("{interface}: {why}");
        }
    }

    /// Tells whether only one of several requests has failed, so that the others are worth a try.
    pub fn is_of_one_request(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::NotBlocked(_))
    }
}

/// A block in a D-Bus reply: address, since, until, offences, reason.
pub type Block = (String, u64, u64, u32, String);

/// A running instance.
pub struct Instance {
    interface: IfName,
    connection: Connection,
    /// polkit may ask the user for a password, which takes longer than [`PATIENCE`].
    interactive: bool,
}

impl Instance {
    pub fn interface(&self) -> &IfName {
        &self.interface
    }

    pub async fn list(&self) -> Result<Vec<Block>, ClientError> {
        self.call("List", &()).await
    }

    pub async fn stats(&self) -> Result<HashMap<String, u64>, ClientError> {
        self.call("Stats", &()).await
    }

    /// Returns None if nothing is known about the address.
    pub async fn why(
        &self,
        network: IpNet,
    ) -> Result<Option<HashMap<String, OwnedVariant>>, ClientError> {
        known(self.call("Why", &show_network(&network)).await)
    }

    /// Returns how far a source is from a block.
    pub async fn pending(
        &self,
        network: IpNet,
    ) -> Result<HashMap<String, OwnedVariant>, ClientError> {
        self.call("Pending", &show_network(&network)).await
    }

    pub async fn block(
        &self,
        network: IpNet,
        seconds: u64,
        reason: &str,
    ) -> Result<(), ClientError> {
        self.call("Block", &(show_network(&network), seconds, reason)).await
    }

    /// Returns false if the address was not blocked.
    pub async fn unblock(&self, network: IpNet) -> Result<bool, ClientError> {
        Ok(known(self.call::<_, ()>("Unblock", &show_network(&network)).await)?.is_some())
    }

    pub async fn reload(&self) -> Result<(), ClientError> {
        self.call("Reload", &()).await
    }

    /// Returns the state and the version.
    pub async fn state(&self) -> Result<(String, String), ClientError> {
        let asked = async {
            let proxy = self.proxy().await?;
            Ok((proxy.get_property("State").await?, proxy.get_property("Version").await?))
        };
        asked.await.map_err(|error| self.explain(error))
    }

    async fn call<B, R>(&self, member: &'static str, arguments: &B) -> Result<R, ClientError>
    where
        B: Serialize + DynamicType,
        R: for<'d> DynamicDeserialize<'d>,
    {
        let answer = async {
            let proxy = self.proxy().await?;
            if !self.interactive {
                return proxy.call(member, arguments).await;
            }
            let flags = MethodFlags::ALLOW_INTERACTIVE_AUTH;
            let answer = proxy.call_with_flags(member, flags, arguments).await?;
            answer.ok_or(zbus::Error::InvalidReply)
        };
        answer.await.map_err(|error| self.explain(error))
    }

    async fn proxy(&self) -> zbus::Result<Proxy<'static>> {
        let (name, path) = (bus_name(&self.interface), object_path(&self.interface));
        Proxy::new(&self.connection, name, path, INTERFACE).await
    }

    fn explain(&self, error: zbus::Error) -> ClientError {
        let interface = self.interface.clone();
        let Some((name, text)) = error_reply(&error) else {
            return match error {
                zbus::Error::InputOutput(error) if error.kind() == std::io::ErrorKind::TimedOut => {
                    ClientError::Silent(interface)
                }
                error => ClientError::Bus { interface, error },
            };
        };
        match name.strip_prefix("org.freedesktop.DBus.Error.").unwrap_or(&name) {
            "AccessDenied" | "AuthFailed"
                if DENIALS_OF_BUS.iter().any(|its| text.starts_with(its)) =>
            {
                ClientError::DeniedByBus
            }
            "AccessDenied" | "AuthFailed" | "InteractiveAuthorizationRequired" => {
                ClientError::Denied(text)
            }
            // The instance has left the bus meanwhile.
            "ServiceUnknown" | "NameHasNoOwner" | "NoReply" => {
                let unit = interface.unit();
                ClientError::NotRunning(format!(
                    "the service on {interface} has stopped; see: systemctl status {unit}"
                ))
            }
            "UnknownMethod" => ClientError::Outdated(interface),
            INVALID => ClientError::Configuration(text),
            NOT_BLOCKED => ClientError::Unknown(text),
            _ if text.is_empty() => ClientError::Bus { interface, error },
            _ => ClientError::Refused { interface, why: text },
        }
    }
}

const NOT_BLOCKED: &str = "org.tcptracker.Tracker1.Error.NotBlocked";
const INVALID: &str = "org.tcptracker.Tracker1.Error.InvalidConfiguration";

/// How dbus-daemon and dbus-broker begin the text if they do not allow a call.
const DENIALS_OF_BUS: [&str; 2] = ["Rejected ", "Sender is not authorized"];

/// Makes None of the error that an address is not blocked.
fn known<T>(answer: Result<T, ClientError>) -> Result<Option<T>, ClientError> {
    match answer {
        Err(ClientError::Unknown(_)) => Ok(None),
        answer => answer.map(Some),
    }
}

/// Returns name and text of an error reply.
fn error_reply(error: &zbus::Error) -> Option<(String, String)> {
    match error {
        zbus::Error::MethodError(name, text, _) => {
            Some((name.to_string(), text.clone().unwrap_or_default()))
        }
        zbus::Error::FDO(error) => {
            let text = error.description().unwrap_or_default();
            Some((error.name().to_string(), text.to_owned()))
        }
        _ => None,
    }
}

/// Whether a command changes something, for which polkit may ask for a password.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Look,
    Change,
}

pub async fn connect() -> Result<Connection, ClientError> {
    connect_to(Builder::system()).await
}

pub async fn connect_to(builder: Builder<'_>) -> Result<Connection, ClientError> {
    builder.method_timeout(PATIENCE).build().await.map_err(ClientError::NoBus)
}

/// Returns the running instances, or the one on an interface: at least one.
pub async fn instances(
    connection: &Connection,
    only: Option<&IfName>,
    purpose: Purpose,
) -> Result<Vec<Instance>, ClientError> {
    let mut running = running(connection).await.map_err(ClientError::NoBus)?;
    if !running.iter().any(|interface| only.is_none_or(|only| only == interface)) {
        return Err(not_running(connection, only, &running).await);
    }
    running.retain(|interface| only.is_none_or(|only| only == interface));
    // polkit asks neither root nor a user without a terminal.
    let person = !rustix::process::geteuid().is_root() && std::io::stdin().is_terminal();
    let interactive = purpose == Purpose::Change && person;
    let instance = |interface| Instance { interface, connection: connection.clone(), interactive };
    Ok(running.into_iter().map(instance).collect())
}

/// Returns the interfaces of the instances on the bus.
async fn running(connection: &Connection) -> zbus::Result<Vec<IfName>> {
    let names = DBusProxy::new(connection).await?.list_names().await?;
    let interfaces = names.iter().filter_map(|name| interface_of(name.as_str()));
    let mut interfaces: Vec<IfName> = interfaces.collect();
    interfaces.sort_unstable();
    Ok(interfaces)
}

/// Returns why there is no instance, or not this one: what systemd says about it, or how to start it.
pub async fn not_running(
    connection: &Connection,
    only: Option<&IfName>,
    running: &[IfName],
) -> ClientError {
    let units = units::not_running(connection).await;
    let units = units.iter().filter(|unit| only.is_none_or(|only| only == unit.interface()));
    let problems: Vec<String> = units.map(|unit| unit.explain().join("; ")).collect();
    if !problems.is_empty() {
        return ClientError::NotRunning(problems.join("\n"));
    }
    let start = start_command(only);
    match only {
        None => ClientError::NotRunning(format!("no instance is running; start one: {start}")),
        Some(interface) if is_present(interface) => ClientError::NotRunning(format!(
            "no instance is running on {interface}; start it: {start}"
        )),
        Some(interface) => ClientError::NoSuchInterface {
            interface: interface.clone(),
            others: match running {
                [] => format!("there are: {}", listed(&present())),
                running => format!("tcptracker is running on: {}", listed(running)),
            },
        },
    }
}

/// The answers of several instances, and the failures of the others.
pub struct Answers<T> {
    pub asked: usize,
    pub answered: Vec<(IfName, T)>,
    pub failures: Vec<ClientError>,
}

/// Connects to the bus, and asks all instances or the one on an interface.
pub fn ask<T>(
    only: Option<&IfName>,
    purpose: Purpose,
    ask: impl AsyncFn(&Instance) -> Result<T, ClientError>,
) -> Result<Answers<T>, ClientError> {
    zbus::block_on(async {
        let instances = instances(&connect().await?, only, purpose).await?;
        Ok(ask_each(&instances, ask).await)
    })
}

/// Asks all instances at once.
pub async fn ask_each<T>(
    instances: &[Instance],
    ask: impl AsyncFn(&Instance) -> Result<T, ClientError>,
) -> Answers<T> {
    let asked = instances.iter().map(|instance| Box::pin(ask(instance)));
    let mut answers =
        Answers { asked: instances.len(), answered: Vec::new(), failures: Vec::new() };
    for (instance, answer) in instances.iter().zip(all_of(asked).await) {
        match answer {
            Ok(value) => answers.answered.push((instance.interface.clone(), value)),
            Err(error) => answers.failures.push(error),
        }
    }
    answers
}

/// Runs all futures at once until each is ready.
async fn all_of<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut all: Pin<Box<dyn Future<Output = Vec<F::Output>> + '_>> = Box::pin(ready(Vec::new()));
    for future in futures {
        all = Box::pin(async move {
            let (mut done, output) = zip(all, future).await;
            done.push(output);
            done
        });
    }
    all.await
}
