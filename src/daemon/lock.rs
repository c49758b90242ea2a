//! One instance an interface.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener, UnixStream};

use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;

use super::DaemonError;
use crate::events::{Event, Reporter};
use crate::interface::InterfaceName;

/// Keeps a second instance away from the same interface: an abstract socket lives in the network
/// namespace, as interface and rules do, and goes with the process. None where somebody else holds the
/// name, who cannot be an instance: then only the bus keeps instances apart.
pub(super) fn lock(
    interface: &InterfaceName,
    reporter: &Reporter,
) -> Result<Option<UnixListener>, DaemonError> {
    let address = UnixAddress::from_abstract_name(format!("tcptracker@{interface}"))?;
    match UnixListener::bind_addr(&address) {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let holder = UnixStream::connect_addr(&address)
                .ok()
                .and_then(|stream| socket_peercred(&stream).ok())
                .map(|credentials| credentials.uid);
            match holder {
                Some(uid) if !uid.is_root() && uid != geteuid() => {
                    let uid = uid.as_raw();
                    reporter.tell(Event::Warning(format!(
                        "uid {uid} holds the socket @tcptracker@{interface} and is no tcptracker"
                    )));
                    Ok(None)
                }
                _ => Err(DaemonError::AlreadyRunning(interface.clone())),
            }
        }
        Err(error) => Err(error.into()),
    }
}
