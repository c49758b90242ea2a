//! tiny_http on a socket that only this process can reach.
//!
//! Owns the socket and the exchange of one request. Must never see a client's connection: tiny_http starts
//! a thread per connection, reads heads of any length, and allocates the body that a client announces.

use std::hash::{BuildHasher, RandomState};
use std::io::{Cursor, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, chmod, open, unlink};
use rustix::net::sockopt::socket_send_buffer_size;
use rustix::net::{
    AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen,
    shutdown, socket_with,
};
use tiny_http::{Request, Response, Server};

use crate::types::clock::Moment;

/// The time limit for an exchange. One takes less than a millisecond.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long to wait for a request before checking whether tiny_http has answered by itself.
const STEP: Duration = Duration::from_millis(1);

/// The longest answer. `/metrics` has about 10,000 bytes.
const ANSWER_LIMIT: usize = 32_768;

/// The end of a line in a head.
const LINE_END: &[u8] = b"\r\n";

/// With the first field, tiny_http ignores an announced length, so that it allocates nothing for a body.
/// With the second, it ends the connection after one request. Of two fields with one name it uses the first.
const REQUEST_FIELDS: &[u8] = b"Transfer-Encoding: chunked\r\nConnection: close\r\n";

/// tiny_http does not tell clients that the connection ends.
const ANSWER_FIELDS: &[u8] = b"Connection: close\r\n";

/// Versions for which tiny_http never answers and never ends the thread of the connection.
const HANGING_VERSIONS: [&[u8]; 2] = [b" HTTP/2.0", b" HTTP/3.0"];
const VERSION_NOT_SUPPORTED: &[u8] = b"HTTP/1.1 505 HTTP Version Not Supported\r\n\
    Connection: close\r\nContent-Length: 0\r\n\r\n";

/// Descriptors that an exchange opens: one here, two in tiny_http.
pub const DESCRIPTORS: usize = 3;

/// tiny_http and its socket.
pub struct PrivateServer {
    server: Server,
    listener: UnixListener,
    /// Refers to the socket's file, which no longer has a name.
    socket: OwnedFd,
}

impl PrivateServer {
    /// Starts tiny_http.
    pub fn start() -> std::io::Result<Self> {
        let variables = ["RUNTIME_DIRECTORY", "STATE_DIRECTORY"].into_iter();
        let mut directories: Vec<PathBuf> =
            variables.filter_map(|name| std::env::var_os(name).map(PathBuf::from)).collect();
        directories.extend([std::env::temp_dir(), PathBuf::from("/dev/shm")]);
        let mut listening = Err(ErrorKind::NotFound.into());
        for directory in directories {
            listening = listen_unnamed(&directory);
            if listening.is_ok() {
                break;
            }
        }
        let (listener, socket) = listening?;
        // tiny_http writes the whole answer before this thread reads it.
        if socket_send_buffer_size(&listener)? < 4 * ANSWER_LIMIT {
            let least = 4 * ANSWER_LIMIT;
            return Err(std::io::Error::other(format!("net.core.wmem_default is below {least}")));
        }
        let server = Server::from_listener(listener.try_clone()?, None)
            .map_err(|error| std::io::Error::other(error.to_string()))?;
        Ok(Self { server, listener, socket })
    }

    /// Passes the head of one request to tiny_http and returns all bytes of the answer.
    pub fn exchange(
        &self,
        head: &[u8],
        answer: impl FnOnce(&Request) -> Response<Cursor<Vec<u8>>>,
    ) -> std::io::Result<Vec<u8>> {
        if HANGING_VERSIONS.iter().any(|version| find(head, version).is_some()) {
            return Ok(VERSION_NOT_SUPPORTED.to_vec());
        }
        let mut line = self.connect()?;
        line.write_all(&with_fields(head, REQUEST_FIELDS))?;
        line.shutdown(std::net::Shutdown::Write)?;
        let begun = Moment::now();
        // tiny_http answers a malformed request by itself.
        while !is_readable(&line)? {
            if let Some(request) = self.server.recv_timeout(STEP)? {
                let response = answer(&request);
                let fits = response.data_length().is_some_and(|length| length <= ANSWER_LIMIT);
                let too_long = || Response::from_string("too long\n").with_status_code(500);
                let response = if fits { response } else { too_long() };
                request.respond(response.with_chunked_threshold(usize::MAX))?;
                break;
            }
            if Moment::now().since(begun) > PATIENCE {
                return Err(ErrorKind::TimedOut.into());
            }
        }
        line.set_read_timeout(Some(PATIENCE))?;
        let mut bytes = Vec::new();
        line.read_to_end(&mut bytes)?;
        Ok(with_fields(&bytes, ANSWER_FIELDS))
    }

    fn connect(&self) -> std::io::Result<UnixStream> {
        let line = unix_socket()?;
        let path = format!("/proc/self/fd/{}", self.socket.as_raw_fd());
        connect(&line, &SocketAddrUnix::new(path)?)?;
        Ok(line.into())
    }
}

