//! The public port of the metrics: a relay with limits for connections, bytes and seconds.
//!
//! Owns the listener and the connections of clients. Must not interpret HTTP: it only looks for the blank
//! line that ends a head, and drops whatever follows. A connection carries one request.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{set_ip_freebind, set_socket_recv_buffer_size, set_socket_reuseaddr};
use rustix::net::{
    AddressFamily, Shutdown, SocketFlags, SocketType, bind, listen, shutdown, socket_with,
};

use crate::api::metrics::private_server::DESCRIPTORS;
use crate::handles::stop_flag::StopFlag;
use crate::types::clock::Moment;

/// Connections at a time. A host has one or two scrapers.
const MOST_CONNECTIONS: usize = 64;

/// Connections accepted per round, so that each client is served before it can be the idlest of 64.
const ACCEPTED_PER_ROUND: usize = MOST_CONNECTIONS / 2;

/// Connections that may wait in the kernel. A client that finds no place tries again after a second.
const BACKLOG: i32 = 512;

/// The longest sleep.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };

/// The longest head. Browsers and scrapers send some hundred bytes.
const HEAD_LIMIT: usize = 8192;

/// The time limit for sending a request, for reading the answer, and for closing the connection.
const PATIENCE: Duration = Duration::from_secs(10);

const HEAD_END: &[u8] = b"\r\n\r\n";
const HEAD_TOO_LARGE: &[u8] = b"HTTP/1.1 431 Request Header Fields Too Large\r\n\
    Connection: close\r\nContent-Length: 0\r\n\r\n";

/// What a client is doing.
enum State {
    Requesting(Vec<u8>),
    Receiving {
        answer: Vec<u8>,
        sent: usize,
    },
    /// Its input is dropped until it closes. If the connection ended earlier, the client might lose the
    /// answer.
    Closing,
}

struct Connection {
    stream: TcpStream,
    state: State,
    /// When the state began.
    since: Moment,
    is_ready: bool,
}

/// The connection is to be closed.
struct Ended;

impl Connection {
    fn new(stream: TcpStream, now: Moment) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        let state = State::Requesting(Vec::new());
        Ok(Self { stream, state, since: now, is_ready: true })
    }

    fn wanted(&self) -> PollFlags {
        if matches!(self.state, State::Receiving { .. }) { PollFlags::OUT } else { PollFlags::IN }
    }

    fn is_late(&self, now: Moment) -> bool {
        now.since(self.since) >= PATIENCE
    }

    /// Reads or writes what is possible without waiting.
    fn step(
        &mut self,
        now: Moment,
        exchange: &mut impl FnMut(&[u8]) -> std::io::Result<Vec<u8>>,
    ) -> Result<(), Ended> {
        let mut bytes = [0; HEAD_LIMIT];
        match &mut self.state {
            State::Requesting(head) => {
                let room = HEAD_LIMIT - head.len();
                head.extend(read(&mut self.stream, &mut bytes[..room])?);
                let end = head.windows(HEAD_END.len()).position(|window| window == HEAD_END);
                let answer = match end {
                    Some(at) => exchange(&head[..at + HEAD_END.len()]).map_err(|_| Ended)?,
                    None if head.len() < HEAD_LIMIT => return Ok(()),
                    None => HEAD_TOO_LARGE.to_vec(),
                };
                (self.state, self.since) = (State::Receiving { answer, sent: 0 }, now);
                self.send(now)
            }
            State::Receiving { .. } => self.send(now),
            State::Closing => read(&mut self.stream, &mut bytes).map(drop),
        }
    }

    fn send(&mut self, now: Moment) -> Result<(), Ended> {
        let State::Receiving { answer, sent } = &mut self.state else { return Ok(()) };
        match self.stream.write(&answer[*sent..]) {
            Ok(length) => *sent += length,
            Err(error) if is_temporary(&error) => return Ok(()),
            Err(_) => return Err(Ended),
        }
        if *sent >= answer.len() {
            shutdown(&self.stream, Shutdown::Write).map_err(|_| Ended)?;
            (self.state, self.since) = (State::Closing, now);
        }
        Ok(())
    }
}

