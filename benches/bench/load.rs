//! Load: SYNs at a given rate, scans at a given pace, and the bare counting loop.

use std::io::IoSlice;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use pcap::{Active, Capture};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg};

/// Frames handed to the kernel in one call.
const AT_ONCE: usize = 64;

const SOURCE: usize = 26;
const PORTS: usize = 34;

/// A SYN to 10.78.0.2 in a broadcast Ethernet frame.
pub(crate) fn syn() -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [0xff; 6])
        .ipv4([10, 78, 0, 1], [10, 78, 0, 2], 64)
        .tcp(40_000, 80, 1, 64_240)
        .syn();
    let mut frame = Vec::new();
    builder.write(&mut frame, &[]).unwrap();
    frame
}

/// Sets the source address and the ports of a frame. The checksums become invalid, which matters
/// only to a host that answers.
pub(crate) fn set(frame: &mut [u8], source: u32, port: u16, source_port: u16) {
    frame[SOURCE..SOURCE + 4].copy_from_slice(&source.to_be_bytes());
    frame[PORTS..PORTS + 2].copy_from_slice(&source_port.to_be_bytes());
    frame[PORTS + 2..PORTS + 4].copy_from_slice(&port.to_be_bytes());
}

/// Opens a capture whose descriptor is a packet socket on the interface, for sending.
pub(crate) fn open(interface: &str) -> Capture<Active> {
    let inactive = Capture::from_device(interface).unwrap();
    let mut capture = inactive.timeout(1).buffer_size(4 << 20).open().unwrap();
    capture.direction(pcap::Direction::In).unwrap();
    capture.filter("less 1", true).unwrap();
    capture
}

/// Sends `count` SYNs at `rate` per second from alternating sources.
pub(crate) fn send(interface: &str, count: &str, rate: &str, sources: &str) {
    let [count, rate, sources] = [count, rate, sources].map(|word| word.parse::<u32>().unwrap());
    let socket = open(interface);
    let mut frames: Vec<Vec<u8>> = vec![syn(); AT_ONCE];
    let begun = Instant::now();
    let mut sent = 0;
    while sent < count {
        let due = Duration::from_secs_f64(f64::from(sent) / f64::from(rate));
        while begun.elapsed() < due {
            std::hint::spin_loop();
        }
        for (number, frame) in (sent..).zip(&mut frames) {
            set(frame, 0x0b00_0000 + number % sources, 80, 40_000);
        }
        let slices: Vec<[IoSlice<'_>; 1]> = frames.iter().map(|f| [IoSlice::new(f)]).collect();
        let mut control: Vec<SendAncillaryBuffer<'_, '_, '_>> =
            (0..AT_ONCE).map(|_| SendAncillaryBuffer::default()).collect();
        let mut messages: Vec<MMsgHdr<'_>> =
            slices.iter().zip(&mut control).map(|(s, c)| MMsgHdr::new(s, c)).collect();
        let done = sendmmsg(socket.as_fd(), &mut messages, SendFlags::empty()).unwrap();
        sent += u32::try_from(done).unwrap();
    }
    println!("{sent} {}", begun.elapsed().as_secs_f64());
}

/// Scans ports 1 to 1000 with valid checksums, one probe every `pause` microseconds.
pub(crate) fn scan(interface: &str, source: &str, pause: &str) {
    let source: std::net::Ipv4Addr = source.parse().unwrap();
    let pause = Duration::from_micros(pause.parse().unwrap());
    let mut socket = open(interface);
    let frames: Vec<Vec<u8>> = (1..=1000)
        .map(|port| {
            let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
                .ipv4(source.octets(), [10, 78, 0, 2], 64)
                .tcp(40_000, port, 1, 64_240)
                .syn();
            let mut frame = Vec::new();
            builder.write(&mut frame, &[]).unwrap();
            frame
        })
        .collect();
    let begun = Instant::now();
    for (number, frame) in (0u32..).zip(&frames) {
        while begun.elapsed() < pause * number {
            std::hint::spin_loop();
        }
        socket.sendpacket(&frame[..]).unwrap();
    }
}

/// The reference: counts the packets that pass a filter until standard input closes, and prints the
/// count.
pub(crate) fn count(interface: &str, filter: &str) {
    let mut packets = 0u64;
    capture_until_closed(interface, filter, |_| packets += 1);
    println!("{packets}");
}

/// Prints when each TCP segment that passes a filter was seen, in microseconds, and its flags.
pub(crate) fn record(interface: &str, filter: &str) {
    let mut lines = Vec::new();
    capture_until_closed(interface, filter, |packet| {
        // Ethernet and IPv4 without options.
        let flags = packet.data[14 + 20 + 13];
        // With nanosecond precision the field for microseconds holds nanoseconds.
        let time = packet.header.ts;
        lines.push((time.tv_sec as f64 * 1e6 + time.tv_usec as f64 / 1e3, flags));
    });
    for (time, flags) in lines {
        println!("{time:.3} {flags}");
    }
}

fn capture_until_closed(interface: &str, filter: &str, mut each: impl FnMut(&pcap::Packet<'_>)) {
    let inactive = Capture::from_device(interface).unwrap();
    let inactive = inactive.snaplen(256).timeout(1).buffer_size(4 << 20);
    let inactive = inactive.precision(pcap::Precision::Nano);
    let mut capture = inactive.open().unwrap().setnonblock().unwrap();
    capture.filter(filter, true).unwrap();
    println!("ready");
    let stdin = std::io::stdin();
    loop {
        let tick = Timespec { tv_sec: 1, tv_nsec: 0 };
        let mut fds = [
            PollFd::new(&stdin, PollFlags::IN),
            PollFd::from_borrowed_fd(capture.as_fd(), PollFlags::IN),
        ];
        poll(&mut fds, Some(&tick)).unwrap();
        let over = !fds[0].revents().is_empty();
        while let Ok(packet) = capture.next_packet() {
            each(&packet);
        }
        if over {
            break;
        }
    }
}

/// Keeps a core busy.
pub(crate) fn spin() {
    loop {
        std::hint::spin_loop();
    }
}
