//! What systemd knows about the instances that do not answer on the bus.
//!
//! Asks over D-Bus, read-only. Without systemd there are no units, which is no error.

use zbus::{Connection, OwnedObjectPath, OwnedVariant};

use crate::types::IfName;

const SYSTEMD: &str = "org.freedesktop.systemd1";
const NAMES: &str = "tcptracker@*.service";

/// The links to units that are enabled.
const ENABLED: &str = "/etc/systemd/system/*/tcptracker@*.service";

/// An instance that should run, but does not.
pub struct Unit {
    interface: IfName,
    state: State,
}

enum State {
    /// Enabled, but not started, or stopped.
    Stopped,
    Starting,
    /// The start fails, and systemd retries.
    Restarting(String),
    Failed(String),
}

impl Unit {
    pub fn interface(&self) -> &IfName {
        &self.interface
    }

    /// Returns what is wrong with the unit.
    pub fn problem(&self) -> String {
        let instance = format!("the instance on {}", self.interface);
        match &self.state {
            State::Stopped => format!("{instance} is enabled but not running"),
            State::Starting => format!("{instance} is starting"),
            State::Restarting(cause) => format!("{instance} does not start: {cause}"),
            State::Failed(cause) => format!("{instance} has failed: {cause}"),
        }
    }

    /// Returns what to do about it.
    pub fn remedy(&self) -> String {
        let unit = self.interface.unit();
        match &self.state {
            State::Stopped => format!("start it: systemctl start {unit}"),
            State::Starting | State::Restarting(_) => format!("see: journalctl -u {unit}"),
            State::Failed(_) => {
                format!("see: journalctl -u {unit}; then: systemctl restart {unit}")
            }
        }
    }
}

/// Returns the instances that are enabled or loaded, but do not run. Empty without systemd.
pub async fn not_running(connection: &Connection) -> Vec<Unit> {
    let Ok(loaded) = loaded(connection).await else { return Vec::new() };
    let is_loaded = |interface: &IfName| loaded.iter().any(|unit| unit.interface == *interface);
    let enabled = enabled();
    let unloaded = enabled.iter().filter(|interface| !is_loaded(interface)).cloned();
    let unloaded: Vec<Loaded> = unloaded.map(Loaded::inactive).collect();
    let mut units = Vec::new();
    for unit in loaded.into_iter().chain(unloaded) {
        let state = match (unit.active.as_str(), unit.is_restarting) {
            ("inactive", _) if enabled.contains(&unit.interface) => State::Stopped,
            ("failed", _) => State::Failed(cause(connection, &unit).await),
            ("activating", true) => State::Restarting(cause(connection, &unit).await),
            ("activating", false) => State::Starting,
            _ => continue,
        };
        units.push(Unit { interface: unit.interface, state });
    }
    units
}

/// A unit as the manager lists it.
struct Loaded {
    interface: IfName,
    active: String,
    is_restarting: bool,
    path: Option<OwnedObjectPath>,
}

impl Loaded {
    fn inactive(interface: IfName) -> Self {
        Self { interface, active: "inactive".to_owned(), is_restarting: false, path: None }
    }
}

/// An element of the reply of `ListUnitsByPatterns` (org.freedesktop.systemd1(5)).
type Listed =
    (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

async fn loaded(connection: &Connection) -> zbus::Result<Vec<Loaded>> {
    let arguments = (Vec::<&str>::new(), vec![NAMES]);
    let reply = connection
        .call_method(
            Some(SYSTEMD),
            "/org/freedesktop/systemd1",
            Some("org.freedesktop.systemd1.Manager"),
            "ListUnitsByPatterns",
            &arguments,
        )
        .await?;
    let listed: Vec<Listed> = reply.body().deserialize()?;
    let unit = |(name, _, _, active, sub, _, path, ..): Listed| {
        let is_restarting = sub.starts_with("auto-restart");
        Some(Loaded { interface: interface_of(&name)?, active, is_restarting, path: Some(path) })
    };
    Ok(listed.into_iter().filter_map(unit).collect())
}

fn enabled() -> Vec<IfName> {
    let files = glob::glob(ENABLED).into_iter().flatten().flatten();
    let names = files.filter_map(|file| interface_of(file.file_name()?.to_str()?));
    let mut names: Vec<IfName> = names.collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Returns why a unit has failed: the error that the service has reported as its status, or what systemd
/// has seen.
async fn cause(connection: &Connection, unit: &Loaded) -> String {
    let property = async |name: &str| {
        let path = unit.path.as_ref()?;
        let properties = Some("org.freedesktop.DBus.Properties");
        let arguments = ("org.freedesktop.systemd1.Service", name);
        let reply = connection.call_method(Some(SYSTEMD), path, properties, "Get", &arguments);
        reply.await.ok()?.body().deserialize::<OwnedVariant>().ok()
    };
    let text = async |name| property(name).await.and_then(|value| String::try_from(value).ok());
    let result = text("Result").await.unwrap_or_default();
    // If the service was killed, its last status is no error.
    let has_exited = matches!(result.as_str(), "exit-code" | "start-limit-hit");
    match text("StatusText").await {
        Some(error) if has_exited && !error.is_empty() => error,
        _ if has_exited => match property("ExecMainStatus").await.map(i32::try_from) {
            Some(Ok(status)) => format!("exit status {status}"),
            _ => result,
        },
        _ => format!("systemd reports {result:?}"),
    }
}

/// Returns the interface of a unit name (systemd.unit(5), "String escaping for inclusion in unit names").
fn interface_of(unit: &str) -> Option<IfName> {
    let escaped = unit.strip_prefix("tcptracker@")?.strip_suffix(".service")?;
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut rest = escaped.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        match (first, tail) {
            (b'-', _) => bytes.push(b'/'),
            (b'\\', [b'x', digits @ ..]) => {
                let digits = std::str::from_utf8(digits.get(..2)?).ok()?;
                bytes.push(u8::from_str_radix(digits, 16).ok()?);
                rest = tail.get(3..)?;
            }
            _ => bytes.push(first),
        }
    }
    String::from_utf8(bytes).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_are_unescaped() {
        for (unit, interface) in [
            ("tcptracker@eth0.service", Some("eth0")),
            ("tcptracker@eth0.100.service", Some("eth0.100")),
            (r"tcptracker@wg\x2d0.service", Some("wg-0")),
            // systemd decodes this one as wg/0.
            ("tcptracker@wg-0.service", None),
            (r"tcptracker@a\x2.service", None),
            ("tcptracker@.service", None),
            ("ssh.service", None),
        ] {
            assert_eq!(interface_of(unit).as_ref().map(IfName::as_str), interface, "{unit}");
        }
    }
}
