//! The ports on which this host listens.
//!
//! Owns the set, and asking the kernel for it (NETLINK_SOCK_DIAG, linux/inet_diag.h). The kernel does not
//! tell when somebody begins to listen; but asked for listening sockets only it goes through those alone.

use crate::types::host::Listening;
use std::sync::Arc;

use rustix::net::netlink::SOCK_DIAG;

use crate::system::netlink::{Body, NetlinkError, NetlinkSocket};

/// Asks for sockets of both families at once.
const TCPDIAG_GETSOCK: u16 = 18;
/// The bit of `TCP_LISTEN` (net/tcp_states.h).
const LISTENING: u32 = 1 << 10;
/// linux/socket.h
const AF_INET: u8 = 2;

/// Keeps the set current by asking again and again.
#[derive(Default)]
pub struct ListeningFollower {
    socket: Option<NetlinkSocket>,
    latest: Arc<Listening>,
}

impl ListeningFollower {
    /// The set, if it is another than before. Where the kernel does not tell, nobody is held to have
    /// tried a closed port before it shows.
    pub fn look(&mut self) -> Option<Arc<Listening>> {
        let ports = self.ask().ok()?;
        if ports == *self.latest {
            return None;
        }
        self.latest = Arc::new(ports);
        Some(Arc::clone(&self.latest))
    }

    fn ask(&mut self) -> Result<Listening, NetlinkError> {
        let mut socket = match self.socket.take() {
            Some(socket) => socket,
            None => NetlinkSocket::open(Some(SOCK_DIAG), 0)?,
        };
        let mut ports = Listening::default();
        socket.dump(TCPDIAG_GETSOCK, &request(), |_, socket| {
            if let Some(port) = port_in(socket) {
                ports.insert(port);
            }
        })?;
        self.socket = Some(socket);
        Ok(ports)
    }
}

/// `struct inet_diag_req`: sockets that listen.
fn request() -> Body {
    let mut header = [0; 60];
    header[0] = AF_INET;
    header[52..56].copy_from_slice(&LISTENING.to_ne_bytes());
    Body::with_header(&header)
}

/// The own port in a `struct inet_diag_msg`.
pub fn port_in(socket: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(socket.get(4..6)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::segment::Port;
    use std::net::TcpListener;

    /// On the loopback of whatever machine this is.
    #[test]
    fn the_kernel_tells_where_somebody_listens() {
        let mut follower = ListeningFollower::default();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            // A host without IPv6 has nobody to tell of.
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let port = Port(listener.local_addr().unwrap().port());
            let ports = follower.look().unwrap();
            assert!(ports.contains(port), "{address}");
            drop(listener);
            assert!(!follower.ask().unwrap().contains(port), "{address}: nobody does any more");
        }
    }
}
