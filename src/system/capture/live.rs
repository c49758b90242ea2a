//! A live interface as a source of segments.
//!
//! Owns the two libpcap handles. Opens them in such a way that the kernel holds no packet back, and reads
//! them in the order of time.

use std::os::fd::{AsFd, BorrowedFd};

use pcap::{Activated, Active, Capture, Device, Precision};

use crate::system::capture::CaptureError;
use crate::system::capture::filter::{DEEP_SNAPSHOT, Filters, MAIN_SNAPSHOT};
use crate::system::capture::frame::{LinkLayer, probe_in, segment_in};
use crate::system::reserve;
use crate::types::{CaptureCounters, IfName, Segment, WallClock};

/// The size of the ring that the kernel shares, all of which counts as memory of the process. A frame takes a
/// slot of 336 bytes, so it holds 30 ms of a flood of 300,000 SYNs per second.
const MAIN_RING: i32 = 3 << 20;

/// The size of the ring of the deep handle: 128 frames of an ordinary length.
const DEEP_RING: i32 = 1 << 18;

/// Frames of the deep handle in one round.
const MOST_DEEP: usize = 256;

/// What an MTU does not include: the header of the link layer with its tags, and of a cooked capture.
const BEFORE_PAYLOAD: i32 = 64;

/// An open interface.
pub struct LiveCapture {
    /// Has many short slots.
    main: Capture<Active>,
    /// Has few slots for whole frames: see [`crate::system::capture::filter`].
    deep: Capture<Active>,
    /// The segments of the deep handle in this round.
    from_deep: Vec<Segment>,
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
        let open = |snapshot, ring| {
            let open = || {
                Capture::from_device(interface.as_str())?
                    .promisc(false)
                    .snaplen(snapshot)
                    .immediate_mode(true)
                    .buffer_size(ring)
                    .precision(Precision::Nano)
                    .open()
            };
            reserve::spend(open).and_then(Capture::setnonblock)
        };
        let mut main = open(MAIN_SNAPSHOT, MAIN_RING).map_err(explain)?;
        let link = link_of(&main).map_err(|name| CaptureError::UnknownLinkLayer {
            interface: interface.clone(),
            name,
        })?;
        let filters = Filters::new(link, outcomes);
        main.filter(&filters.main, true).map_err(explain)?;
        let mut deep = open(deep_snapshot(interface), DEEP_RING).map_err(explain)?;
        deep.filter(&filters.deep, true).map_err(explain)?;
        Ok(Self { main, deep, from_deep: Vec::with_capacity(MOST_DEEP), link, outcomes })
    }

    /// Returns whether it captures what tells the outcomes of probes.
    pub fn outcomes(&self) -> bool {
        self.outcomes
    }

    /// The link layer of the interface.
    pub fn link(&self) -> LinkLayer {
        self.link
    }

    /// What becomes readable when frames have arrived.
    pub fn fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.main.as_fd(), self.deep.as_fd()]
    }

    /// Reads the frames that have arrived, but not many more than `most`, and passes the segments in them to
    /// `each`. Returns how many frames there were.
    #[inline]
    pub fn read(
        &mut self,
        interface: &IfName,
        clock: &WallClock,
        most: usize,
        mut each: impl FnMut(Segment),
    ) -> Result<usize, CaptureError> {
        let (link, outcomes) = (self.link, self.outcomes);
        let segment_of = |packet: &pcap::Packet<'_>| {
            let frame = frame_of(packet);
            let moment = clock.moment_of(frame.unix_nanos);
            if outcomes {
                segment_in(link, frame.bytes, moment)
            } else {
                probe_in(link, frame.bytes, moment)
            }
        };
        let explain = |error: &pcap::Error| CaptureError::explain(interface, &text_of(error));
        let mut count = 0;
        while count < MOST_DEEP
            && let Some(packet) = next(&mut self.deep).map_err(|error| explain(&error))?
        {
            count += 1;
            self.from_deep.extend(segment_of(&packet));
        }
        let mut deep = self.from_deep.drain(..).peekable();
        while count < most
            && let Some(packet) = next(&mut self.main).map_err(|error| explain(&error))?
        {
            count += 1;
            if let Some(segment) = segment_of(&packet) {
                while let Some(earlier) = deep.next_if(|deep| deep.moment <= segment.moment) {
                    each(earlier);
                }
                each(segment);
            }
        }
        deep.for_each(each);
        Ok(count)
    }

    /// Reads the kernel's counters.
    pub fn counters(&mut self) -> Option<CaptureCounters> {
        let (main, deep) = (self.main.stats().ok()?, self.deep.stats().ok()?);
        Some(CaptureCounters {
            received: main.received.wrapping_add(deep.received),
            dropped_by_kernel: main.dropped.wrapping_add(deep.dropped),
            // Both read the counter of the interface.
            dropped_by_interface: main.if_dropped,
        })
    }
}

/// Returns the next frame of a handle, or nothing if none has arrived.
fn next(handle: &mut Capture<Active>) -> Result<Option<pcap::Packet<'_>>, pcap::Error> {
    match handle.next_packet() {
        Ok(packet) => Ok(Some(packet)),
        Err(pcap::Error::TimeoutExpired | pcap::Error::NoMorePackets) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns how many bytes the deep handle needs for a whole frame. Each slot is so long, so the device `any`
/// leaves out the loopback interface, whose packets are long and never from a scanner.
fn deep_snapshot(interface: &IfName) -> i32 {
    let devices = std::path::Path::new("/sys/class/net");
    let mtu_of = |device: &std::path::Path| -> Option<i32> {
        std::fs::read_to_string(device.join("mtu")).ok()?.trim().parse().ok()
    };
    let longest = || {
        let all = std::fs::read_dir(devices).ok()?.flatten().map(|device| device.path());
        all.filter(|device| !device.ends_with("lo")).filter_map(|device| mtu_of(&device)).max()
    };
    let mtu = mtu_of(&devices.join(interface.as_str())).or_else(longest);
    mtu.map_or(DEEP_SNAPSHOT, |mtu| DEEP_SNAPSHOT.min(mtu.saturating_add(BEFORE_PAYLOAD)))
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
