//! A bus client that writes prepared messages as fast as the bus takes them.
//!
//! A D-Bus library marshals each call and waits for replies; this client repeats one message with
//! another serial number.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use serde::Serialize;
use zbus::Message;
use zbus::message::Builder;
use zbus::zvariant::DynamicType;

use crate::bus::target;

pub const NOBODY: u32 = 65_534;

/// The flag of a call that wants no reply.
const NO_REPLY_EXPECTED: u8 = 1;

/// Messages per write.
const AT_ONCE: usize = 500;

/// A message without its serial number.
#[derive(Clone)]
pub struct Template(Vec<u8>);

impl Template {
    /// A call of the instance on `eth0` that expects a reply.
    pub fn call(interface: &str, member: &str, body: &(impl Serialize + DynamicType)) -> Self {
        let [name, object, _] = target("eth0");
        Self::of(Message::method_call(object, member).destination(name).interface(interface), body)
    }

    /// A call of a member of our own interface.
    pub fn tracker(member: &str, body: &(impl Serialize + DynamicType)) -> Self {
        Self::call("org.tcptracker.Tracker1", member, body)
    }

    /// The same call, without a reply.
    pub fn without_reply(mut self) -> Self {
        // Byte 2 of a message contains its flags.
        self.0[2] |= NO_REPLY_EXPECTED;
        self
    }

    /// A signal of our own interface.
    pub fn signal(member: &str, body: &(impl Serialize + DynamicType)) -> Self {
        let [_, object, interface] = target("eth0");
        Self::of(Message::signal(object, interface, member), body)
    }

    /// A signal of our own interface that only the instance on `eth0` gets.
    pub fn signal_to_tracker(member: &str, body: &(impl Serialize + DynamicType)) -> Self {
        let [name, object, interface] = target("eth0");
        Self::of(Message::signal(object, interface, member).destination(name), body)
    }

    /// A call of the bus itself.
    pub fn to_the_bus(member: &str, body: &(impl Serialize + DynamicType)) -> Self {
        let bus = "org.freedesktop.DBus";
        let call = Message::method_call("/org/freedesktop/DBus", member);
        Self::of(call.destination(bus).interface(bus), body)
    }

    fn of(builder: Builder<'_>, body: &(impl Serialize + DynamicType)) -> Self {
        Self(builder.build(body).unwrap().data().to_vec())
    }

    fn number(&mut self, serial: u32) {
        // The byte order is the first byte of a message.
        let bytes = if self.0[0] == b'l' { serial.to_le_bytes() } else { serial.to_be_bytes() };
        self.0[8..12].copy_from_slice(&bytes);
    }
}

/// A connection to the bus. A thread discards what the bus sends.
pub struct RawClient {
    stream: UnixStream,
    serial: u32,
}

impl RawClient {
    /// Connects as a user without groups.
    pub fn connect(address: &str, user: u32) -> Self {
        let path = address.strip_prefix("unix:path=").unwrap();
        // The bus asks the kernel which user connected.
        let mut stream = as_user(user, || UnixStream::connect(path).unwrap());
        let hex: String = user.to_string().bytes().map(|digit| format!("{digit:02x}")).collect();
        stream.write_all(format!("\0AUTH EXTERNAL {hex}\r\nBEGIN\r\n").as_bytes()).unwrap();
        let mut line = Vec::new();
        let mut byte = [0];
        while !line.ends_with(b"\r\n") {
            stream.read_exact(&mut byte).unwrap();
            line.extend(byte);
        }
        assert!(line.starts_with(b"OK "), "{}", String::from_utf8_lossy(&line));
        let mut reader = stream.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 20];
            while matches!(reader.read(&mut buffer), Ok(1..)) {}
        });
        stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        let mut client = Self { stream, serial: 0 };
        client.send(&Template::to_the_bus("Hello", &()));
        client
    }

    /// Sends a message. Returns false if the bus has disconnected us.
    pub fn send(&mut self, template: &Template) -> bool {
        self.flood(template, 1, Duration::from_secs(10))
    }

    /// Sends a message `count` times, or as often as the bus takes it within this time. Returns
    /// false if the bus has disconnected us.
    pub fn flood(&mut self, template: &Template, count: usize, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let mut message = template.clone();
        let mut left = count;
        while left > 0 && Instant::now() < deadline {
            let some = left.min(if message.0.len() > 65_536 { 1 } else { AT_ONCE });
            let mut bytes = Vec::with_capacity(some * message.0.len());
            for _ in 0..some {
                self.serial += 1;
                message.number(self.serial);
                bytes.extend(&message.0);
            }
            if !self.write(&bytes, deadline) {
                return Instant::now() >= deadline;
            }
            left -= some;
        }
        true
    }

    fn write(&mut self, mut bytes: &[u8], deadline: Instant) -> bool {
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(0) => return false,
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if Instant::now() >= deadline {
                        return false;
                    }
                }
                Err(_) => return false,
            }
        }
        true
    }
}

impl Drop for RawClient {
    fn drop(&mut self) {
        // The reader's copy would keep the connection open.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

/// Runs a closure as a user without groups, on a new thread.
pub fn as_user<T: Send>(user: u32, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || {
            let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
            set_thread_groups(&[]).unwrap();
            set_thread_res_gid(gid, gid, gid).unwrap();
            set_thread_res_uid(uid, uid, uid).unwrap();
            work()
        });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