impl Drop for PrivateServer {
    fn drop(&mut self) {
        // Ends tiny_http's thread that accepts connections.
        let _ = shutdown(&self.listener, Shutdown::Read);
    }
}

fn unix_socket() -> std::io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

/// Listens on a socket without a name. The name goes before the socket listens, and nobody else may open
/// the file meanwhile.
fn listen_unnamed(directory: &Path) -> std::io::Result<(UnixListener, OwnedFd)> {
    let name = format!(".tcptracker-{:016x}", RandomState::new().hash_one(()));
    let path = directory.join(name);
    let listener = unix_socket()?;
    bind(&listener, &SocketAddrUnix::new(&path)?)?;
    let opened = chmod(&path, Mode::RUSR | Mode::WUSR)
        .and_then(|()| open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()));
    unlink(&path)?;
    let socket = opened?;
    listen(&listener, 1)?;
    Ok((listener.into(), socket))
}

fn is_readable(line: &UnixStream) -> std::io::Result<bool> {
    let mut fds = [PollFd::new(line, PollFlags::IN)];
    Ok(poll(&mut fds, Some(&Timespec::default()))? > 0)
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// Inserts fields after the first line of a request or an answer.
fn with_fields(bytes: &[u8], fields: &[u8]) -> Vec<u8> {
    let line = find(bytes, LINE_END);
    let (first, rest) = bytes.split_at(line.map_or(bytes.len(), |at| at + LINE_END.len()));
    let inserted = if line.is_some() { fields } else { b"" };
    [first, inserted, rest].concat()
}

#[cfg(test)]
mod tests {
    use rustix::net::getsockname;

    use super::*;

    fn exchange(server: &PrivateServer, head: &str, body: &str) -> String {
        let answer = server.exchange(head.as_bytes(), |request| {
            Response::from_string(format!("{} {} {body}", request.method(), request.url()))
        });
        String::from_utf8(answer.unwrap()).unwrap()
    }

    #[test]
    fn each_request_gets_one_answer_and_the_end_of_its_connection() {
        let server = PrivateServer::start().unwrap();
        for path in ["/a", "/b"] {
            let fields = "Host: a\r\nConnection: keep-alive";
            let answer = exchange(&server, &format!("GET {path} HTTP/1.1\r\n{fields}\r\n\r\n"), "");
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\nConnection: close\r\n"), "{answer}");
            assert!(answer.ends_with(&format!("\r\n\r\nGET {path} ")), "{answer}");
        }
        let head = exchange(&server, "HEAD /c HTTP/1.1\r\n\r\n", "");
        assert!(head.contains("\r\nContent-Length: 8\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    }

    /// tiny_http would allocate the announced length.
    #[test]
    fn announced_body_is_neither_allocated_nor_awaited() {
        let server = PrivateServer::start().unwrap();
        for length in ["4", "1000000000000000", "18446744073709551615"] {
            for expectation in ["", "Expect: 100-continue\r\n"] {
                let fields = format!("{expectation}content-length: {length}\r\n");
                let answer = exchange(&server, &format!("POST / HTTP/1.1\r\n{fields}\r\n"), "");
                assert!(answer.starts_with("HTTP/1.1 200 "), "{fields}: {answer}");
            }
        }
    }

    #[test]
    fn unsupported_version_does_not_reach_tiny_http() {
        let server = PrivateServer::start().unwrap();
        for version in ["HTTP/2.0", "HTTP/3.0", "HTTP/2.0 HTTP/1.1"] {
            let answer = exchange(&server, &format!("GET / {version}\r\n\r\n"), "");
            assert!(answer.starts_with("HTTP/1.1 505 "), "{answer}");
        }
    }

    #[test]
    fn malformed_request_gets_an_error_status_or_none() {
        let server = PrivateServer::start().unwrap();
        for bad in ["nonsense\r\n\r\n", "\r\n\r\n", "GET / HTTP/1.1\r\nno field\r\n\r\n"] {
            assert!(exchange(&server, bad, "").starts_with("HTTP/1.1 400 "), "{bad:?}");
        }
        assert_eq!(exchange(&server, "GET /\u{e9} HTTP/1.1\r\n\r\n", ""), "");
        assert!(exchange(&server, "GET / HTTP/1.1\r\n\r\n", "").ends_with("GET / "));
    }

    #[test]
    fn answer_over_the_limit_is_an_error() {
        let server = PrivateServer::start().unwrap();
        let rest = ANSWER_LIMIT - "GET / ".len();
        let longest = exchange(&server, "GET / HTTP/1.1\r\n\r\n", &"x".repeat(rest));
        assert!(longest.ends_with('x') && longest.contains("Content-Length: 32768"), "{longest}");
        let longer = exchange(&server, "GET / HTTP/1.1\r\n\r\n", &"x".repeat(rest + 1));
        assert!(longer.starts_with("HTTP/1.1 500 "), "{longer}");
    }

    #[test]
    fn other_processes_cannot_connect() {
        let server = PrivateServer::start().unwrap();
        let name = getsockname(&server.listener).unwrap();
        connect(unix_socket().unwrap(), &name).unwrap_err();
    }
}
