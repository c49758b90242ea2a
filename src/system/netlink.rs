//! Netlink, as far as the service needs it.
//!
//! Owns the framing (linux/netlink.h, RFC 3549): messages, attributes, acknowledgements, dumps. Must not
//! know what a message means, and must not read beyond the bounds of what the kernel sends.

use std::iter;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, getsockname,
    recv, send, socket_with, sockopt,
};

use crate::system::reserve;
use crate::types::Family;

const HEADER: usize = 16;
/// The most that the kernel puts into one datagram of a dump (af_netlink.c, `netlink_dump`). A refusal
/// repeats the request after a header of its own, which limits the length of a request.
const BUFFER: usize = 32 << 10;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// `NLM_F_REQUEST`
const REQUEST: u16 = 0x01;
/// `NLM_F_ACK`
const ACK: u16 = 0x04;
/// `NLM_F_EXCL`
pub const EXCL: u16 = 0x200;
/// `NLM_F_CREATE`
pub const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`
pub const APPEND: u16 = 0x800;
/// `NLM_F_NONREC`
pub const NONREC: u16 = 0x100;
/// `NLM_F_DUMP`
const DUMP: u16 = 0x300;

/// `NLA_F_NESTED`
const NESTED: u16 = 0x8000;
/// `NLA_F_NET_BYTEORDER`
const NET_BYTE_ORDER: u16 = 0x4000;

/// The reason why a request to the kernel failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("the netlink socket failed: {0}")]
    Socket(#[from] Errno),
    /// The code is an errno, or the subsystem's own from 4096 on.
    #[error("the kernel refused the request: {}", describe(*.0))]
    Refused(i32),
    #[error("cannot read the kernel's netlink answer: it is malformed")]
    Garbled,
}

fn describe(code: i32) -> String {
    if code < 4096 { Errno::from_raw_os_error(code).to_string() } else { format!("error {code}") }
}

pub struct NetlinkSocket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl NetlinkSocket {
    /// Opens a socket of this netlink family (`None` is `NETLINK_ROUTE`, number 0) and subscribes to
    /// these multicast groups (a bit mask).
    pub fn open(protocol: Option<Protocol>, groups: u32) -> Result<Self, NetlinkError> {
        let fd = reserve::spend(|| {
            socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)
        })?;
        bind(&fd, &SocketAddrNetlink::new(0, groups))?;
        // A missing answer must not stop the thread that waits for it.
        let patience = std::time::Duration::from_secs(5);
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(patience))?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Sends a request and waits for the kernel's acknowledgement.
    pub fn request(&mut self, kind: u16, flags: u16, body: &Body) -> Result<(), NetlinkError> {
        self.exchange(&[(kind, flags | REQUEST | ACK, body)], |_, _| {})
    }

    /// Sends a request and passes the kind and body of each answer to `each` until the last one.
    pub fn dump(
        &mut self,
        kind: u16,
        body: &Body,
        each: impl FnMut(u16, &[u8]),
    ) -> Result<(), NetlinkError> {
        self.exchange(&[(kind, REQUEST | DUMP, body)], each)
    }

    /// Sends a request for one object and passes it to `each`.
    pub fn query(
        &mut self,
        kind: u16,
        body: &Body,
        each: impl FnMut(u16, &[u8]),
    ) -> Result<(), NetlinkError> {
        self.exchange(&[(kind, REQUEST | ACK, body)], each)
    }

    /// Sends requests that the kernel carries out all or none, between two messages that enclose them. Waits
    /// for the acknowledgement of the last request, or the first refusal.
    pub fn transact(
        &mut self,
        [begin, end]: &[Request; 2],
        requests: &[Request],
    ) -> Result<(), NetlinkError> {
        let Some((last, others)) = requests.split_last() else { return Ok(()) };
        let others = others.iter().map(|request| (request, REQUEST));
        let messages: Vec<_> = iter::once((begin, REQUEST))
            .chain(others)
            .chain([(last, REQUEST | ACK), (end, REQUEST)])
            .map(|(request, flags)| (request.kind, request.flags | flags, &request.body))
            .collect();
        self.exchange(&messages, |_, _| {})
    }

    /// Sends messages (kind, flags and body), and passes the answers to `each` until an acknowledgement.
    fn exchange(
        &mut self,
        messages: &[(u16, u16, &Body)],
        mut each: impl FnMut(u16, &[u8]),
    ) -> Result<(), NetlinkError> {
        // All have the same number, because the kernel may refuse all with the number of the first.
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        for (kind, flags, Body(body)) in messages {
            let length = u32::try_from(HEADER + body.len())
                .map_err(|_| NetlinkError::Garbled)?
                .to_ne_bytes();
            let (kind, flags) = (kind.to_ne_bytes(), flags.to_ne_bytes());
            let sequence = self.sequence.to_ne_bytes();
            for part in [&length[..], &kind, &flags, &sequence, &[0; 4], body] {
                bytes.extend(part);
            }
        }
        send(&self.fd, &bytes, SendFlags::empty())?;
        loop {
            let length = loop {
                match recv(&self.fd, &mut self.buffer[..], RecvFlags::empty()) {
                    Ok((length, _)) => break length,
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            };
            let answers = Messages(self.buffer.get(..length).unwrap_or_default());
            for Message { kind, body, .. } in
                answers.filter(|answer| answer.sequence == self.sequence)
            {
                match kind {
                    NLMSG_ERROR | NLMSG_DONE => return acknowledgement(body),
                    kind => each(kind, body),
                }
            }
        }
    }

    /// The address of this socket: the kernel's notifications name the one that caused them.
    pub fn port(&self) -> Result<u32, NetlinkError> {
        let address = SocketAddrNetlink::try_from(getsockname(&self.fd)?)?;
        Ok(address.pid())
    }

    /// Passes on the notifications that have arrived: the address of the socket that caused them, their kind
    /// and body. Returns false if some were lost because there were too many.
    pub fn for_each_notification(
        &mut self,
        mut each: impl FnMut(u32, u16, &[u8]),
    ) -> Result<bool, NetlinkError> {
        let mut is_complete = true;
        loop {
            match recv(&self.fd, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) | Err(Errno::AGAIN) => return Ok(is_complete),
                Ok((length, _)) => {
                    let datagram = self.buffer.get(..length).unwrap_or_default();
                    for message in Messages(datagram) {
                        each(message.port, message.kind, message.body);
                    }
                }
                Err(Errno::NOBUFS) => is_complete = false,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for NetlinkSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Reads the error code at the head of an acknowledgement: a negative errno, or zero.
pub fn acknowledgement(body: &[u8]) -> Result<(), NetlinkError> {
    match u32_at(body, 0).map(u32::cast_signed) {
        Some(0) => Ok(()),
        Some(code) => Err(NetlinkError::Refused(code.wrapping_neg())),
        None => Err(NetlinkError::Garbled),
    }
}

/// A message of a datagram.
struct Message<'a> {
    kind: u16,
    sequence: u32,
    /// The address of the socket that it answers, or that caused it.
    port: u32,
    body: &'a [u8],
}

/// The messages of a datagram.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::try_from(u32_at(self.0, 0)?).ok()?;
        let (kind, sequence) = (u16_at(self.0, 4)?, u32_at(self.0, 8)?);
        let (port, body) = (u32_at(self.0, 12)?, self.0.get(HEADER..length)?);
        self.0 = self.0.get(aligned(length)..).unwrap_or_default();
        Some(Message { kind, sequence, port, body })
    }
}

/// The bodies of the messages of a datagram, for the fuzz targets.
pub fn bodies(datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    Messages(datagram).map(|message| message.body)
}

/// A request: what it asks for, flags that say how, and its body.
#[derive(Debug)]
pub struct Request {
    pub kind: u16,
    pub flags: u16,
    pub body: Body,
}

/// The body of a request: a fixed header and attributes.
#[derive(Debug, Default)]
pub struct Body(Vec<u8>);

impl From<Vec<u8>> for Body {
    fn from(mut bytes: Vec<u8>) -> Self {
        // The next message begins at a multiple of four bytes.
        bytes.resize(aligned(bytes.len()), 0);
        Self(bytes)
    }
}

impl Body {
    pub fn with_header(header: &[u8]) -> Self {
        Self(header.to_vec())
    }

    /// A body for netfilter about an address family (`struct nfgenmsg`).
    pub fn for_family(family: Family) -> Self {
        Self::with_header(&[family.number(), 0, 0, 0])
    }

    #[must_use]
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        // No caller adds an attribute of nearly 64 KiB.
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(aligned(self.0.len()), 0);
        self
    }

    /// Adds a text and its final NUL.
    #[must_use]
    pub fn text(self, kind: u16, value: &str) -> Self {
        self.attribute(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// Adds a number that is marked as being in network byte order.
    #[must_use]
    pub fn big_endian_u32(self, kind: u16, value: u32) -> Self {
        self.attribute(kind | NET_BYTE_ORDER, &value.to_be_bytes())
    }

    /// Adds an attribute that is marked as being in network byte order.
    #[must_use]
    pub fn network_order(self, kind: u16, value: &[u8]) -> Self {
        self.attribute(kind | NET_BYTE_ORDER, value)
    }

    /// Adds an attribute that consists of attributes.
    #[must_use]
    pub fn nested(self, kind: u16, inner: &Self) -> Self {
        self.attribute(kind | NESTED, &inner.0)
    }
}

/// The attributes of a message. Each has a kind, without its flag bits, and a value.
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & !(NESTED | NET_BYTE_ORDER);
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(aligned(length)..).unwrap_or_default();
        Some((kind, value))
    }
}

impl<'a> Attributes<'a> {
    pub fn of(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The attributes of an answer of netfilter, after its `struct nfgenmsg`.
    pub fn of_netfilter(answer: &'a [u8]) -> Self {
        Self(answer.get(4..).unwrap_or_default())
    }

    /// The first attribute of a kind.
    pub fn find(&self, kind: u16) -> Option<&'a [u8]> {
        Self(self.0).find_map(|(found, value)| (found == kind).then_some(value))
    }

    /// The first attribute of a kind as a number in network byte order.
    pub fn find_u32(&self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.find(kind)?.try_into().ok()?))
    }

    /// The attribute at the end of a path of nested attributes.
    pub fn find_nested(&self, path: &[u16]) -> Option<&'a [u8]> {
        path.iter().try_fold(self.0, |bytes, kind| Self(bytes).find(*kind))
    }
}

const fn aligned(length: usize) -> usize {
    (length + 3) & !3
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn written_attributes_are_read_back() {
        let inner = Body::default().big_endian_u32(6, 3600).attribute(3, &[24]);
        let body = Body::default().text(2, "a-set").nested(7, &inner);
        let read: Vec<_> = Attributes(&body.0).collect();
        assert_eq!(read[0], (2, b"a-set\0".as_slice()));
        assert_eq!(Attributes(read[1].1).find(6), Some(3600u32.to_be_bytes().as_slice()));
        assert_eq!(Attributes(read[1].1).find(3), Some([24].as_slice()));
        assert_eq!(Attributes(&body.0).find_nested(&[7, 3]), Some([24].as_slice()));
        assert_eq!(Attributes(&inner.0).find_u32(6), Some(3600));
    }

    proptest! {
        #[test]
        fn arbitrary_answers_neither_panic_nor_loop(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for Message { body, .. } in Messages(&bytes) {
                for (_, value) in Attributes(body) {
                    let _ = Attributes(value).count();
                }
                let _ = acknowledgement(body);
            }
        }
    }
}
