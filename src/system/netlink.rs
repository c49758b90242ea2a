//! Netlink: just enough of it to talk to the kernel's sets and to follow its addresses.
//!
//! Owns the framing (linux/netlink.h, RFC 3549): messages, attributes, acknowledgements, dumps. Knows
//! no family's meaning. Whatever the kernel sends, of whatever length, is read within bounds.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send,
    socket_with, sockopt,
};

const HEADER: usize = 16;
/// As much as the kernel puts into one datagram of a dump (af_netlink.c, `netlink_dump`). A refusal repeats
/// the request, which has to be shorter by its own header.
const BUFFER: usize = 32 << 10;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// `NLM_F_REQUEST`
pub const REQUEST: u16 = 0x01;
/// `NLM_F_ACK`
pub const ACK: u16 = 0x04;
/// `NLM_F_EXCL`
pub const EXCL: u16 = 0x200;
/// `NLM_F_CREATE`
pub const CREATE: u16 = 0x400;
/// `NLM_F_DUMP`
pub const DUMP: u16 = 0x300;

/// `NLA_F_NESTED`
const NESTED: u16 = 0x8000;
/// `NLA_F_NET_BYTEORDER`
const NET_BYTE_ORDER: u16 = 0x4000;

/// What went wrong between here and the kernel.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket itself failed.
    #[error("the kernel's netlink socket failed: {0}")]
    Socket(#[from] Errno),
    /// The kernel refused the request; the code is an errno, or the family's own from 4096 on.
    #[error("the kernel refused: {}", describe(*.0))]
    Refused(i32),
    /// The answer did not arrive in time or was not one.
    #[error("the kernel's netlink answer could not be understood")]
    Garbled,
}

fn describe(code: i32) -> String {
    if code < 4096 { Errno::from_raw_os_error(code).to_string() } else { format!("error {code}") }
}

/// A netlink socket.
pub struct NetlinkSocket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl NetlinkSocket {
    /// Opens a socket of this netlink family (none is `NETLINK_ROUTE`, number 0), subscribed to these
    /// multicast groups (a bit mask).
    pub fn open(protocol: Option<Protocol>, groups: u32) -> Result<Self, NetlinkError> {
        let fd =
            socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        bind(&fd, &SocketAddrNetlink::new(0, groups))?;
        // An answer that never comes must not stop the thread that waits for it for ever.
        let patience = std::time::Duration::from_secs(5);
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(patience))?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Sends a request and waits for the kernel's acknowledgement.
    pub fn request(&mut self, kind: u16, flags: u16, body: &Body) -> Result<(), NetlinkError> {
        self.transact(kind, flags | REQUEST | ACK, body, |_, _| {})
    }

    /// Sends a request and gives each answer to `each` (its kind and body) until the kernel says
    /// that there are no more.
    pub fn dump(
        &mut self,
        kind: u16,
        body: &Body,
        each: impl FnMut(u16, &[u8]),
    ) -> Result<(), NetlinkError> {
        self.transact(kind, REQUEST | DUMP, body, each)
    }

    /// Sends a request for one object and gives it to `each`.
    pub fn query(
        &mut self,
        kind: u16,
        body: &Body,
        each: impl FnMut(u16, &[u8]),
    ) -> Result<(), NetlinkError> {
        self.transact(kind, REQUEST | ACK, body, each)
    }

