//! The gate between the bus and the object server: the socket of the connection, which admits calls.
//!
//! Owns what a message from the bus may cost before anything looks at it: its size, and a place among the
//! calls in progress. A call that is not admitted becomes no task and no queue entry. Must never wait for
//! the caller, or for anything but the bus and the end of another call.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::num::NonZeroU32;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use async_lock::Mutex;
use futures_lite::io::{AsyncReadExt, AsyncWriteExt};
use futures_lite::{future, io as split_io};
use zbus::Message;
use zbus::connection::socket::{ReadHalf, Socket, Split, WriteHalf};
use zbus::export::async_trait::async_trait;
use zbus::message::{Header, Type};
use zbus::names::{BusName, OwnedUniqueName, UniqueName};
use zruntime::Shared;
use zruntime::net::unix::UnixStream;

use crate::api::dbus::callers::{Admission, Callers, Identity};
use crate::api::dbus::frame::{Lengths, MEMBER, SENDER, START, lengths, text_field};
use crate::types::Moment;

/// The longest call. The longest one that can succeed has about 1,200 bytes: an address, and a reason of 200
/// characters.
const LONGEST_CALL: u64 = 4096;

/// The longest reply to a call of our own. The bus names up to 65,536 groups of a user.
const LONGEST_REPLY: u64 = 1 << 20;

/// Calls of connections whose user the bus has not named yet: in all, and per connection. The bus takes
/// about a millisecond.
const MOST_EARLY_CALLS: usize = 1024;
const MOST_EARLY_CALLS_PER_NAME: usize = 8;

/// Messages in a row after which other tasks run.
const MESSAGES_IN_A_ROW: u32 = 16;

/// Bytes that are read at once: many messages of a flood.
const BUFFER: usize = 64 << 10;

/// The calls that have an effect, so that a caller may do without the reply.
const CHANGES: [&[u8]; 3] = [b"Block", b"Unblock", b"Reload"];

/// Byte 2 of a message contains its flags, and this one says that the sender wants no reply.
const FLAGS: usize = 2;
const NO_REPLY_EXPECTED: u8 = 1;

const BUS: &str = "org.freedesktop.DBus";
const BUS_PATH: &str = "/org/freedesktop/DBus";
const LIMITS_EXCEEDED: &str = "org.freedesktop.DBus.Error.LimitsExceeded";

type Writer = Arc<Mutex<split_io::WriteHalf<UnixStream<Shared>>>>;

/// The socket to the bus.
pub struct Gate {
    stream: UnixStream<Shared>,
    callers: Arc<Callers>,
}

impl Gate {
    pub fn new(stream: UnixStream<Shared>, callers: Arc<Callers>) -> Self {
        Self { stream, callers }
    }
}

impl Socket for Gate {
    type ReadHalf = In;
    type WriteHalf = Out;

    fn split(self) -> Split<In, Out> {
        let (reader, writer) = split_io::split(self.stream);
        let writer = Arc::new(Mutex::new(writer));
        let input = In {
            stream: reader,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            start: 0,
            end: 0,
            writer: Arc::clone(&writer),
            callers: Arc::clone(&self.callers),
            early: HashMap::new(),
            lookups: HashMap::new(),
            known: VecDeque::new(),
        };
        Split::new(input, Out { writer, callers: self.callers })
    }
}

/// A message as bytes. `wants_reply` is what the sender asked for; the bytes ask for a reply in any case, so
/// that the end of each call is seen.
#[derive(Debug)]
struct Frame {
    bytes: Vec<u8>,
    wants_reply: bool,
    /// Its body was too long and has been discarded.
    is_too_long: bool,
}

/// What comes from the bus.
#[derive(Debug)]
pub struct In {
    stream: split_io::ReadHalf<UnixStream<Shared>>,
    /// Bytes that have been read, between `start` and `end`.
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    writer: Writer,
    callers: Arc<Callers>,
    /// Calls of connections whose user is not known yet.
    early: HashMap<OwnedUniqueName, Vec<Frame>>,
    /// The questions to the bus about these connections.
    lookups: HashMap<NonZeroU32, OwnedUniqueName>,
    /// Calls whose user has just become known.
    known: VecDeque<Frame>,
}

#[async_trait]
impl ReadHalf for In {
    async fn receive_message(
        &mut self,
        number: u64,
        already_received: &mut Vec<u8>,
        _descriptors: &mut Vec<OwnedFd>,
    ) -> zbus::Result<Message> {
        if !already_received.is_empty() {
            self.take_back(already_received);
        }
        loop {
            for _ in 0..MESSAGES_IN_A_ROW {
                if let Some(message) = self.next(number).await? {
                    return Ok(message);
                }
            }
            future::yield_now().await;
        }
    }

    /// Only the authentication reads bytes, before the first message.
    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        Ok((self.stream.read(buffer).await?, Vec::new()))
    }
}