/// Returns what has arrived, which may be nothing.
fn read<'a>(stream: &mut TcpStream, bytes: &'a mut [u8]) -> Result<&'a [u8], Ended> {
    match stream.read(bytes) {
        Ok(0) => Err(Ended),
        Ok(length) => Ok(&bytes[..length]),
        Err(error) if is_temporary(&error) => Ok(&[]),
        Err(_) => Err(Ended),
    }
}

fn is_temporary(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// The listener and the connections.
pub struct Relay {
    listener: TcpListener,
    address_is_missing: bool,
    connections: Vec<Connection>,
    /// Keeps the descriptors of an exchange free when clients use up all others.
    reserve: Vec<TcpListener>,
    /// No descriptor was left and no connection could be closed: nothing is accepted for a tick.
    is_paused: bool,
}

impl Relay {
    /// Listens. If the host does not have the address yet, the kernel accepts connections as soon as it does.
    pub fn listen(address: SocketAddr) -> std::io::Result<Self> {
        let (listener, address_is_missing) = match TcpListener::bind(address) {
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
                (bind_ahead(address)?, true)
            }
            bound => (bound?, false),
        };
        listener.set_nonblocking(true)?;
        // Connections inherit this. The kernel would buffer megabytes for each.
        set_socket_recv_buffer_size(&listener, HEAD_LIMIT)?;
        listen(&listener, BACKLOG)?;
        let (connections, reserve) = (Vec::new(), Vec::new());
        Ok(Self { listener, address_is_missing, connections, reserve, is_paused: false })
    }

    /// Whether the host does not have the address yet.
    pub const fn address_is_missing(&self) -> bool {
        self.address_is_missing
    }

    /// Sleeps until a client connects, sends or receives, at most a tick. False once the thread has to stop.
    pub fn wait(&mut self, stop: &StopFlag) -> Result<bool, Errno> {
        let mut fds = vec![PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN)];
        fds.extend(self.connections.iter().map(|c| PollFd::new(&c.stream, c.wanted())));
        if !self.is_paused {
            fds.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        match poll(&mut fds, Some(&TICK)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        let goes_on = fds[0].revents().is_empty();
        let ready: Vec<bool> = fds[1..].iter().map(|fd| !fd.revents().is_empty()).collect();
        for (connection, is_ready) in self.connections.iter_mut().zip(ready) {
            connection.is_ready = is_ready;
        }
        self.is_paused = false;
        Ok(goes_on)
    }

    /// Serves the connections that are ready, closes those that are late, and accepts new ones.
    pub fn serve(
        &mut self,
        now: Moment,
        mut exchange: impl FnMut(&[u8]) -> std::io::Result<Vec<u8>>,
    ) {
        let Self { connections, reserve, .. } = self;
        let mut exchange = |head: &[u8]| {
            reserve.clear();
            exchange(head)
        };
        connections.retain_mut(|connection| {
            let ended = connection.is_ready && connection.step(now, &mut exchange).is_err();
            !ended && !connection.is_late(now)
        });
        for _ in 0..ACCEPTED_PER_ROUND {
            match self.accept() {
                Ok(stream) => {
                    let Ok(connection) = Connection::new(stream, now) else { continue };
                    if self.connections.len() >= MOST_CONNECTIONS {
                        self.close_idlest();
                    }
                    self.connections.push(connection);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if is_exhaustion(&error) => {
                    self.is_paused = self.connections.is_empty();
                    self.close_idlest();
                    return;
                }
                // The client has gone already.
                Err(_) => {}
            }
        }
    }

    fn accept(&mut self) -> std::io::Result<TcpStream> {
        while self.reserve.len() < DESCRIPTORS {
            self.reserve.push(self.listener.try_clone()?);
        }
        Ok(self.listener.accept()?.0)
    }

    fn close_idlest(&mut self) {
        let idlest = self.connections.iter().enumerate().min_by_key(|(_, c)| c.since);
        if let Some((at, _)) = idlest {
            self.connections.remove(at);
        }
    }
}

/// Whether the process or the host is out of descriptors or memory.
fn is_exhaustion(error: &std::io::Error) -> bool {
    let exhaustion = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|error| exhaustion.contains(&error))
}

/// Binds to an address that the host does not have yet.
fn bind_ahead(address: SocketAddr) -> std::io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // As the standard library does: connections of the previous run may linger.
    set_socket_reuseaddr(&socket, true)?;
    set_ip_freebind(&socket, true)?;
    bind(&socket, &address)?;
    Ok(TcpListener::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Server {
        relay: Relay,
        stop: StopFlag,
        now: Moment,
    }

    impl Server {
        fn new() -> Self {
            let relay = Relay::listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
            Self { relay, stop: StopFlag::new().unwrap(), now: Moment::now() }
        }

        /// Accepts and serves, `span` later.
        fn serve(&mut self, span: Duration) {
            self.now = self.now + span;
            assert!(self.relay.wait(&self.stop).unwrap());
            self.relay.serve(self.now, |head| Ok([b"HTTP/1.1 200 OK ", head].concat()));
        }

        fn client(&mut self, request: &[u8]) -> TcpStream {
            let mut client = TcpStream::connect(self.relay.listener.local_addr().unwrap()).unwrap();
            client.write_all(request).unwrap();
            self.serve(Duration::from_millis(1));
            if !request.is_empty() {
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
    fn each_connection_carries_one_request() {
        let mut server = Server::new();
        let client = server.client(&REQUEST.repeat(100));
        server.serve(SECOND);
        let answer = String::from_utf8_lossy(REQUEST);
        assert_eq!(received(&client), (format!("HTTP/1.1 200 OK {answer}"), true));
        drop(client);
        server.serve(SECOND);
        assert_eq!(server.relay.connections.len(), 0);
    }

    #[test]
    fn endless_head_is_refused() {
        let mut server = Server::new();
        let whole = server.client(&[&[b'x'; HEAD_LIMIT - 4][..], HEAD_END].concat());
        assert!(received(&whole).0.starts_with("HTTP/1.1 200 OK xxx"));
        let endless = server.client(&[b'x'; HEAD_LIMIT]);
        let (answer, ended) = received(&endless);
        assert!(answer.starts_with("HTTP/1.1 431 ") && ended, "{answer}");
    }

    #[test]
    fn each_state_of_a_connection_has_a_time_limit() {
        let mut server = Server::new();
        let silent = server.client(b"");
        let mut slow = server.client(b"GET / HT");
        let lingering = server.client(REQUEST);
        server.serve(9 * SECOND);
        slow.write_all(b"TP").unwrap();
        assert_eq!(server.relay.connections.len(), 3);
        server.serve(SECOND);
        assert!(received(&silent).1 && received(&slow).1 && received(&lingering).1);
        assert_eq!(server.relay.connections.len(), 0);
    }

    #[test]
    fn idlest_connection_is_closed_when_all_are_in_use() {
        let mut server = Server::new();
        let mut slow = server.client(b"");
        let silent: Vec<TcpStream> = (1..MOST_CONNECTIONS).map(|_| server.client(b"")).collect();
        slow.write_all(REQUEST).unwrap();
        server.serve(Duration::from_millis(1));
        let _more: Vec<TcpStream> = (0..5).map(|_| server.client(b"")).collect();
        assert_eq!(server.relay.connections.len(), MOST_CONNECTIONS);
        assert!(received(&slow).0.starts_with("HTTP/1.1 200 OK"));
        let closed = silent.iter().take_while(|client| received(client).1).count();
        assert_eq!(closed, 5);
        assert!(silent[5..].iter().all(|client| !received(client).1));
    }
}
