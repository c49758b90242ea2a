//! The TCP sockets of this host, over netlink (NETLINK_SOCK_DIAG, linux/inet_diag.h).
//!
//! Owns the request. Never knows what a socket means.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::net::netlink::SOCK_DIAG;

use crate::system::netlink::{Body, NetlinkError, NetlinkSocket};

/// The bits of `TCP_ESTABLISHED` and `TCP_LISTEN` (net/tcp_states.h).
pub const ESTABLISHED: u32 = 1 << 1;
pub const LISTENING: u32 = 1 << 10;
/// The bits of all states that only a completed handshake leads to: `TCP_ESTABLISHED`, `TCP_FIN_WAIT1`,
/// `TCP_FIN_WAIT2`, `TCP_TIME_WAIT`, `TCP_CLOSE_WAIT`, `TCP_LAST_ACK` and `TCP_CLOSING`.
const CONNECTED: u32 = ESTABLISHED | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 9 | 1 << 11;
/// linux/socket.h
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Asks for sockets of both families at once. For the newer `SOCK_DIAG_BY_FAMILY` the kernel walks its table
/// of connections, which is the expensive part, once per family.
const TCPDIAG_GETSOCK: u16 = 18;

/// Asks the kernel for sockets.
#[derive(Default)]
pub struct Sockets(Option<NetlinkSocket>);

impl Sockets {
    /// Passes each socket in a state to `each`, as a `struct inet_diag_msg`. Port 0 stands for all local ports.
    pub fn visit(
        &mut self,
        state: u32,
        port: u16,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), NetlinkError> {
        // An error drops the netlink socket, and with it answers that arrive late.
        let mut netlink = match self.0.take() {
            Some(netlink) => netlink,
            None => NetlinkSocket::open(Some(SOCK_DIAG), 0)?,
        };
        // A `struct inet_diag_req`.
        let mut header = [0; 60];
        header[0] = AF_INET;
        header[4..6].copy_from_slice(&port.to_be_bytes());
        header[52..56].copy_from_slice(&state.to_ne_bytes());
        netlink.dump(TCPDIAG_GETSOCK, &Body::with_header(&header), |_, socket| each(socket))?;
        self.0 = Some(netlink);
        Ok(())
    }

    /// Returns the hosts with which this host has completed a handshake, as long as the kernel remembers the
    /// connection.
    pub fn connected_hosts(&mut self) -> Result<HashSet<IpAddr>, NetlinkError> {
        let mut hosts = HashSet::new();
        self.visit(CONNECTED, 0, |socket| hosts.extend(peer_in(socket)))?;
        Ok(hosts)
    }
}

/// Returns the peer in a `struct inet_diag_msg`.
pub fn peer_in(socket: &[u8]) -> Option<IpAddr> {
    let octets: [u8; 16] = socket.get(24..40)?.try_into().ok()?;
    match *socket.first()? {
        AF_INET => Some(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]).into()),
        AF_INET6 => Some(IpAddr::from(Ipv6Addr::from(octets)).to_canonical()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn host_is_connected_from_the_handshake_until_the_kernel_forgets_it() {
        // An address that no other run of the tests has used within the last minute.
        let id = std::process::id().to_be_bytes();
        let address = IpAddr::from([127, 64 | id[1], id[2], id[3]]);
        let listener = TcpListener::bind((address, 0)).unwrap();
        let mut sockets = Sockets::default();
        let mut is_connected = || sockets.connected_hosts().unwrap().contains(&address);
        assert!(!is_connected());
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(is_connected(), "not accepted yet");
        let accepted = listener.accept().unwrap();
        // The end that closes first remembers the other one.
        drop(client);
        drop(accepted);
        assert!(is_connected(), "TIME_WAIT");
    }
}
