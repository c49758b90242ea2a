//! The ports on which this host listens.
//!
//! Polls them, because the kernel does not report when a program begins to listen. A request for listening
//! sockets is cheap: the kernel visits only those.

use std::sync::Arc;

use crate::system::host::sockets::{LISTENING, Sockets};
use crate::system::netlink::NetlinkError;
use crate::types::{Port, PortSet};

/// Polls the kernel for the set of ports.
#[derive(Default)]
pub struct ListeningFollower {
    sockets: Sockets,
    latest: Arc<PortSet>,
}

impl ListeningFollower {
    /// Returns the set if it has changed. If the kernel cannot be asked, the old set stays: then a probe of
    /// a closed port counts only after its timeout.
    pub fn look(&mut self) -> Option<Arc<PortSet>> {
        let ports = self.ask().ok()?;
        if ports == *self.latest {
            return None;
        }
        self.latest = Arc::new(ports);
        Some(Arc::clone(&self.latest))
    }

    fn ask(&mut self) -> Result<PortSet, NetlinkError> {
        let mut ports = PortSet::default();
        self.sockets.visit(LISTENING, 0, |socket| {
            // The local port in a `struct inet_diag_msg`.
            if let Some(&[high, low]) = socket.get(4..6) {
                ports.insert(Port(u16::from_be_bytes([high, low])));
            }
        })?;
        Ok(ports)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
