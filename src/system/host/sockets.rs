//! The TCP sockets of this host, over netlink (NETLINK_SOCK_DIAG, linux/inet_diag.h).
//!
//! Owns the request. Never knows what a socket means.

use rustix::net::netlink::SOCK_DIAG;

use crate::system::netlink::{Body, NetlinkError, NetlinkSocket};

/// The bits of `TCP_ESTABLISHED` and `TCP_LISTEN` (net/tcp_states.h).
pub const ESTABLISHED: u32 = 1 << 1;
pub const LISTENING: u32 = 1 << 10;
/// linux/socket.h
pub const AF_INET: u8 = 2;

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
}
