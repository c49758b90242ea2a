//! logind: the remote hosts of logged-in users (org.freedesktop.login1).
//!
//! Owns a connection to the system bus for each question, so that a slow logind delays no caller of the service.
//! It changes nothing.

use std::collections::HashMap;
use std::io::{Error, ErrorKind};
use std::net::IpAddr;
use std::time::Duration;

use zbus::connection::Builder;
use zbus::proxy::MethodFlags;
use zbus::{Connection, OwnedObjectPath, OwnedVariant, Proxy};
use zruntime::SharedRuntime;

/// How long the bus and logind may take. The thread that asks has to tick once a second.
const PATIENCE: Duration = Duration::from_millis(800);

const NAME: &str = "org.freedesktop.login1";
const MANAGER: &str = "org.freedesktop.login1.Manager";
const SESSION: &str = "org.freedesktop.login1.Session";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// A session in `ListSessions`: its number, the user, the user's name, the seat and the object.
type Listed = (String, u32, String, String, OwnedObjectPath);

/// Returns the remote hosts of all sessions that are not over. Hosts that logind knows by name are missing.
pub fn remote_hosts() -> zbus::Result<Vec<IpAddr>> {
    let too_late = async {
        SharedRuntime::current()?.sleep(PATIENCE).await;
        Err(Error::from(ErrorKind::TimedOut).into())
    };
    let asked = async { ask(&Builder::system().build().await?).await };
    zbus::block_on(futures_lite::future::or(asked, too_late))
}

async fn ask(bus: &Connection) -> zbus::Result<Vec<IpAddr>> {
    let manager = Proxy::new(bus, NAME, "/org/freedesktop/login1", MANAGER).await?;
    let list = manager.call_with_flags("ListSessions", MethodFlags::NO_AUTO_START, &());
    let sessions: Vec<Listed> = list.await?.unwrap_or_default();
    let mut hosts = Vec::new();
    for (.., object) in sessions {
        let session = Proxy::new(bus, NAME, object, PROPERTIES).await?;
        // A session that has ended meanwhile has no properties.
        let Ok(properties) = session.call("GetAll", &(SESSION,)).await else { continue };
        hosts.extend(remote_host_in(&properties));
    }
    Ok(hosts)
}

fn remote_host_in(properties: &HashMap<String, OwnedVariant>) -> Option<IpAddr> {
    let text = |name| properties.get(name).and_then(|value| <&str>::try_from(&**value).ok());
    // After a logout a session remains as long as programs of the user run.
    if text("State") == Some("closing") {
        return None;
    }
    // A link-local address bears its interface.
    let host = text("RemoteHost")?.split('%').next()?;
    host.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}
