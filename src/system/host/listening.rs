//! The ports on which this host listens.
//!
//! Owns how the kernel is asked for them (NETLINK_SOCK_DIAG, linux/inet_diag.h). The kernel does not report
//! when a program begins to listen. But a request for listening sockets is cheap: the kernel visits only
//! those.

use std::sync::Arc;

use rustix::net::netlink::SOCK_DIAG;

use crate::system::netlink::{Body, NetlinkError, NetlinkSocket};
use crate::types::Listening;

/// Asks for sockets of both families at once.
const TCPDIAG_GETSOCK: u16 = 18;
/// The bit of `TCP_LISTEN` (net/tcp_states.h).
const LISTENING: u32 = 1 << 10;
/// linux/socket.h
const AF_INET: u8 = 2;

/// Polls the kernel for the set of ports.
#[derive(Default)]
pub struct ListeningFollower {
    socket: Option<NetlinkSocket>,
    latest: Arc<Listening>,
}

impl ListeningFollower {
    /// Returns the set if it has changed. If the kernel cannot be asked, the old set stays: then a probe of
    /// a closed port counts only after its timeout.
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

/// Returns a `struct inet_diag_req` for listening sockets.
fn request() -> Body {
    let mut header = [0; 60];
    header[0] = AF_INET;
    header[52..56].copy_from_slice(&LISTENING.to_ne_bytes());
    Body::with_header(&header)
}

/// Returns the local port in a `struct inet_diag_msg`.
pub fn port_in(socket: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(socket.get(4..6)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Port;
    use std::net::TcpListener;

    #[test]
    fn listening_sockets_are_found_until_they_close() {
        let mut follower = ListeningFollower::default();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            // The host may have no IPv6.
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let port = Port(listener.local_addr().unwrap().port());
            let ports = follower.look().unwrap();
            assert!(ports.contains(port), "{address}");
            drop(listener);
            assert!(!follower.ask().unwrap().contains(port), "{address}: the socket is closed");
        }
    }
}
