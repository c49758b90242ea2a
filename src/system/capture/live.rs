//! A live interface as a source of frames.
//!
//! Owns the libpcap handle. Opens it in such a way that the kernel holds no packet back.

use std::os::fd::{AsFd, BorrowedFd};

use pcap::{Activated, Active, Capture, Device, Precision};

use crate::system::capture::CaptureError;
use crate::system::capture::filter::filter;
use crate::system::capture::frame::LinkLayer;
use crate::types::{CaptureCounters, IfName};

/// Bytes captured of each packet: Ethernet, three VLAN tags, the longest IPv4 header or a few IPv6
/// extension headers, and the first 14 bytes of TCP.
const SNAPSHOT: i32 = 256;

/// The size of the ring that the kernel shares, all of which counts as memory of the process. A packet takes
/// a place of 336 bytes, so it holds 40 ms of a flood of 300,000 SYNs per second.
const RING_BYTES: i32 = 4 << 20;

/// An open interface.
pub struct LiveCapture {
    handle: Capture<Active>,
    link: LinkLayer,
    outcomes: bool,
}

/// A frame and the time at which the kernel saw it.
pub struct Frame<'a> {
    pub bytes: &'a [u8],
    /// Nanoseconds since the Unix epoch.
    pub unix_nanos: u64,
}

impl LiveCapture {
    /// Opens `interface` like [`Self::open`], or returns nothing if it is down.
    pub fn open_if_up(interface: &IfName, outcomes: bool) -> Result<Option<Self>, CaptureError> {
        match Self::open(interface, outcomes) {
            Ok(capture) => Ok(Some(capture)),
            Err(CaptureError::InterfaceDown(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens `interface` for reading without waiting, to capture only probes, or also what tells their
    /// outcomes.
    pub fn open(interface: &IfName, outcomes: bool) -> Result<Self, CaptureError> {
        let explain = |error: pcap::Error| CaptureError::explain(interface, &text_of(&error));
        let handle = Capture::from_device(interface.as_str())
            .and_then(|inactive| {
                inactive
                    .promisc(false)
                    .snaplen(SNAPSHOT)
                    .immediate_mode(true)
                    .buffer_size(RING_BYTES)
                    .precision(Precision::Nano)
                    .open()
            })
            .and_then(Capture::setnonblock)
            .map_err(explain)?;
        let link = link_of(&handle).map_err(|name| CaptureError::UnknownLinkLayer {
            interface: interface.clone(),
            name,
        })?;
        let mut capture = Self { handle, link, outcomes };
        capture.handle.filter(&filter(link, outcomes), true).map_err(explain)?;
        Ok(capture)
    }

    /// Returns whether it captures what tells the outcomes of probes.
    pub fn outcomes(&self) -> bool {
        self.outcomes
    }

    /// The link layer of the interface.
    pub fn link(&self) -> LinkLayer {
        self.link
    }

    /// Returns the next frame, or nothing if none has arrived.
    pub fn next_frame(&mut self, interface: &IfName) -> Result<Option<Frame<'_>>, CaptureError> {
        match self.handle.next_packet() {
            Ok(packet) => Ok(Some(frame_of(&packet))),
            Err(pcap::Error::TimeoutExpired | pcap::Error::NoMorePackets) => Ok(None),
            Err(error) => Err(CaptureError::explain(interface, &text_of(&error))),
        }
    }

    /// Reads the kernel's counters.
    pub fn counters(&mut self) -> Option<CaptureCounters> {
        let stats = self.handle.stats().ok()?;
        Some(CaptureCounters {
            received: stats.received,
            dropped_by_kernel: stats.dropped,
            dropped_by_interface: stats.if_dropped,
        })
    }
}

impl AsFd for LiveCapture {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

/// Returns the link layer of a capture, or the name of one that is not supported.
pub fn link_of<T: Activated + ?Sized>(handle: &Capture<T>) -> Result<LinkLayer, String> {
    let linktype = handle.get_datalink();
    LinkLayer::of_linktype(linktype.0)
        .ok_or_else(|| linktype.get_name().unwrap_or_else(|_| linktype.0.to_string()))
}

/// Converts a packet of libpcap. With nanosecond precision, its field for microseconds holds nanoseconds.
pub fn frame_of<'a>(packet: &pcap::Packet<'a>) -> Frame<'a> {
    let seconds = u64::try_from(packet.header.ts.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(packet.header.ts.tv_usec).unwrap_or(0);
    let unix_nanos = seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
    Frame { bytes: packet.data, unix_nanos }
}

/// Returns libpcap's text without the prefix of the crate.
pub fn text_of(error: &pcap::Error) -> String {
    let text = error.to_string();
    text.strip_prefix("libpcap error: ").unwrap_or(&text).to_owned()
}

/// Returns the names of all interfaces, for an error message.
pub fn present_interfaces() -> String {
    let names: Vec<String> = Device::list()
        .unwrap_or_default()
        .into_iter()
        .filter(|device| std::path::Path::new("/sys/class/net").join(&device.name).exists())
        .map(|device| device.name)
        .collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
