//! The client's side of the bus: finds the running instances, asks all of them at once, and turns what
//! can go wrong into sentences.
//!
//! An instance that does not answer holds nobody up for longer than [`PATIENCE`].

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::io::IsTerminal;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use ipnet::IpNet;
use serde::Serialize;
use zbus::connection::Builder;
use zbus::fdo::DBusProxy;
use zbus::proxy::MethodFlags;
use zbus::wire::DynamicDeserialize;
use zbus::{Connection, DBusError, DynamicType, OwnedVariant, Proxy};

use crate::api::dbus::names::{INTERFACE, bus_name, interface_of, object_path};
use crate::types::ifname::IfName;
use crate::types::network::show_network;

/// How long an instance may take to answer: it does so in milliseconds, but for a machine that is
/// busy otherwise.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Why the service did not answer as hoped.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no bus.
    #[error("cannot reach the system bus ({0}); is dbus running? systemctl status dbus")]
    NoBus(zbus::Error),
    /// The bus went away.
    #[error("the system bus is gone; when it is back: tcptracker watch")]
    BusGone,
    /// No instance at all.
    #[error("tcptracker is not running; start it: systemctl start tcptracker@INTERFACE")]
    NotRunning,
    /// Not on this interface.
    #[error("tcptracker is not running on {0}; start it: systemctl start {unit}", unit = .0.unit())]
    NotRunningOn(IfName),
    /// There is no such interface either.
    #[error("there is no interface {interface} on this host; {others}")]
    NoSuchInterface {
        /// What was asked for.
        interface: IfName,
        /// What there is.
        others: String,
    },
    /// The service does not let this user; its own sentence.
    #[error("permission denied: {0}")]
    Denied(String),
    /// The bus does not even let him ask.
    #[error(
        "permission denied: the bus does not let you ask the service; try sudo, and see what \
         `tcptracker doctor` says of the bus policy"
    )]
    DeniedByBus,
    /// An instance said no; its own sentence.
    #[error("{why}")]
    Refused {
        /// The interface.
        interface: IfName,
        /// The sentence.
        why: String,
    },
    /// The service's configuration is wrong; its own sentences.
    #[error("{0}")]
    Configuration(String),
    /// No instance blocks it.
    #[error("{} is not blocked; `tcptracker list` shows what is", show_network(.0))]
    NotBlocked(IpNet),
    /// No instance has ever seen it misbehave.
    #[error(
        "{} is not blocked, nor was it lately; `tcptracker list` shows what is",
        show_network(.0)
    )]
    NothingKnown(IpNet),
    /// An instance took too long.
    #[error(
        "the service on {0} has not answered for {seconds}s; look at it: \
         systemctl status {unit}",
        unit = .0.unit(),
        seconds = PATIENCE.as_secs()
    )]
    Silent(IfName),
    /// The service is older than the command line.
    #[error(
        "the service on {0} does not know this command, it is an older version; restart it: \
         systemctl restart {unit}",
        unit = .0.unit(),
    )]
    Outdated(IfName),
    /// Anything else on the way.
    #[error("the service on {interface} did not answer: {error}")]
    Bus {
        /// The interface.
        interface: IfName,
        /// What happened.
        error: zbus::Error,
    },
}

impl ClientError {
    /// Where others answer otherwise, an instance's sentence says whose it is.
    fn say_whose(&mut self) {
        if let Self::Refused { interface, why } = self {
            *why = format!("{interface}: {why}");
        }
    }
}

/// A block as the bus tells it: address, since, until, offences, reason.
pub type Block = (String, u64, u64, u32, String);

/// A running instance.
pub struct Instance {
    pub interface: IfName,
    connection: Connection,
    /// A person may be asked for a password, and takes the time it takes.
    interactive: bool,
}

impl Instance {
    pub async fn list(&self) -> Result<Vec<Block>, ClientError> {
        self.call("List", &()).await.map_err(|error| self.explain(error))
    }

