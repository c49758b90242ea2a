//! The public port of the metrics: a relay with limits for connections, bytes and seconds.
//!
//! Owns the listener and the connections of clients. Must not interpret HTTP: it only looks for the blank
//! line that ends a head, and drops whatever follows. A connection carries one request.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::sockopt::{set_ip_freebind, set_socket_recv_buffer_size, set_socket_reuseaddr};
use rustix::net::{
    AddressFamily, Shutdown, SocketFlags, SocketType, bind, listen, shutdown, socket_with,
};

use rustix::process::{Resource, getrlimit};

use crate::api::metrics::private_server::{DESCRIPTORS, refusal};
use crate::handles::StopFlag;
use crate::types::Moment;

/// The most connections at a time. A host has one or two scrapers.
const MOST_CONNECTIONS: usize = 64;

/// Descriptors of the listener, of tiny_http, of an exchange, and of one connection too many.
const OWN_DESCRIPTORS: u64 = 10;

/// Connections that may wait in the kernel. A client without a place tries again after a second.
const BACKLOG: i32 = 512;

/// The longest sleep.
const TICK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The longest head. Browsers and scrapers send some hundred bytes.
const HEAD_LIMIT: usize = 8192;

/// The time limit for sending a request, for reading the answer, and for closing the connection.
const PATIENCE: Duration = Duration::from_secs(10);

const HEAD_END: &[u8] = b"\r\n\r\n";

/// All bytes of an answer.
type Answer = io::Result<Vec<u8>>;

/// A client's connection: it sends a head, receives the answer, and closes.
struct Connection {
    stream: TcpStream,
    head: Vec<u8>,
    /// Empty until the head is complete.
    answer: Vec<u8>,
    sent: usize,
    /// When the client began to do what it does now.
    since: Moment,
}

impl Connection {
    const fn is_receiving(&self) -> bool {
        self.sent < self.answer.len()
    }

    fn poll_fd(&self) -> PollFd<'_> {
        let flags = if self.is_receiving() { PollFlags::OUT } else { PollFlags::IN };
        PollFd::new(&self.stream, flags)
    }

    /// Reads or writes what is possible without waiting. An error other than `WouldBlock` ends the connection.
    fn step(&mut self, now: Moment, exchange: &mut impl FnMut(&[u8]) -> Answer) -> io::Result<()> {
        if !self.is_receiving() {
            let mut bytes = [0; HEAD_LIMIT];
            let room = HEAD_LIMIT - self.head.len();
            let length = self.stream.read(&mut bytes[..room])?;
            if length == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            if !self.answer.is_empty() {
                // If the connection ended before the client closes, the client might lose the answer.
                return Ok(());
            }
            self.head.extend(&bytes[..length]);
            let end = self.head.windows(HEAD_END.len()).position(|window| window == HEAD_END);
            self.answer = match end {
                Some(at) => exchange(&self.head[..at + HEAD_END.len()])?,
                None if self.head.len() < HEAD_LIMIT => return Ok(()),
                None => refusal("431 Request Header Fields Too Large"),
            };
            self.head.clear();
            self.since = now;
        }
        self.sent += self.stream.write(&self.answer[self.sent..])?;
        if !self.is_receiving() {
            shutdown(&self.stream, Shutdown::Write)?;
            self.since = now;
        }
        Ok(())
    }
}

/// The listener and the connections.
pub struct Relay {
    listener: TcpListener,
    room: usize,
    connections: Vec<Connection>,
    /// Keeps the descriptors of an exchange free when clients use up all others.
    reserve: Vec<TcpListener>,
    /// Whether nothing is accepted until the next tick, because it failed and no connection can be closed.
    is_paused: bool,
}

