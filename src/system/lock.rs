//! Locks between the instances in a network namespace.
//!
//! A lock is a socket with an abstract name. It belongs to the namespace, as interfaces and rules do, needs
//! no file, and ends with its process. But any local user can take a name first. So only a socket of root or
//! of the service's user counts, and an instance whose name is taken locks with a spare name, which the
//! others find as well. The kernel says which user owns which socket: a connection to the socket would need
//! room in its queue, which any user can fill.

use std::hash::{BuildHasher, RandomState};
use std::io::{Error, ErrorKind};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use rustix::net::netlink::SOCK_DIAG;
use rustix::process::geteuid;

use crate::system::netlink::{Attributes, Body, NetlinkError, NetlinkSocket};
use crate::system::reserve;

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
    stranger: Option<Stranger>,
}

/// The uid of a process that is not tcptracker and has the name of the lock, if known.
pub type Stranger = Option<u32>;

/// The reason why a lock could not be taken.
#[derive(Debug)]
pub enum LockError {
    /// Another instance holds it.
    Taken,
    System(Error),
}

impl Lock {
    /// Takes the lock of this name, if no instance holds it.
    pub fn take(name: &str) -> Result<Self, LockError> {
        Self::await_free(name, Duration::ZERO)
    }

    /// Takes the lock of this name, and waits for another instance to release it.
    pub fn await_free(name: &str, patience: Duration) -> Result<Self, LockError> {
        let (mut waited, mut vain) = (Duration::ZERO, 0);
        loop {
            if let Some(listener) = bind(name)? {
                // An instance may have begun while a stranger had the name. If the kernel does not tell, the
                // name decides alone.
                let holders = Holders::of(name).unwrap_or_default();
                if holders.instances < 2 {
                    return Ok(Self { _listener: listener, stranger: None });
                }
            } else {
                let holders = Holders::of(name).map_err(|error| unknown(&error))?;
                if holders.instances == 0 && (holders.stranger.is_some() || vain == VAIN_ATTEMPTS) {
                    let spare = format!("{name}/{:016x}", RandomState::new().hash_one(()));
                    if let Some(listener) = bind(&spare)?
                        && Holders::of(name).map_err(|error| unknown(&error))?.instances == 1
                    {
                        return Ok(Self { _listener: listener, stranger: Some(holders.stranger) });
                    }
                } else if holders.instances == 0 {
                    vain += 1;
                    pause();
                    continue;
                }
            }
            if waited >= patience {
                return Err(LockError::Taken);
            }
            pause();
            waited += PAUSE;
        }
    }

    /// Returns the process that has the name of the lock, if this instance had to take a spare one.
    pub fn stranger(&self) -> Option<Stranger> {
        self.stranger
    }
}

/// Takes an abstract name, unless it is taken.
fn bind(name: &str) -> Result<Option<UnixListener>, LockError> {
    let address = SocketAddr::from_abstract_name(name).map_err(LockError::System)?;
    match reserve::spend(|| UnixListener::bind_addr(&address)) {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(None),
        Err(error) => Err(LockError::System(error)),
    }
}

/// What has the name of a lock, or a spare one.
#[derive(Default)]
struct Holders {
    /// Sockets of instances.
    instances: u32,
    /// The user of another process that has the name itself.
    stranger: Option<u32>,
}

impl Holders {
    /// Asks the kernel.
    fn of(name: &str) -> Result<Self, NetlinkError> {
        let mut netlink = NetlinkSocket::open(Some(SOCK_DIAG), 0)?;
        // A `struct unix_diag_req`.
        let mut header = [0; 24];
        header[0] = AF_UNIX;
        header[4..8].copy_from_slice(&BOUND.to_ne_bytes());
        header[12..16].copy_from_slice(&SHOW.to_ne_bytes());
        let (mut holders, service) = (Self::default(), user_of_the_service());
        netlink.dump(SOCK_DIAG_BY_FAMILY, &Body::with_header(&header), |_, socket| {
            let Some((is_spare, uid)) = holder_in(socket, name) else { return };
            if uid == 0 || uid == geteuid().as_raw() || Some(uid) == service {
                holders.instances += 1;
            } else if !is_spare {
                holders.stranger = Some(uid);
            }
        })?;
        Ok(holders)
    }
}

/// The user of the unit (packaging/tcptracker.sysusers), for an instance that root starts beside it.
fn user_of_the_service() -> Option<u32> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    let fields = users.lines().find_map(|line| line.strip_prefix("tcptracker:"))?;
    fields.split(':').nth(1)?.parse().ok()
}

/// Returns the user in a `struct unix_diag_msg` with its attributes, if the socket has the name of the lock,
/// or a spare one, which comes first.
pub fn holder_in(socket: &[u8], name: &str) -> Option<(bool, u32)> {
    let attributes = Attributes::of(socket.get(16..)?);
    let found = attributes.find(UNIX_DIAG_NAME)?.strip_prefix(&[0])?;
    let suffix = found.strip_prefix(name.as_bytes())?;
    let uid = attributes.find(UNIX_DIAG_UID)?.try_into().ok()?;
    let is_holder = suffix.is_empty() || suffix.starts_with(b"/");
    (socket.get(1) == Some(&SOCK_STREAM) && is_holder)
        .then(|| (!suffix.is_empty(), u32::from_ne_bytes(uid)))
}

fn unknown(error: &NetlinkError) -> LockError {
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
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, listen, socket_with,
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
        rustix::net::bind(&holder, &address).unwrap();
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

    /// As after a start while another user had the name.
    #[test]
    fn spare_name_locks_as_well() {
        let name = format!("tcptracker-spare-{}", std::process::id());
        let spare = bind(&format!("{name}/0")).unwrap().unwrap();
        let _other = bind(&format!("{name}0")).unwrap().unwrap();
        assert!(matches!(Lock::take(&name), Err(LockError::Taken)));
        drop(spare);
        assert_eq!(Lock::take(&name).unwrap().stranger(), None);
    }

    proptest! {
        #[test]
        fn no_answer_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = holder_in(&bytes, "");
        }
    }
}