impl In {
    /// Handles the next message. Returns it if it is for the connection.
    async fn next(&mut self, number: u64) -> zbus::Result<Option<Message>> {
        if let Some(call) = self.known.pop_front() {
            return self.judge(call, number).await;
        }
        let Some((kind, frame)) = self.read().await? else { return Ok(None) };
        match kind {
            Type::MethodCall => self.judge(frame, number).await,
            // The bus transports valid messages only; an invalid one is left out.
            _ => match parse(frame.bytes, number).await {
                Ok(message) if kind == Type::Signal => Ok(self.hear(message)),
                Ok(message) => Ok(self.take_answer(message)),
                Err(_) => Ok(None),
            },
        }
    }

    /// Reads a message. One that is too long is skipped without being kept; the head of a call remains, so
    /// that the caller can be answered. Skips what needs no answer and has no effect.
    async fn read(&mut self) -> io::Result<Option<(Type, Frame)>> {
        self.fill(START).await?;
        let start = self.buffer[self.start..].first_chunk();
        let Some(Lengths { kind, head, total }) = start.and_then(lengths) else {
            return Err(io::Error::new(ErrorKind::InvalidData, "not a D-Bus message"));
        };
        let longest = match kind {
            Type::MethodCall | Type::Signal => LONGEST_CALL,
            Type::MethodReturn | Type::Error => LONGEST_REPLY,
        };
        let is_too_long = total > longest;
        if is_too_long && (head > longest || kind != Type::MethodCall) {
            self.skip(total).await?;
            return Ok(None);
        }
        let kept = usize::try_from(if is_too_long { head } else { total }).unwrap_or(START);
        if longest == LONGEST_CALL {
            self.fill(kept).await?;
            if !is_relevant(kind, &self.buffer[self.start..self.start + kept]) {
                self.callers.note_refusal(Moment::now());
                self.skip(total).await?;
                return Ok(None);
            }
        }
        let mut bytes = vec![0; kept];
        let (read, rest) = bytes.split_at_mut(kept.min(self.end - self.start));
        read.copy_from_slice(&self.buffer[self.start..self.start + read.len()]);
        self.start += read.len();
        self.stream.read_exact(rest).await?;
        if is_too_long {
            self.skip(total - head).await?;
            // The length of the body.
            bytes[4..8].fill(0);
        }
        let wants_reply = bytes[FLAGS] & NO_REPLY_EXPECTED == 0;
        bytes[FLAGS] &= !NO_REPLY_EXPECTED;
        Ok(Some((kind, Frame { bytes, wants_reply, is_too_long })))
    }