    pub async fn stats(&self) -> Result<HashMap<String, u64>, ClientError> {
        self.call("Stats", &()).await.map_err(|error| self.explain(error))
    }

    /// Nothing if it knows nothing of it.
    pub async fn why(
        &self,
        network: IpNet,
    ) -> Result<Option<HashMap<String, OwnedVariant>>, ClientError> {
        let told = known(self.call("Why", &show_network(&network)).await);
        told.map_err(|error| self.explain(error))
    }

    pub async fn block(
        &self,
        network: IpNet,
        seconds: u64,
        reason: &str,
    ) -> Result<(), ClientError> {
        let arguments = (show_network(&network), seconds, reason);
        self.call("Block", &arguments).await.map_err(|error| self.explain(error))
    }

    /// False if it was not blocked.
    pub async fn unblock(&self, network: IpNet) -> Result<bool, ClientError> {
        let done = known(self.call::<_, ()>("Unblock", &show_network(&network)).await);
        done.map(|done| done.is_some()).map_err(|error| self.explain(error))
    }

    pub async fn reload(&self) -> Result<(), ClientError> {
        self.call("Reload", &()).await.map_err(|error| self.explain(error))
    }

    /// Its state and its version.
    pub async fn state(&self) -> Result<(String, String), ClientError> {
        let property = async |name: &str| {
            let (own, path) = (bus_name(&self.interface), object_path(&self.interface));
            let properties = Some("org.freedesktop.DBus.Properties");
            let arguments = (INTERFACE, name);
            let call = self.connection.call_method(Some(own), path, properties, "Get", &arguments);
            let value: OwnedVariant = call.await?.body().deserialize()?;
            String::try_from(value)
        };
        let asked = async { Ok((property("State").await?, property("Version").await?)) };
        asked.await.map_err(|error: zbus::Error| self.explain(error))
    }

