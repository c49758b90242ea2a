//! A live interface as a source of frames.
//!
//! Owns the libpcap handle. Opens it so that a scanner is seen within about a millisecond while a
//! flood costs little, and turns libpcap's texts into situations a person can act on.

use crate::types::capture::CaptureCounters;
use std::os::fd::{AsFd, BorrowedFd};

use pcap::{Active, Capture, Device, Precision};

use crate::system::capture::CaptureError;
use crate::system::capture::filter;
use crate::system::capture::frame::LinkLayer;
use crate::types::ifname::IfName;

/// Bytes kept of each packet: Ethernet, three VLAN tags, the longest IPv4 header or a few IPv6
/// extension headers, and TCP's first 14 bytes.
const SNAPSHOT: i32 = 256;

/// How long the kernel may hold a packet back to hand over several at once. In the ring mode this
/// selects, a packet costs a tenth of what it does in immediate mode; the price is this much latency.
const HOLD_MILLISECONDS: i32 = 1;

/// The kernel's ring: 80 ms of a flood of 300,000 SYNs a second. libpcap divides it into blocks of
/// 256 KiB, each of which is handed over after [`HOLD_MILLISECONDS`], full or not; so that of few
/// packets, too, it holds only what comes in 16 ms in which this thread is not given a processor.
const RING_BYTES: i32 = 4 << 20;

/// An open interface that delivers what may be probes.
pub struct LiveCapture {
    handle: Capture<Active>,
    link: LinkLayer,
    outcomes: bool,
}

/// A frame and the wall-clock time, in nanoseconds since the Unix epoch, at which the kernel saw
/// it.
pub struct Frame<'a> {
    /// The captured bytes.
    pub bytes: &'a [u8],
    /// Nanoseconds since the Unix epoch.
    pub unix_nanos: u64,
}

impl LiveCapture {
    /// As [`Self::open`]; nothing where the interface exists and is down, for which there is no
    /// opening it yet.
    pub fn open_if_up(interface: &IfName, outcomes: bool) -> Result<Option<Self>, CaptureError> {
        match Self::open(interface, outcomes) {
            Ok(capture) => Ok(Some(capture)),
            Err(CaptureError::InterfaceDown(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens `interface` for reading without waiting: probes only, or with what tells of their outcomes.
    pub fn open(interface: &IfName, outcomes: bool) -> Result<Self, CaptureError> {
        let explain = |error: pcap::Error| CaptureError::explain(interface, &text_of(&error));
        let handle = Capture::from_device(interface.as_str())
            .and_then(|inactive| {
                inactive
                    .promisc(false)
                    .snaplen(SNAPSHOT)
                    .timeout(HOLD_MILLISECONDS)
                    .buffer_size(RING_BYTES)
                    .precision(Precision::Nano)
                    .open()
            })
            .and_then(Capture::setnonblock)
            .map_err(explain)?;
        let linktype = handle.get_datalink();
        let link =
            LinkLayer::of_linktype(linktype.0).ok_or_else(|| CaptureError::UnknownLinkLayer {
                interface: interface.clone(),
                name: linktype.get_name().unwrap_or_else(|_| linktype.0.to_string()),
            })?;
        let filter = if outcomes { filter::segments_on(link) } else { filter::probes_on(link) };
        let mut capture = Self { handle, link, outcomes };
        capture.handle.filter(&filter, true).map_err(explain)?;
        Ok(capture)
    }

    /// Whether what tells of outcomes is let through.
    pub fn outcomes(&self) -> bool {
        self.outcomes
    }

    /// How this interface wraps its packets.
    pub fn link(&self) -> LinkLayer {
        self.link
    }

    /// The next frame, or nothing for now.
    pub fn next_frame(&mut self, interface: &IfName) -> Result<Option<Frame<'_>>, CaptureError> {
        match self.handle.next_packet() {
            Ok(packet) => Ok(Some(frame_of(&packet))),
            Err(pcap::Error::TimeoutExpired | pcap::Error::NoMorePackets) => Ok(None),
            Err(error) => Err(CaptureError::explain(interface, &text_of(&error))),
        }
    }

    /// The kernel's counters.
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

/// A packet as libpcap hands it out with nanosecond precision: the nanoseconds stand where
/// microseconds did.
pub fn frame_of<'a>(packet: &pcap::Packet<'a>) -> Frame<'a> {
    let seconds = u64::try_from(packet.header.ts.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(packet.header.ts.tv_usec).unwrap_or(0);
    let unix_nanos = seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
    Frame { bytes: packet.data, unix_nanos }
}

/// libpcap's text, without the words the crate puts in front of it.
pub fn text_of(error: &pcap::Error) -> String {
    let text = error.to_string();
    text.strip_prefix("libpcap error: ").unwrap_or(&text).to_owned()
}

/// The interfaces there are, for an error message.
pub fn interfaces_here() -> String {
    let names: Vec<String> = Device::list()
        .unwrap_or_default()
        .into_iter()
        .filter(|device| std::path::Path::new("/sys/class/net").join(&device.name).exists())
        .map(|device| device.name)
        .collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