    /// Reads until the buffer holds this many bytes, at most the longest call.
    async fn fill(&mut self, count: usize) -> io::Result<()> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        while self.end - self.start < count {
            if self.buffer.len() - self.start < count {
                self.buffer.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            }
            match self.stream.read(&mut self.buffer[self.end..]).await? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                read => self.end += read,
            }
        }
        Ok(())
    }

    async fn skip(&mut self, mut count: u64) -> io::Result<()> {
        loop {
            let available = self.end - self.start;
            let skipped = available.min(usize::try_from(count).unwrap_or(usize::MAX));
            self.start += skipped;
            count -= skipped as u64;
            if count == 0 {
                return Ok(());
            }
            self.fill(1).await?;
            future::yield_now().await;
        }
    }

    /// Puts bytes back that the authentication has read too far.
    fn take_back(&mut self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.buffer[self.start..self.end]);
        self.end = bytes.len();
        self.start = 0;
        bytes.resize(self.end.max(BUFFER), 0);
        self.buffer = std::mem::take(bytes).into_boxed_slice();
    }

    /// Decides about a call. Returns it if it may begin.
    async fn judge(&mut self, call: Frame, number: u64) -> zbus::Result<Option<Message>> {
        let wants_reply = call.wants_reply;
        let Ok(message) = parse(call.bytes, number).await else { return Ok(None) };
        let header = message.header();
        let Some(sender) = header.sender() else { return Ok(None) };
        if call.is_too_long {
            let why = format!("the call is too long: at most {LONGEST_CALL} bytes");
            self.refuse(&header, wants_reply, &why).await?;
            return Ok(None);
        }
        loop {
            let number = header.primary().serial_num();
            match self.callers.admit(sender, number, wants_reply, Moment::now()) {
                Admission::Admitted => break,
                Admission::Full => self.callers.await_end().await,
                Admission::Repeated => return Ok(None),
                Admission::Stranger => {
                    self.look_up(&message, wants_reply).await?;
                    return Ok(None);
                }
                Admission::Refused(why) => {
                    let why = format!("{why}; wait for their answers");
                    self.refuse(&header, wants_reply, &why).await?;
                    return Ok(None);
                }
            }
        }
        Ok(Some(message))
    }

    /// Keeps the call of an unknown connection until the bus has answered which user it is.
    async fn look_up(&mut self, message: &Message, wants_reply: bool) -> zbus::Result<()> {
        let header = message.header();
        let Some(sender) = header.sender() else { return Ok(()) };
        let name = OwnedUniqueName::from(sender.to_owned());
        let (all, own) =
            (self.early.values().map(Vec::len).sum::<usize>(), self.early.get(&name).map(Vec::len));
        if all >= MOST_EARLY_CALLS || own.is_some_and(|own| own >= MOST_EARLY_CALLS_PER_NAME) {
            return self.refuse(&header, wants_reply, "too many calls at once; try again").await;
        }
        let bytes = message.data().to_vec();
        let frame = Frame { bytes, wants_reply, is_too_long: false };
        self.early.entry(name.clone()).or_default().push(frame);
        if own.is_none() {
            let question = Message::method_call(BUS_PATH, "GetConnectionCredentials")
                .destination(BUS)
                .interface(BUS)
                .build(&name)?;
            self.lookups.insert(question.primary_header().serial_num(), name);
            send(&self.writer, &question).await?;
        }
        Ok(())
    }

    /// Takes the bus's answer about a connection. Returns other answers.
    fn take_answer(&mut self, message: Message) -> Option<Message> {
        let header = message.header();
        let name = header.reply_serial().and_then(|serial| self.lookups.remove(&serial));
        let Some(name) = name else { return Some(message) };
        let calls = self.early.remove(&name).unwrap_or_default();
        // An error means that the connection has closed.
        if header.message_type() == Type::MethodReturn
            && let Ok(credentials) = message.body().deserialize()
            && let Some(identity) = Identity::read(credentials)
        {
            self.callers.introduce(name, identity);
            self.known.extend(calls);
        }
        None
    }

    /// Takes the bus's signal that a connection has closed. Returns its other signals.
    fn hear(&self, message: Message) -> Option<Message> {
        if message.header().member().is_none_or(|member| member.as_str() != "NameOwnerChanged") {
            return Some(message);
        }
        let body = message.body();
        if let Ok((name, _, "")) = body.deserialize::<(&str, &str, &str)>()
            && let Ok(name) = UniqueName::try_from(name)
        {
            self.callers.leave(&name);
        }
        None
    }

    async fn refuse(&self, call: &Header<'_>, wanted: bool, why: &str) -> zbus::Result<()> {
        self.callers.note_refusal(Moment::now());
        if !wanted {
            return Ok(());
        }
        let refusal = Message::error(call, LIMITS_EXCEEDED).build(&why)?;
        send(&self.writer, &refusal).await
    }
}

/// What goes to the bus.
#[derive(Debug)]
pub struct Out {
    writer: Writer,
    callers: Arc<Callers>,
}

#[async_trait]
impl WriteHalf for Out {
    /// Sends a message. A reply ends its call once it is sent, and is sent only if the caller is still there
    /// and wants it.
    async fn send_message(&mut self, message: &Message) -> zbus::Result<()> {
        let header = message.header();
        let call = match (header.destination(), header.reply_serial()) {
            (Some(BusName::Unique(caller)), Some(serial)) => (caller, serial),
            _ => return send(&self.writer, message).await,
        };
        let Some(is_wanted) = self.callers.wants_reply(call.0, call.1) else { return Ok(()) };
        let sent = if is_wanted { send(&self.writer, message).await } else { Ok(()) };
        self.callers.finish(call.0, call.1);
        sent
    }

    /// Only the authentication writes bytes.
    async fn sendmsg(&mut self, bytes: &[u8], _: &[BorrowedFd<'_>]) -> io::Result<usize> {
        self.writer.lock().await.write(bytes).await
    }

    async fn close(&mut self) -> io::Result<()> {
        self.writer.lock().await.close().await
    }
}

async fn send(writer: &Writer, message: &Message) -> zbus::Result<()> {
    Ok(writer.lock().await.write_all(message.data()).await?)
}

/// Whether a message has to be looked at: a call that has an effect or wants a reply, or a signal of the bus.
fn is_relevant(kind: Type, message: &[u8]) -> bool {
    let field = |code| text_field(message, code).unwrap_or_default();
    match kind {
        Type::MethodCall => {
            message[FLAGS] & NO_REPLY_EXPECTED == 0 || CHANGES.contains(&field(MEMBER))
        }
        Type::Signal => field(SENDER) == BUS.as_bytes(),
        Type::MethodReturn | Type::Error => true,
    }
}

/// Makes a message of the bytes of one. The library reads messages only from sockets.
async fn parse(mut bytes: Vec<u8>, number: u64) -> zbus::Result<Message> {
    Complete.receive_message(number, &mut bytes, &mut Vec::new()).await
}

/// A socket from which nothing more comes.
#[derive(Debug)]
struct Complete;

#[async_trait]
impl ReadHalf for Complete {
    async fn recvmsg(&mut self, _: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        Ok((0, Vec::new()))
    }
}
