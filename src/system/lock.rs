//! What one instance at a time may have, in a network namespace.
//!
//! Owns sockets with abstract names: they live in the namespace, as interfaces and rules do, need no file and
//! go with the process. But any local user can take such a name first, and say nothing there: only who
//! answers as root or as this process's own user is believed to be an instance. Nobody can make one wait
//! here for longer than the pauses below.

use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use rustix::net::sockopt::socket_peercred;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Uid, geteuid};

/// Between two looks whether a name has become free: there is no event to wait for.
const PAUSE: Duration = Duration::from_millis(20);

/// An instance that comes or goes has its name before it answers there, or still; not for so many looks.
const SILENT_LOOKS: u32 = 5;

/// Held until dropped.
#[derive(Debug)]
pub struct Lock {
    _listener: UnixListener,
}

/// Why there is no lock.
#[derive(Debug)]
pub enum LockError {
    /// Another instance has it.
    Taken,
    /// Somebody has it who is no instance: a user's number, if he told.
    Stranger(Option<u32>),
    /// The system's error.
    System(std::io::Error),
}

impl Lock {
    /// Takes the lock of this name, if no instance has it.
    pub fn take(name: &str) -> Result<Self, LockError> {
        Self::await_free(name, Duration::ZERO)
    }

    /// Takes the lock of this name, and waits for another instance so long.
    pub fn await_free(name: &str, patience: Duration) -> Result<Self, LockError> {
        let address = SocketAddr::from_abstract_name(name).map_err(LockError::System)?;
        let (mut waited, mut silent) = (Duration::ZERO, 0);
        loop {
            match UnixListener::bind_addr(&address) {
                Ok(listener) => return Ok(Self { _listener: listener }),
                Err(error) if error.kind() == ErrorKind::AddrInUse => {}
                Err(error) => return Err(LockError::System(error)),
            }
            match holder(name) {
                Some(uid) if !uid.is_root() && uid != geteuid() => {
                    return Err(LockError::Stranger(Some(uid.as_raw())));
                }
                Some(_) if waited >= patience => return Err(LockError::Taken),
                Some(_) => silent = 0,
                None if silent >= SILENT_LOOKS => return Err(LockError::Stranger(None)),
                None => silent += 1,
            }
            pause();
            waited += PAUSE;
        }
    }
}

/// Who listens there, if he answers at once.
fn holder(name: &str) -> Option<Uid> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
    connect(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes()).ok()?).ok()?;
    Some(socket_peercred(&socket).ok()?.uid)
}

#[expect(clippy::disallowed_methods, reason = "that a name becomes free is no event")]
fn pause() {
    std::thread::sleep(PAUSE);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_it_until_it_is_dropped() {
        let name = format!("tcptracker-test-{}", std::process::id());
        let lock = Lock::take(&name).unwrap();
        assert!(matches!(Lock::take(&name), Err(LockError::Taken)));
        let patience = Duration::from_secs(60);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| Lock::await_free(&name, patience).map(drop));
            drop(lock);
            waits.join().unwrap().unwrap();
        });
    }
}