    async fn call<B, R>(&self, member: &'static str, arguments: &B) -> zbus::Result<R>
    where
        B: Serialize + DynamicType,
        R: for<'d> DynamicDeserialize<'d>,
    {
        let (own, path) = (bus_name(&self.interface), object_path(&self.interface));
        if self.interactive {
            let proxy = Proxy::new(&self.connection, own, path, INTERFACE).await?;
            let flags = MethodFlags::ALLOW_INTERACTIVE_AUTH;
            let answer = proxy.call_with_flags(member, flags, arguments).await?;
            return answer.ok_or(zbus::Error::InvalidReply);
        }
        let call = self.connection.call_method(Some(own), path, Some(INTERFACE), member, arguments);
        call.await?.body().deserialize()
    }

    fn explain(&self, error: zbus::Error) -> ClientError {
        let interface = self.interface.clone();
        let Some((name, text)) = error_told(&error) else {
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
            // The last: whoever was asked has left the bus in between.
            "ServiceUnknown" | "NameHasNoOwner" | "NoReply" => ClientError::NotRunningOn(interface),
            "UnknownMethod" => ClientError::Outdated(interface),
            INVALID => ClientError::Configuration(text),
            _ if text.is_empty() => ClientError::Bus { interface, error },
            _ => ClientError::Refused { interface, why: text },
        }
    }
}

const NOT_BLOCKED: &str = "org.tcptracker.Tracker1.Error.NotBlocked";
const INVALID: &str = "org.tcptracker.Tracker1.Error.InvalidConfiguration";

/// How dbus-daemon and dbus-broker begin when it is them who do not allow a call.
const DENIALS_OF_BUS: [&str; 2] = ["Rejected ", "Sender is not authorized"];

/// Nothing where the service says that it does not block this.
fn known<T>(answer: zbus::Result<T>) -> zbus::Result<Option<T>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if error_told(&error).is_some_and(|(name, _)| name == NOT_BLOCKED) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Name and text of an error that came as the answer to a call.
fn error_told(error: &zbus::Error) -> Option<(String, String)> {
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

/// What is asked for: to look, or to change something, which may take a password.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Look,
    Change,
}

/// The system bus.
pub async fn connect() -> Result<Connection, ClientError> {
    connect_to(Builder::system()).await
}

/// A bus.
pub async fn connect_to(builder: Builder<'_>) -> Result<Connection, ClientError> {
    builder.method_timeout(PATIENCE).build().await.map_err(ClientError::NoBus)
}

/// The running instances, or the one on an interface; at least one.
pub async fn instances(
    only: Option<&IfName>,
    purpose: Purpose,
) -> Result<Vec<Instance>, ClientError> {
    let connection = connect().await?;
    instances_on(&connection, only, purpose).await
}

/// The same on a bus that is there.
pub async fn instances_on(
    connection: &Connection,
    only: Option<&IfName>,
    purpose: Purpose,
) -> Result<Vec<Instance>, ClientError> {
    let names = async { DBusProxy::new(connection).await?.list_names().await.map_err(Into::into) };
    let names = names.await.map_err(ClientError::NoBus)?;
    let mut running: Vec<IfName> =
        names.iter().filter_map(|name| interface_of(name.as_str())).collect();
    running.sort_unstable();
    let chosen: Vec<&IfName> =
        running.iter().filter(|interface| only.is_none_or(|only| only == *interface)).collect();
    if chosen.is_empty() {
        return Err(only.map_or(ClientError::NotRunning, |only| not_running_on(only, &running)));
    }
    // Polkit asks neither root nor who has no terminal.
    let person = !rustix::process::geteuid().is_root() && std::io::stdin().is_terminal();
    let interactive = purpose == Purpose::Change && person;
    let instance = |interface: &IfName| Instance {
        interface: interface.clone(),
        connection: connection.clone(),
        interactive,
    };
    Ok(chosen.into_iter().map(instance).collect())
}

fn not_running_on(interface: &IfName, running: &[IfName]) -> ClientError {
    let present = present();
    let interface = interface.clone();
    if interface.is_any() || present.contains(&interface) {
        return ClientError::NotRunningOn(interface);
    }
    let listed = |names: &[IfName]| names.iter().map(IfName::as_str).collect::<Vec<_>>().join(", ");
    let others = match running {
        [] => format!("there are: {}", listed(&present)),
        running => format!("tcptracker is running on: {}", listed(running)),
    };
    ClientError::NoSuchInterface { interface, others }
}

/// The interfaces of this host.
fn present() -> Vec<IfName> {
    let entries = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut names: Vec<IfName> = names.collect();
    names.sort_unstable();
    names
}

/// What several instances answered, and what went wrong with the others.
pub struct Answers<T> {
    pub asked: usize,
    pub told: Vec<(IfName, T)>,
    pub failures: Vec<ClientError>,
}

/// Asks all instances at once.
pub async fn ask_each<T>(
    instances: &[Instance],
    ask: impl AsyncFn(&Instance) -> Result<T, ClientError>,
) -> Answers<T> {
    let asked = instances.iter().map(|instance| Box::pin(ask(instance))).collect();
    let mut answers = Answers { asked: instances.len(), told: Vec::new(), failures: Vec::new() };
    for (instance, answer) in instances.iter().zip(all_of(asked).await) {
        match answer {
            Ok(value) => answers.told.push((instance.interface.clone(), value)),
            Err(error) => answers.failures.push(error),
        }
    }
    let mut sentences = answers.failures.iter().map(ToString::to_string);
    let first = sentences.next();
    if !answers.told.is_empty() || sentences.any(|other| Some(other) != first) {
        answers.failures.iter_mut().for_each(ClientError::say_whose);
    }
    answers
}

/// Waits for all, in no order.
async fn all_of<F: Future>(mut waiting: Vec<Pin<Box<F>>>) -> Vec<F::Output> {
    let mut done: Vec<Option<F::Output>> = waiting.iter().map(|_| None).collect();
    poll_fn(|context| {
        for (future, output) in waiting.iter_mut().zip(&mut done) {
            if output.is_none()
                && let Poll::Ready(value) = future.as_mut().poll(context)
            {
                *output = Some(value);
            }
        }
        if done.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}