    /// Sends a request between two messages that enclose what is to be carried out as one, and waits for
    /// its acknowledgement.
    pub fn request_between(
        &mut self,
        begin: (u16, &Body),
        request: (u16, &Body),
        end: (u16, &Body),
    ) -> Result<(), NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        // Of one number, since the kernel may refuse all of it by that of the first.
        let all = [(begin, REQUEST), (request, REQUEST | ACK), (end, REQUEST)]
            .map(|((kind, body), flags)| message(kind, flags, self.sequence, body));
        let all = all.into_iter().collect::<Result<Vec<_>, _>>()?;
        self.exchange(&all.concat(), |_, _| {})
    }

    fn transact(
        &mut self,
        kind: u16,
        flags: u16,
        body: &Body,
        each: impl FnMut(u16, &[u8]),
    ) -> Result<(), NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = message(kind, flags, self.sequence, body)?;
        self.exchange(&request, each)
    }

    fn exchange(
        &mut self,
        request: &[u8],
        mut each: impl FnMut(u16, &[u8]),
    ) -> Result<(), NetlinkError> {
        send(&self.fd, request, SendFlags::empty())?;
        loop {
            let length = loop {
                match recv(&self.fd, &mut self.buffer[..], RecvFlags::empty()) {
                    Ok((length, _)) => break length,
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            };
            for (header, body) in Messages(self.buffer.get(..length).unwrap_or_default()) {
                if header.sequence != self.sequence {
                    continue;
                }
                match header.kind {
                    NLMSG_ERROR | NLMSG_DONE => return acknowledgement(body),
                    kind => each(kind, body),
                }
            }
        }
    }

    /// Throws away whatever notifications have arrived. True if there were any, or if some were
    /// lost because too many came at once.
    pub fn drain_notifications(&mut self) -> Result<bool, NetlinkError> {
        let mut any = false;
        loop {
            match recv(&self.fd, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) | Err(Errno::AGAIN) => return Ok(any),
                Ok(_) | Err(Errno::NOBUFS) => any = true,
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

/// The error code in front of an acknowledgement: negative errno, or zero.
pub fn acknowledgement(body: &[u8]) -> Result<(), NetlinkError> {
    match i32_at(body, 0) {
        Some(0) => Ok(()),
        Some(code) => Err(NetlinkError::Refused(code.wrapping_neg())),
        None => Err(NetlinkError::Garbled),
    }
}

fn message(kind: u16, flags: u16, sequence: u32, body: &Body) -> Result<Vec<u8>, NetlinkError> {
    let length = u32::try_from(HEADER + body.0.len()).map_err(|_| NetlinkError::Garbled)?;
    let mut bytes = Vec::with_capacity(HEADER + body.0.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend(&body.0);
    Ok(bytes)
}

pub struct Header {
    kind: u16,
    sequence: u32,
}

/// The messages of a datagram.
pub struct Messages<'a>(pub &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (Header, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::try_from(u32_at(self.0, 0)?).ok()?;
        let header = Header { kind: u16_at(self.0, 4)?, sequence: u32_at(self.0, 8)? };
        let body = self.0.get(HEADER..length)?;
        self.0 = self.0.get(aligned(length)..).unwrap_or_default();
        Some((header, body))
    }
}

/// The body of a request: a family's fixed header and its attributes.
#[derive(Debug, Default)]
pub struct Body(Vec<u8>);

impl Body {
    /// A body that starts with a family's fixed header.
    pub fn with_header(header: &[u8]) -> Self {
        Self(header.to_vec())
    }

    /// Adds an attribute.
    #[must_use]
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        // No attribute made here comes near 64 KiB.
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(aligned(self.0.len()), 0);
        self
    }

    /// Adds a text, closed with NUL.
    #[must_use]
    pub fn text(self, kind: u16, value: &str) -> Self {
        self.attribute(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// Adds a number marked as being in network byte order.
    #[must_use]
    pub fn big_endian_u32(self, kind: u16, value: u32) -> Self {
        self.attribute(kind | NET_BYTE_ORDER, &value.to_be_bytes())
    }

    /// Adds an attribute marked as being in network byte order.
    #[must_use]
    pub fn network_order(self, kind: u16, value: &[u8]) -> Self {
        self.attribute(kind | NET_BYTE_ORDER, value)
    }

    /// Adds attributes within an attribute.
    #[must_use]
    pub fn nested(self, kind: u16, inner: &Self) -> Self {
        self.attribute(kind | NESTED, &inner.0)
    }
}

/// The attributes of a message: kind, without its flag bits, and value.
pub struct Attributes<'a>(pub &'a [u8]);

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
    /// The first attribute of a kind.
    pub fn find(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find_map(|(found, value)| (found == kind).then_some(value))
    }
}

const fn aligned(length: usize) -> usize {
    (length + 3) & !3
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let inner = Body::default().big_endian_u32(6, 3600).attribute(3, &[24]);
        let body = Body::default().text(2, "a-set").nested(7, &inner);
        let read: Vec<_> = Attributes(&body.0).collect();
        assert_eq!(read[0], (2, b"a-set\0".as_slice()));
        assert_eq!(Attributes(read[1].1).find(6), Some(3600u32.to_be_bytes().as_slice()));
        assert_eq!(Attributes(read[1].1).find(3), Some([24].as_slice()));
    }

    proptest! {
        #[test]
        fn no_answer_panics_or_loops(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for (_, body) in Messages(&bytes) {
                for (_, value) in Attributes(body) {
                    let _ = Attributes(value).count();
                }
                let _ = acknowledgement(body);
            }
        }
    }
}
