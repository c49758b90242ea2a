//! Locks between the instances in a network namespace.
//!
//! A lock is a socket with an abstract name. It belongs to the namespace, as interfaces and rules do, needs
//! no file, and ends with its process. But any local user can take the name first. Therefore only a socket
//! of root or of this process's own user counts as an instance. The kernel says which user that is: a
//! connection to the socket would need room in its queue, which any user can fill.

use std::io::{Error, ErrorKind};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use rustix::net::netlink::SOCK_DIAG;
use rustix::process::{Uid, geteuid};

use crate::system::netlink::{Attributes, Body, NetlinkError, NetlinkSocket};

/// The interval between two attempts: no event reports that a name has become free.
const PAUSE: Duration = Duration::from_millis(20);

/// A holder may end while the kernel is asked for it, but not in so many attempts.
const VAIN_ATTEMPTS: u32 = 5;

/// linux/sock_diag.h, linux/unix_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const AF_UNIX: u8 = 1;
const SOCK_STREAM: u8 = 1;
/// `UDIAG_SHOW_NAME` and `UDIAG_SHOW_UID`
const SHOW: u32 = 0x41;
const UNIX_DIAG_NAME: u16 = 0;
const UNIX_DIAG_UID: u16 = 7;

/// The states `TCP_CLOSE` and `TCP_LISTEN` (net/tcp_states.h) of a socket that was bound. A connection that
/// waits in the queue of a listener bears its name as well, but the kernel ascribes it to root.
const BOUND: u32 = 1 << 7 | 1 << 10;

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
    System(Error),
}

impl Lock {
    /// Takes the lock of this name, if no instance holds it.
    pub fn take(name: &str) -> Result<Self, LockError> {
        Self::await_free(name, Duration::ZERO)
    }

    /// Takes the lock of this name, and waits for another instance to release it.
    pub fn await_free(name: &str, patience: Duration) -> Result<Self, LockError> {
        let address = SocketAddr::from_abstract_name(name).map_err(LockError::System)?;
        let (mut waited, mut vain) = (Duration::ZERO, 0);
        loop {
            match UnixListener::bind_addr(&address) {
                Ok(listener) => return Ok(Self { _listener: listener }),
                Err(error) if error.kind() == ErrorKind::AddrInUse => {}
                Err(error) => return Err(LockError::System(error)),
            }
            match holder(name).map_err(unknown)? {
                Some(uid) if !uid.is_root() && uid != geteuid() => {
                    return Err(LockError::Stranger(Some(uid.as_raw())));
                }
                Some(_) if waited >= patience => return Err(LockError::Taken),
                Some(_) => vain = 0,
                None if vain >= VAIN_ATTEMPTS => return Err(LockError::Stranger(None)),
                None => vain += 1,
            }
            pause();
            waited += PAUSE;
        }
    }
}

/// Asks the kernel for the user whose socket has the name.
fn holder(name: &str) -> Result<Option<Uid>, NetlinkError> {
    let mut netlink = NetlinkSocket::open(Some(SOCK_DIAG), 0)?;
    // A `struct unix_diag_req`.
    let mut header = [0; 24];
    header[0] = AF_UNIX;
    header[4..8].copy_from_slice(&BOUND.to_ne_bytes());
    header[12..16].copy_from_slice(&SHOW.to_ne_bytes());
    let mut holder = None;
    netlink.dump(SOCK_DIAG_BY_FAMILY, &Body::with_header(&header), |_, socket| {
        holder = holder.or_else(|| holder_in(socket, name));
    })?;
    Ok(holder)
}

/// Returns the user in a `struct unix_diag_msg` with its attributes, if the socket has the abstract name.
pub fn holder_in(socket: &[u8], name: &str) -> Option<Uid> {
    let attributes = Attributes::of(socket.get(16..)?);
    let found = attributes.find(UNIX_DIAG_NAME)?.strip_prefix(&[0])?;
    let uid = attributes.find(UNIX_DIAG_UID)?.try_into().ok()?;
    (socket.get(1) == Some(&SOCK_STREAM) && found == name.as_bytes())
        .then(|| Uid::from_raw(u32::from_ne_bytes(uid)))
}

fn unknown(error: NetlinkError) -> LockError {
    LockError::System(Error::other(format!(
        "the kernel does not tell which user holds the lock of this instance ({error}); load its module \
         unix_diag: modprobe unix_diag"
    )))
}

#[expect(clippy::disallowed_methods, reason = "no event reports that a name has become free")]
fn pause() {
    std::thread::sleep(PAUSE);
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use proptest::prelude::*;
    use rustix::net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
    };

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

    /// Any user can fill the queue of an instance's socket.
    #[test]
    fn holder_with_a_full_queue_is_known() {
        let name = format!("tcptracker-full-{}", std::process::id());
        let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap();
        let socket = || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap()
        };
        let holder = socket();
        bind(&holder, &address).unwrap();
        assert!(matches!(Lock::take(&name), Err(LockError::Taken)), "it does not listen yet");
        listen(&holder, 0).unwrap();
        let mut clients: Vec<UnixStream> = Vec::new();
        loop {
            let client = socket();
            if connect(&client, &address).is_err() {
                break;
            }
            clients.push(client.into());
        }
        assert!(!clients.is_empty());
        assert!(matches!(Lock::take(&name), Err(LockError::Taken)));
    }

    proptest! {
        #[test]
        fn no_answer_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = holder_in(&bytes, "");
        }
    }
}
