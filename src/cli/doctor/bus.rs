//! Checks the system bus, its policy and polkit.

use std::path::Path;

use zbus::Connection;
use zbus::fdo::DBusProxy;

use crate::api::dbus::names::COMMON_NAME;
use crate::cli::client::connect;
use crate::cli::doctor::system::first_of;
use crate::cli::doctor::{Finding, Verdict, instances};
use crate::config::Config;

const POLICY: &str = "org.tcptracker.Tracker1.conf";
const POLICY_DIRECTORIES: [&str; 2] = ["/etc/dbus-1/system.d", "/usr/share/dbus-1/system.d"];

const ACTIONS: &str = "/usr/share/polkit-1/actions/org.tcptracker.Tracker1.policy";
const POLKIT: &str = "org.freedesktop.PolicyKit1";

pub fn examine(config: &Config, file: Option<&Path>) -> Vec<Finding> {
    // With bus.enabled = false, the service runs without the bus.
    let severity = if config.bus.enabled { Verdict::Failed } else { Verdict::Warning };
    zbus::block_on(async {
        let connection = match connect().await {
            Ok(connection) => connection,
            Err(error) => {
                let remedy =
                    "systemctl start dbus; on a host without a bus, set bus.enabled = false";
                return vec![Finding::bad("bus", severity, error.to_string(), remedy)];
            }
        };
        let mut findings = vec![
            Finding::ok("bus", "reachable"),
            policy(&connection, severity).await,
            polkit(&connection).await,
        ];
        findings.extend(instances::examine(&connection, file).await);
        findings
    })
}

/// Checks whether the service may own its bus names. Asks the bus if possible, which may not have read the
/// installed policy yet.
async fn policy(connection: &Connection, severity: Verdict) -> Finding {
    const CHECK: &str = "bus policy";
    let file = first_of(&POLICY_DIRECTORIES, POLICY);
    // The policy never allows other users than root.
    let is_root = rustix::process::geteuid().is_root();
    let allowed = if is_root { may_own_our_names(connection).await } else { file.is_some() };
    match (allowed, file) {
        (true, Some(file)) => Finding::ok(CHECK, file.display().to_string()),
        (true, None) => Finding::ok(CHECK, "the service may own its bus names"),
        (false, Some(file)) => {
            let found = format!("{} is installed, but the bus has not read it", file.display());
            Finding::bad(CHECK, severity, found, "systemctl reload dbus")
        }
        (false, None) => {
            let remedy =
                format!("copy it to {}, then: systemctl reload dbus", POLICY_DIRECTORIES[0]);
            Finding::bad(CHECK, severity, format!("{POLICY} is not installed"), remedy)
        }
    }
}

async fn may_own_our_names(connection: &Connection) -> bool {
    // No interface has this label, so no instance uses the name.
    let name = format!("{COMMON_NAME}._doctor");
    connection.request_name(name.as_str()).await.is_ok()
}

async fn polkit(connection: &Connection) -> Finding {
    const CHECK: &str = "polkit";
    let is_there = async {
        let bus = DBusProxy::new(connection).await?;
        let (running, startable) = (bus.list_names().await?, bus.list_activatable_names().await?);
        Ok::<_, zbus::Error>(running.iter().chain(&startable).any(|name| name.as_str() == POLKIT))
    };
    let (is_there, is_known) = (is_there.await.unwrap_or(false), Path::new(ACTIONS).exists());
    match (is_there, is_known) {
        (true, true) => {
            let found = "installed; action org.tcptracker.Tracker1.manage is registered";
            Finding::ok(CHECK, found)
        }
        (true, false) => {
            let found = "installed, but without tcptracker's action: only root and group tcptracker may \
                         block and unblock";
            Finding::warning(CHECK, found, format!("to authorize other users, install {ACTIONS}"))
        }
        (false, _) => {
            let found = "not installed: only root and group tcptracker may block and unblock";
            Finding::ok(CHECK, found)
        }
    }
}
