//! tiny_http, where nobody reaches it but the door.
//!
//! Owns its one connection. tiny_http starts a thread for each connection, reads heads of any length, waits
//! for ever, and ends the process when somebody announces a body larger than memory. So it never meets a
//! client: it gets requests the door has read whole, one at a time, over one connection within the process.

use std::io::{Cursor, ErrorKind, Read, Write};
use std::mem::ManuallyDrop;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use rustix::net::sockopt::socket_send_buffer_size;
use rustix::net::{
    AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, bind, connect, getsockname,
    listen, shutdown, socket_with,
};
use tiny_http::{Request, Response, Server};

/// How long tiny_http may take to read a request that is there. It has been seen to take microseconds.
const PATIENCE: Duration = Duration::from_secs(1);

/// The longest answer: /metrics has some 10,000 bytes.
const ANSWER_LIMIT: usize = 32_768;

/// tiny_http and the other end of its one connection.
pub struct Inside {
    /// Never dropped: nothing is left to end, and its `drop` wants a listener with an address.
    server: ManuallyDrop<Server>,
    line: UnixStream,
}

impl Inside {
    /// Starts it.
    pub fn start() -> std::io::Result<Self> {
        let new_socket = || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        };
        let listener = new_socket()?;
        // The kernel gives it a name.
        bind(&listener, &SocketAddrUnix::new_unnamed())?;
        // There is one place in the queue, and it is ours. Where somebody was faster this fails.
        listen(&listener, 0)?;
        let line = new_socket()?;
        connect(&line, &getsockname(&listener)?)?;
        // Nobody can connect any more; what is in the queue can be accepted.
        shutdown(&listener, Shutdown::Read)?;

        // An answer is written before anybody reads it, so all of it has to fit in.
        if socket_send_buffer_size(&line)? < 4 * ANSWER_LIMIT {
            let least = 4 * ANSWER_LIMIT;
            return Err(std::io::Error::other(format!("net.core.wmem_default is below {least}")));
        }
        let server = Server::from_listener(UnixListener::from(listener), None);
        let server = server.map_err(|error| std::io::Error::other(error.to_string()))?;
        Ok(Self { server: ManuallyDrop::new(server), line: line.into() })
    }

    /// Has a request answered: all bytes of the answer.
    pub fn ask(
        &mut self,
        request: &str,
        answer: impl FnOnce(&Request) -> Response<Cursor<Vec<u8>>>,
    ) -> std::io::Result<Vec<u8>> {
        self.line.write_all(request.as_bytes())?;
        let request = loop {
            match self.server.recv_timeout(PATIENCE) {
                Ok(Some(request)) => break request,
                Ok(None) => return Err(ErrorKind::TimedOut.into()),
                // Once: that there is nobody more to accept.
                Err(_) => {}
            }
        };
        let response = answer(&request);
        let response = if response.data_length().is_some_and(|length| length <= ANSWER_LIMIT) {
            response
        } else {
            Response::from_string("too long\n").with_status_code(500)
        };
        request.respond(response.with_chunked_threshold(usize::MAX))?;
        // Once it has responded, all has been written.
        let mut bytes = Vec::new();
        match self.line.read_to_end(&mut bytes) {
            Ok(_) => Err(ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(bytes),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::getpeername;

    use super::*;

    fn ask(inside: &mut Inside, request: &str, body: &str) -> String {
        let bytes = inside.ask(request, |asked| {
            Response::from_string(format!("{} {} {body}", asked.method(), asked.url()))
        });
        String::from_utf8(bytes.unwrap()).unwrap()
    }

    #[test]
    fn one_answer_comes_after_the_other() {
        let mut inside = Inside::start().unwrap();
        for path in ["/a", "/b"] {
            let answer = ask(&mut inside, &format!("GET {path} HTTP/1.1\r\n\r\n"), "");
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            assert!(answer.ends_with(&format!("\r\n\r\nGET {path} ")), "{answer}");
        }
        let head = ask(&mut inside, "HEAD /c HTTP/1.1\r\n\r\n", "");
        assert!(head.contains("\r\nContent-Length: 8\r\n") && head.ends_with("\r\n\r\n"), "{head}");
        let odd = ask(&mut inside, "{!} ~ HTTP/1.1\r\n\r\n", "");
        assert!(odd.ends_with("{!} ~ "), "{odd}");
    }

    #[test]
    fn an_answer_has_to_fit() {
        let mut inside = Inside::start().unwrap();
        let rest = ANSWER_LIMIT - "GET / ".len();
        let longest = ask(&mut inside, "GET / HTTP/1.1\r\n\r\n", &"x".repeat(rest));
        assert!(longest.ends_with('x') && longest.contains("Content-Length: 32768"), "{longest}");
        let longer = ask(&mut inside, "GET / HTTP/1.1\r\n\r\n", &"x".repeat(rest + 1));
        assert!(longer.starts_with("HTTP/1.1 500 "), "{longer}");
    }

    /// Not even somebody who knows its name.
    #[test]
    fn nobody_else_gets_in() {
        let inside = Inside::start().unwrap();
        let name = getpeername(&inside.line).unwrap().unwrap();
        let stranger =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK, None);
        connect(stranger.unwrap(), &name).unwrap_err();
    }
}
