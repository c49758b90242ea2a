//! tiny_http on a socket that only this process can reach.
//!
//! Owns the socket and the exchange of one request. Must never see a client's connection: tiny_http starts
//! a thread per connection, reads heads of any length, and allocates the body that a client announces.

use std::fs::DirBuilder;
use std::hash::{BuildHasher, RandomState};
use std::io::{Cursor, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::net::sockopt::socket_send_buffer_size;
use rustix::net::{Shutdown, shutdown};
use tiny_http::{Request, Response, Server};

use crate::types::Moment;

/// The time limit for an exchange. One takes less than a millisecond.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long to wait for a request before checking whether tiny_http has answered by itself.
const STEP: Duration = Duration::from_millis(1);

/// The longest answer. `/metrics` has about 10,000 bytes.
const ANSWER_LIMIT: usize = 32_768;

/// With the first field, tiny_http ignores an announced length, so that it allocates nothing for a body.
/// With the second, it ends the connection after one request. Of two fields with one name it uses the first.
const REQUEST_FIELDS: &[u8] = b"Transfer-Encoding: chunked\r\nConnection: close\r\n";

/// tiny_http does not tell clients that the connection ends.
const ANSWER_FIELDS: &[u8] = b"Connection: close\r\n";

/// Versions for which tiny_http never answers and never ends the thread of the connection.
const HANGING_VERSIONS: [&[u8]; 2] = [b" HTTP/2.0", b" HTTP/3.0"];

/// Descriptors that an exchange opens: one here, two in tiny_http.
pub const DESCRIPTORS: usize = 3;

/// tiny_http and its socket.
pub struct PrivateServer {
    server: Server,
    listener: UnixListener,
    /// Refers to the socket's file, which no longer has a name.
    file: OwnedFd,
}

impl PrivateServer {
    /// Starts tiny_http.
    pub fn start() -> std::io::Result<Self> {
        let (listener, file) = listen_unnamed(Path::new("/dev/shm"))
            .or_else(|_| listen_unnamed(&std::env::temp_dir()))?;
        // tiny_http writes the whole answer before this thread reads it.
        if socket_send_buffer_size(&listener)? < 4 * ANSWER_LIMIT {
            let least = 4 * ANSWER_LIMIT;
            return Err(std::io::Error::other(format!("net.core.wmem_default is below {least}")));
        }
        let server = Server::from_listener(listener.try_clone()?, None)
            .map_err(|error| std::io::Error::other(error.to_string()))?;
        Ok(Self { server, listener, file })
    }

    /// Passes the head of one request to tiny_http and returns all bytes of the answer.
    pub fn exchange(
        &self,
        head: &[u8],
        answer: impl Fn(&Request) -> Response<Cursor<Vec<u8>>>,
    ) -> std::io::Result<Vec<u8>> {
        if HANGING_VERSIONS.iter().any(|version| find(head, version).is_some()) {
            return Ok(refusal("505 HTTP Version Not Supported"));
        }
        let mut line = UnixStream::connect(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?;
        line.write_all(&with_fields(head, REQUEST_FIELDS))?;
        line.shutdown(std::net::Shutdown::Write)?;
        let begun = Moment::now();
        // tiny_http answers a malformed request by itself.
        while poll(&mut [PollFd::new(&line, PollFlags::IN)], Some(&Timespec::default()))? == 0 {
            if let Some(request) = self.server.recv_timeout(STEP)? {
                let response = answer(&request);
                let fits = response.data_length().is_some_and(|length| length <= ANSWER_LIMIT);
                let too_long = || Response::from_string("too long\n").with_status_code(500);
                let response = if fits { response } else { too_long() };
                request.respond(response.with_chunked_threshold(usize::MAX))?;
            } else if Moment::now().since(begun) > PATIENCE {
                return Err(ErrorKind::TimedOut.into());
            }
        }
        line.set_read_timeout(Some(PATIENCE))?;
        let mut bytes = Vec::new();
        match line.read_to_end(&mut bytes) {
            // The kernel reports that tiny_http has left a part of the head unread.
            Err(error) if error.kind() != ErrorKind::ConnectionReset => return Err(error),
            Ok(_) | Err(_) => {}
        }
        if bytes.is_empty() {
            // tiny_http gives no answer to a head that is not ASCII.
            return Ok(refusal("400 Bad Request"));
        }
        Ok(with_fields(&bytes, ANSWER_FIELDS))
    }
}

impl Drop for PrivateServer {
    fn drop(&mut self) {
        // Ends tiny_http's thread that accepts connections.
        let _ = shutdown(&self.listener, Shutdown::Read);
    }
}

/// An answer without a body.
pub fn refusal(status: &str) -> Vec<u8> {
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
    with_fields(answer.as_bytes(), ANSWER_FIELDS)
}

/// Listens on a socket without a name. While it has one, only this user can enter its directory.
fn listen_unnamed(parent: &Path) -> std::io::Result<(UnixListener, OwnedFd)> {
    let name = format!(".tcptracker-{:016x}", RandomState::new().hash_one(()));
    let directory = parent.join(name);
    DirBuilder::new().mode(0o700).create(&directory)?;
    let socket = directory.join("http");
    let opened = UnixListener::bind(&socket).and_then(|listener| {
        let file = open(&socket, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        Ok((listener, file))
    });
    std::fs::remove_dir_all(&directory)?;
    opened
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// Inserts fields after the first line of a request or an answer.
fn with_fields(bytes: &[u8], fields: &[u8]) -> Vec<u8> {
    let (first, rest) = bytes.split_at(find(bytes, b"\r\n").map_or(0, |at| at + 2));
    [first, if first.is_empty() { b"" } else { fields }, rest].concat()
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketType, connect, getsockname, socket};

    use super::*;

    /// tiny_http alone would allocate announced lengths, and never answer some requests.
    #[test]
    fn each_request_gets_one_answer_and_the_end_of_its_connection() {
        let server = PrivateServer::start().unwrap();
        for (head, expected) in [
            ("GET / HTTP/1.1\r\nConnection: keep-alive", "200 OK"),
            ("HEAD / HTTP/1.1", "200 OK"),
            ("POST / HTTP/1.1\r\nContent-Length: 4", "200 OK"),
            ("POST / HTTP/1.1\r\ncontent-length: 1000000000000000", "200 OK"),
            ("POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 9000000000", "200 OK"),
            ("", "400 Bad Request"),
            ("nonsense", "400 Bad Request"),
            (&format!("nonsense\r\nX: {}", "y".repeat(8000)), "400 Bad Request"),
            ("GET / HTTP/1.1\r\nno field", "400 Bad Request"),
            ("GET /\u{e9} HTTP/1.1", "400 Bad Request"),
            ("GET / HTTP/2.0", "505 HTTP Version Not Supported"),
            ("GET / HTTP/3.0 HTTP/1.1", "505 HTTP Version Not Supported"),
        ] {
            let body = |_: &Request| Response::from_string("body");
            let bytes = server.exchange(format!("{head}\r\n\r\n").as_bytes(), body).unwrap();
            let answer = String::from_utf8(bytes).unwrap();
            let first = format!("HTTP/1.1 {expected}\r\nConnection: close\r\n");
            assert!(answer.starts_with(&first), "{head:?}: {answer}");
            let has_body = expected == "200 OK" && !head.starts_with("HEAD");
            assert!(
                answer.ends_with(if has_body { "\r\n\r\nbody" } else { "\r\n\r\n" }),
                "{answer}"
            );
        }
    }

    #[test]
    fn answer_over_the_limit_is_an_error() {
        let server = PrivateServer::start().unwrap();
        for (length, code) in [(ANSWER_LIMIT, "200"), (ANSWER_LIMIT + 1, "500")] {
            let body = |_: &Request| Response::from_data(vec![b'x'; length]);
            let answer = server.exchange(b"GET / HTTP/1.1\r\n\r\n", body).unwrap();
            assert!(answer.starts_with(format!("HTTP/1.1 {code} ").as_bytes()), "{length}");
        }
    }

    #[test]
    fn other_processes_cannot_connect() {
        let server = PrivateServer::start().unwrap();
        let stranger = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        connect(stranger, &getsockname(&server.listener).unwrap()).unwrap_err();
    }
}
