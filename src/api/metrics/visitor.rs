//! One connection to the metrics port.
//!
//! Owns what has come of a request and what of its answer is still to be sent. Never waits: each step takes
//! what is there and gives what is taken.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::net::{Shutdown, shutdown};

use crate::api::metrics::head;
use crate::api::metrics::head::{Ask, Head};
use crate::types::clock::Moment;

/// How long a client may take to ask, to take its answer, and to hang up after the last one.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long it may stay between one request and the next: scrapers ask once a minute or more often.
const PATIENCE_BETWEEN: Duration = Duration::from_secs(300);

/// What a client is about to do.
enum State {
    /// It asks.
    Asking,
    /// It takes its answer, of which so much is sent.
    Taking { answer: Vec<u8>, sent: usize, last: bool },
    /// It has had its last answer. What it still has to say is not heard; but if it were cut short in the
    /// middle of it, it might not hear the answer.
    Leaving,
}

/// A client.
pub struct Visitor {
    stream: TcpStream,
    state: State,
    /// When that began.
    since: Moment,
    /// What has come and was not answered yet.
    heard: Vec<u8>,
    has_asked: bool,
    /// There is something to hear, or room for something to send.
    pub is_called: bool,
}

/// It is gone, or is to go.
pub struct Gone;

impl Visitor {
    /// One that has just come.
    pub fn new(stream: TcpStream, now: Moment) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        let state = State::Asking;
        Ok(Self { stream, state, since: now, heard: Vec::new(), has_asked: false, is_called: true })
    }

    /// Since when it has got no further.
    pub const fn since(&self) -> Moment {
        self.since
    }

    /// Whether it has taken too long.
    pub fn is_late(&self, now: Moment) -> bool {
        let between = self.has_asked && matches!(self.state, State::Asking);
        now.since(self.since) >= if between { PATIENCE_BETWEEN } else { PATIENCE }
    }

    /// What to wait for until the next step.
    pub fn awaited(&self) -> PollFd<'_> {
        let flags = match self.state {
            State::Asking if matches!(head::read(&self.heard), Head::Incomplete) => PollFlags::IN,
            State::Asking | State::Taking { .. } => PollFlags::OUT,
            State::Leaving => PollFlags::IN,
        };
        PollFd::from_borrowed_fd(self.stream.as_fd(), flags)
    }

    /// One step: hears what has come, has one request answered, sends what is taken of the answer. No more
    /// than that, so that others get their turn.
    pub fn step(
        &mut self,
        now: Moment,
        answer: &mut impl FnMut(&Ask) -> std::io::Result<Vec<u8>>,
    ) -> Result<(), Gone> {
        match self.state {
            State::Asking => {
                if matches!(head::read(&self.heard), Head::Incomplete) {
                    self.hear()?;
                }
                let (answer, last) = match head::read(&self.heard) {
                    Head::Incomplete => return Ok(()),
                    Head::Refused(status) => (refusal(status), true),
                    Head::Asks(ask) => {
                        self.heard.drain(..ask.length);
                        (with_farewell(answer(&ask).map_err(|_| Gone)?, ask.last), ask.last)
                    }
                };
                self.has_asked = true;
                self.go_on(State::Taking { answer, sent: 0, last }, now);
                self.send(now)
            }
            State::Taking { .. } => self.send(now),
            State::Leaving => {
                self.heard.clear();
                self.hear()
            }
        }
    }

    fn go_on(&mut self, state: State, now: Moment) {
        (self.state, self.since) = (state, now);
    }

    fn hear(&mut self) -> Result<(), Gone> {
        let mut bytes = [0; head::LIMIT];
        let room = head::LIMIT - self.heard.len();
        match self.stream.read(&mut bytes[..room]) {
            Ok(0) => Err(Gone),
            Ok(length) => {
                self.heard.extend(&bytes[..length]);
                Ok(())
            }
            Err(error) => is_to_be_awaited(&error),
        }
    }

    fn send(&mut self, now: Moment) -> Result<(), Gone> {
        let State::Taking { answer, sent, last } = &mut self.state else { return Ok(()) };
        match self.stream.write(&answer[*sent..]) {
            Ok(length) => *sent += length,
            Err(error) => return is_to_be_awaited(&error),
        }
        if *sent < answer.len() {
            return Ok(());
        }
        if *last {
            shutdown(&self.stream, Shutdown::Write).map_err(|_| Gone)?;
            self.go_on(State::Leaving, now);
        } else {
            self.go_on(State::Asking, now);
        }
        Ok(())
    }
}

fn is_to_be_awaited(error: &std::io::Error) -> Result<(), Gone> {
    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) {
        Ok(())
    } else {
        Err(Gone)
    }
}

const FAREWELL: &[u8] = b"Connection: close\r\n";

/// tiny_http does not know that it is the last.
fn with_farewell(mut answer: Vec<u8>, last: bool) -> Vec<u8> {
    let end_of_first_line = answer.windows(2).position(|window| window == b"\r\n");
    if let Some(at) = end_of_first_line.filter(|_| last) {
        answer.splice(at + 2..at + 2, FAREWELL.iter().copied());
    }
    answer
}

fn refusal(status: &str) -> Vec<u8> {
    let farewell = String::from_utf8_lossy(FAREWELL);
    format!("HTTP/1.1 {status}\r\n{farewell}Content-Length: 0\r\n\r\n").into_bytes()
}
