//! What systemd knows about the instances that do not answer on the bus.
//!
//! Asks over D-Bus, read-only. Without systemd there are no units, which is no error.

use std::collections::BTreeSet;

use zbus::{Connection, OwnedObjectPath, Proxy};

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

    /// Returns what is wrong with the unit, and what to do about it.
    pub fn explain(&self) -> [String; 2] {
        let (instance, unit) =
            (format!("the instance on {}", self.interface), self.interface.unit());
        let log = format!("see: journalctl -u {unit}");
        match &self.state {
            State::Stopped => [
                format!("{instance} is enabled but not running"),
                format!("start it: systemctl start {unit}"),
            ],
            State::Starting => [format!("{instance} is starting"), log],
            State::Restarting(cause) => [format!("{instance} does not start: {cause}"), log],
            State::Failed(cause) => [
                format!("{instance} has failed: {cause}"),
                format!("{log}; then: systemctl restart {unit}"),
            ],
        }
    }
}

/// Returns the instances that are enabled or loaded, but do not run. Empty without systemd.
pub async fn not_running(connection: &Connection) -> Vec<Unit> {
    let Ok(loaded) = loaded(connection).await else { return Vec::new() };
    let mut enabled = enabled();
    let mut units = Vec::new();
    for (name, _, _, active, sub, _, path, ..) in loaded {
        let Some(interface) = interface_of(&name) else { continue };
        let is_enabled = enabled.remove(&interface);
        let state = match (active.as_str(), sub.starts_with("auto-restart")) {
            ("inactive", _) if is_enabled => State::Stopped,
            ("failed", _) => State::Failed(cause(connection, path).await),
            ("activating", true) => State::Restarting(cause(connection, path).await),
            ("activating", false) => State::Starting,
            _ => continue,
        };
        units.push(Unit { interface, state });
    }
    let unloaded = enabled.into_iter();
    units.extend(unloaded.map(|interface| Unit { interface, state: State::Stopped }));
    units
}

/// An element of the reply of `ListUnitsByPatterns` (org.freedesktop.systemd1(5)).
type Listed =
    (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

async fn loaded(connection: &Connection) -> zbus::Result<Vec<Listed>> {
    let (path, manager) = ("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager");
    let manager = Proxy::new(connection, SYSTEMD, path, manager).await?;
    manager.call("ListUnitsByPatterns", &(Vec::<&str>::new(), vec![NAMES])).await
}

fn enabled() -> BTreeSet<IfName> {
    let files = glob::glob(ENABLED).into_iter().flatten().flatten();
    files.filter_map(|file| interface_of(file.file_name()?.to_str()?)).collect()
}

/// Returns why a unit has failed: the error that the service has reported as its status, or what systemd
/// has seen.
async fn cause(connection: &Connection, path: OwnedObjectPath) -> String {
    let cause = async {
        let interface = "org.freedesktop.systemd1.Service";
        let service = Proxy::new(connection, SYSTEMD, path, interface).await?;
        let result: String = service.get_property("Result").await?;
        // If the service was killed, its last status is no error.
        if !matches!(result.as_str(), "exit-code" | "start-limit-hit") {
            return Ok(format!("systemd reports {result:?}"));
        }
        let (error, status): (String, i32) = (
            service.get_property("StatusText").await?,
            service.get_property("ExecMainStatus").await?,
        );
        Ok(if error.is_empty() { format!("exit status {status}") } else { error })
    };
    cause.await.unwrap_or_else(|error: zbus::Error| format!("unknown ({error})"))
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
