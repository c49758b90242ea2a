//! What the bus has for the service, and the instances that are on it.

use std::path::Path;

use zbus::Connection;
use zbus::fdo::DBusProxy;

use crate::api::dbus::names::COMMON_NAME;
use crate::cli::client::{ClientError, Purpose, ask_each, connect, instances_on};
use crate::cli::doctor::system::first_of;
use crate::cli::doctor::{Finding, Verdict};
use crate::config::Config;

const POLICY: &str = "org.tcptracker.Tracker1.conf";
const POLICY_DIRECTORIES: [&str; 2] = ["/etc/dbus-1/system.d", "/usr/share/dbus-1/system.d"];

const ACTIONS: &str = "/usr/share/polkit-1/actions/org.tcptracker.Tracker1.policy";
const POLKIT: &str = "org.freedesktop.PolicyKit1";

pub fn examine(config: &Config) -> Vec<Finding> {
    // Without the bus the service runs on if it is told to.
    let serious = if config.bus.enabled { Verdict::Failed } else { Verdict::Warning };
    zbus::block_on(async {
        let connection = match connect().await {
            Ok(connection) => connection,
            Err(error) => {
                let remedy = "systemctl start dbus; where there is none, bus.enabled = false";
                return vec![Finding::bad("bus", serious, error.to_string(), remedy)];
            }
        };
        let mut findings = vec![
            Finding::ok("bus", "answers"),
            policy(&connection, serious).await,
            polkit(&connection).await,
        ];
        findings.extend(instances(&connection).await);
        findings
    })
}

/// Whether the bus would let the service have its names. It is asked itself, where it can be: it may not
/// have read what is installed.
async fn policy(connection: &Connection, serious: Verdict) -> Finding {
    const CHECK: &str = "bus policy";
    let file = first_of(&POLICY_DIRECTORIES, POLICY);
    // Others than root are never let have them.
    let is_root = rustix::process::geteuid().is_root();
    let allowed = if is_root { may_own_our_names(connection).await } else { file.is_some() };
    match (allowed, file) {
        (true, Some(file)) => Finding::ok(CHECK, file.display().to_string()),
        (true, None) => Finding::ok(CHECK, "the service may have its names"),
        (false, Some(file)) => {
            let found = format!("{} is installed, and the bus does not know it", file.display());
            Finding::bad(CHECK, serious, found, "systemctl reload dbus")
        }
        (false, None) => {
            let remedy =
                format!("copy it to {}, and: systemctl reload dbus", POLICY_DIRECTORIES[0]);
            Finding::bad(CHECK, serious, format!("{POLICY} is not installed"), remedy)
        }
    }
}

async fn may_own_our_names(connection: &Connection) -> bool {
    // No instance's: none has a label like this.
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
    let (there, known) = (is_there.await.unwrap_or(false), Path::new(ACTIONS).exists());
    match (there, known) {
        (true, true) => Finding::ok(CHECK, "there, and knows who may change"),
        (true, false) => {
            let remedy = format!("install {ACTIONS}, to let it authorise others");
            Finding::warning(
                CHECK,
                "does not know tcptracker: root and the group may change",
                remedy,
            )
        }
        (false, _) => Finding::ok(CHECK, "not there: root and group tcptracker may change"),
    }
}

async fn instances(connection: &Connection) -> Vec<Finding> {
    const CHECK: &str = "instance";
    let instances = match instances_on(connection, None, Purpose::Look).await {
        Ok(instances) => instances,
        Err(ClientError::NotRunning) => {
            let remedy = "systemctl enable --now tcptracker@INTERFACE";
            return vec![Finding::warning(CHECK, "none is running", remedy)];
        }
        Err(error) => {
            return vec![Finding::failed(CHECK, error.to_string(), "systemctl status dbus")];
        }
    };
    let answers = ask_each(&instances, async |instance| instance.state().await).await;
    let told = answers.told.into_iter().map(|(interface, (state, version))| {
        let found = format!("{interface}: {state}");
        if state == "degraded" {
            let remedy = "journalctl -t tcptracker -p warning says why, and so does /health";
            return Finding::failed(CHECK, found, remedy);
        }
        if version != env!("CARGO_PKG_VERSION") {
            let found = format!("{found}, version {version}, which is not this one");
            return Finding::warning(
                CHECK,
                found,
                format!("systemctl restart {}", interface.unit()),
            );
        }
        Finding::ok(CHECK, found)
    });
    let silent = answers.failures.into_iter().map(|error| {
        let remedy = "if it stays so: systemctl restart 'tcptracker@*'";
        Finding::failed(CHECK, error.to_string(), remedy)
    });
    told.chain(silent).collect()
}