impl Relay {
    /// Listens. If the host does not have the address yet, clients can connect as soon as it does.
    pub fn listen(address: SocketAddr) -> io::Result<Self> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(family, SocketType::STREAM, flags, None)?;
        // Connections of the previous run may linger.
        set_socket_reuseaddr(&socket, true)?;
        set_ip_freebind(&socket, true)?;
        // Connections inherit this. The kernel would buffer megabytes for each.
        set_socket_recv_buffer_size(&socket, HEAD_LIMIT)?;
        bind(&socket, &address)?;
        listen(&socket, BACKLOG)?;
        let (connections, reserve, room) = (Vec::new(), Vec::new(), room());
        Ok(Self { listener: socket.into(), room, connections, reserve, is_paused: false })
    }

    /// Sleeps until a client connects, sends or receives, at most a tick. False once the thread has to stop.
    pub fn wait(&mut self, stop: &StopFlag) -> Result<bool, Errno> {
        let mut fds = vec![PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN)];
        fds.extend(self.connections.iter().map(Connection::poll_fd));
        if !self.is_paused {
            fds.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        retry_on_intr(|| poll(&mut fds, Some(&TICK)))?;
        let goes_on = fds[0].revents().is_empty();
        self.is_paused = false;
        Ok(goes_on)
    }

    /// Serves the connections, closes those that are late, and accepts new ones.
    pub fn serve(&mut self, now: Moment, mut exchange: impl FnMut(&[u8]) -> Answer) {
        let Self { connections, reserve, .. } = self;
        let mut exchange = |head: &[u8]| {
            reserve.clear();
            exchange(head)
        };
        connections.retain_mut(|connection| {
            let step = connection.step(now, &mut exchange);
            step.map_or_else(|error| error.kind() == ErrorKind::WouldBlock, |()| true)
                && now.since(connection.since) < PATIENCE
        });
        // Half of them, so that each client is served before it can be the idlest.
        for _ in 0..self.room.div_ceil(2) {
            match self.accept(now) {
                Ok(connection) => {
                    if self.connections.len() >= self.room {
                        self.close_idlest();
                    }
                    self.connections.push(connection);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // The client has gone already.
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                // The process or the host is out of descriptors or memory.
                Err(_) => return self.close_idlest(),
            }
        }
    }

    fn accept(&mut self, now: Moment) -> io::Result<Connection> {
        while self.reserve.len() < DESCRIPTORS {
            self.reserve.push(self.listener.try_clone()?);
        }
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(true)?;
        Ok(Connection { stream, head: Vec::new(), answer: Vec::new(), sent: 0, since: now })
    }

    fn close_idlest(&mut self) {
        match self.connections.iter().enumerate().min_by_key(|(_, c)| c.since) {
            Some((at, _)) => drop(self.connections.remove(at)),
            None => self.is_paused = true,
        }
    }
}

/// Returns how many connections there is room for, so that HTTP needs at most a quarter of the descriptors.
fn room() -> usize {
    let quarter = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX) / 4;
    let room = usize::try_from(quarter.saturating_sub(OWN_DESCRIPTORS));
    room.map_or(MOST_CONNECTIONS, |room| room.clamp(1, MOST_CONNECTIONS))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Server(Relay, Moment);

    impl Server {
        fn new() -> Self {
            Self(Relay::listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap(), Moment::now())
        }

        /// Accepts and serves, `span` later.
        fn serve(&mut self, span: Duration) {
            self.1 = self.1 + span;
            assert!(self.0.wait(&StopFlag::new().unwrap()).unwrap());
            self.0.serve(self.1, |head| Ok([b"HTTP/1.1 200 OK ", head].concat()));
        }

        fn client(&mut self, request: &[u8]) -> TcpStream {
            let mut client = TcpStream::connect(self.0.listener.local_addr().unwrap()).unwrap();
            client.write_all(request).unwrap();
            for _ in 0..=usize::from(!request.is_empty()) {
                self.serve(Duration::from_millis(1));
            }
            client
        }
    }

    /// What has arrived, and whether the connection has ended.
    fn received(mut client: &TcpStream) -> (String, bool) {
        client.set_nonblocking(true).unwrap();
        let mut text = String::new();
        let ended = client.read_to_string(&mut text).is_ok();
        (text, ended)
    }

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn each_state_of_a_connection_has_a_time_limit() {
        let mut server = Server::new();
        let mut clients = [&b""[..], b"GET / HT", REQUEST].map(|request| server.client(request));
        server.serve(9 * SECOND);
        clients[1].write_all(b"TP").unwrap();
        assert_eq!(server.0.connections.len(), 3);
        server.serve(SECOND);
        assert!(clients.iter().all(|client| received(client).1));
        assert_eq!(server.0.connections.len(), 0);
    }

    #[test]
    fn idlest_connection_is_closed_when_all_are_in_use() {
        let mut server = Server::new();
        let mut slow = server.client(b"");
        let silent: Vec<TcpStream> = (1..MOST_CONNECTIONS).map(|_| server.client(b"")).collect();
        slow.write_all(REQUEST).unwrap();
        server.serve(Duration::from_millis(1));
        let _more: Vec<TcpStream> = (0..5).map(|_| server.client(b"")).collect();
        assert_eq!(server.0.connections.len(), MOST_CONNECTIONS);
        assert!(received(&slow).0.starts_with("HTTP/1.1 200 OK"));
        let closed = silent.iter().take_while(|client| received(client).1).count();
        assert_eq!(closed, 5);
        assert!(silent[5..].iter().all(|client| !received(client).1));
    }
}
