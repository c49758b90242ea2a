//! Locks between the instances in a network namespace.
//!
//! A lock is a socket with an abstract name. It belongs to the namespace, as interfaces and rules do, needs
//! no file, and ends with its process. But any local user can take the name first. Therefore only a holder
//! that answers as root or as this process's own user counts as an instance, and a holder that does not
//! answer must not delay an instance for longer than the pauses below.

use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use rustix::net::sockopt::socket_peercred;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Uid, geteuid};

/// The interval between two attempts: no event reports that a name has become free.
const PAUSE: Duration = Duration::from_millis(20);

/// An instance that starts or stops may hold the name without answering, but not in so many attempts.
const SILENT_ATTEMPTS: u32 = 5;

/// A lock, which is released when it is dropped.
#[derive(Debug)]
pub struct Lock {
    _listener: UnixListener,
}

/// The reason why a lock could not be taken.
#[derive(Debug)]
pub enum LockError {
    /// Another instance holds it.
    Taken,
    /// A process that is not tcptracker holds it; its uid, if known.
    Stranger(Option<u32>),
    System(std::io::Error),
}

impl Lock {
    /// Takes the lock of this name, if no instance holds it.
    pub fn take(name: &str) -> Result<Self, LockError> {
        Self::await_free(name, Duration::ZERO)
    }

    /// Takes the lock of this name, and waits for another instance to release it.
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
                None if silent >= SILENT_ATTEMPTS => return Err(LockError::Stranger(None)),
                None => silent += 1,
            }
            pause();
            waited += PAUSE;
        }
    }
}

/// The user of the process that listens at the name, if it answers at once.
fn holder(name: &str) -> Option<Uid> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
    connect(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes()).ok()?).ok()?;
    Some(socket_peercred(&socket).ok()?.uid)
}

#[expect(clippy::disallowed_methods, reason = "no event reports that a name has become free")]
fn pause() {
    std::thread::sleep(PAUSE);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_is_exclusive_until_it_is_dropped() {
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
