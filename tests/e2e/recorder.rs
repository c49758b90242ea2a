//! Recording of live traffic to capture files, and reading and writing of such files.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use pcap::{Active, Capture, Precision};

use crate::frames::{BROADCAST, ETHERNET_HEADER, Wire};
use crate::lab::Lab;

/// The EtherType of the frame that ends a recording (IEEE 802 local experimental).
const LAST_FRAME: [u8; 2] = [0x88, 0xb5];

/// Records all traffic on the victim's `eth0` with nanosecond timestamps.
pub struct Recorder {
    file: PathBuf,
    thread: JoinHandle<()>,
}

impl Recorder {
    pub fn start(lab: &Lab, name: &str) -> Self {
        let mut wire: Capture<Active> = lab.victim.inside(|| {
            let inactive = Capture::from_device("eth0").unwrap();
            inactive.precision(Precision::Nano).immediate_mode(true).open().unwrap()
        });
        let file = lab.path(name);
        let mut save = wire.savefile(&file).unwrap();
        let thread = std::thread::spawn(move || {
            // The loop also ends if the interface disappears: then the test has already failed.
            while let Ok(packet) = wire.next_packet() {
                if packet.data[ETHERNET_HEADER - 2..].starts_with(&LAST_FRAME) {
                    break;
                }
                save.write(&packet);
            }
            save.flush().unwrap();
        });
        Self { file, thread }
    }

    /// Ends the recording after all frames sent so far.
    pub fn finish(self, lab: &Lab) -> PathBuf {
        let last = [&BROADCAST[..], &[2, 0, 0, 0, 0, 1], &LAST_FRAME, &[0; 46]].concat();
        Wire::of(&lab.attacker).send(&last);
        self.thread.join().unwrap();
        self.file
    }
}

/// A frame in a capture file.
pub struct RecordedFrame {
    pub unix_nanos: u64,
    pub frame: Vec<u8>,
}

/// Returns the frames of a file, up to the first read error.
pub fn frames_in(file: &Path) -> Vec<RecordedFrame> {
    let mut capture = Capture::from_file_with_precision(file, Precision::Nano).unwrap();
    let mut frames = Vec::new();
    while let Ok(packet) = capture.next_packet() {
        // With `Precision::Nano`, `tv_usec` holds nanoseconds.
        let (seconds, nanos) = (packet.header.ts.tv_sec, packet.header.ts.tv_usec);
        let unix_nanos = u64::try_from(seconds * 1_000_000_000 + nanos).unwrap();
        frames.push(RecordedFrame { unix_nanos, frame: packet.data.to_vec() });
    }
    frames
}

/// Encodes Ethernet frames as a pcap file with nanosecond timestamps
/// (<https://ietf-opsawg-wg.github.io/draft-ietf-opsawg-pcap/>).
pub fn as_pcap(frames: &[RecordedFrame]) -> Vec<u8> {
    let mut file = Vec::new();
    for number in [0xa1b2_3c4d, 2 | 4 << 16, 0, 0, 65_535, 1] {
        file.extend(u32::to_le_bytes(number));
    }
    for RecordedFrame { unix_nanos, frame } in frames {
        let seconds = u32::try_from(unix_nanos / 1_000_000_000).unwrap();
        let nanos = u32::try_from(unix_nanos % 1_000_000_000).unwrap();
        let length = u32::try_from(frame.len()).unwrap();
        for number in [seconds, nanos, length, length] {
            file.extend(number.to_le_bytes());
        }
        file.extend(frame);
    }
    file
}

/// Encodes Ethernet frames as a pcapng file with nanosecond timestamps: section, interface and
/// packets.
pub fn as_pcapng(frames: &[RecordedFrame]) -> Vec<u8> {
    let block = |kind: u32, body: &[u8]| {
        let padding = vec![0; body.len().next_multiple_of(4) - body.len()];
        let length = u32::try_from(12 + body.len() + padding.len()).unwrap().to_le_bytes();
        [&kind.to_le_bytes()[..], &length, body, &padding, &length].concat()
    };
    let section = [&0x1a2b_3c4d_u32.to_le_bytes()[..], &[1, 0, 0, 0], &[0xff; 8]].concat();
    // Link type, snapshot length, if_tsresol = 9, end of options.
    let interface = [&[1, 0, 0, 0][..], &[0; 4], &[9, 0, 1, 0, 9, 0, 0, 0], &[0; 4]].concat();
    let mut file = [block(0x0a0d_0d0a, &section), block(1, &interface)].concat();
    for RecordedFrame { unix_nanos, frame } in frames {
        let length = u32::try_from(frame.len()).unwrap().to_le_bytes();
        let high = u32::try_from(unix_nanos >> 32).unwrap().to_le_bytes();
        let low = u32::try_from(unix_nanos & 0xffff_ffff).unwrap().to_le_bytes();
        file.extend(block(6, &[&[0; 4], &high, &low, &length, &length, &frame[..]].concat()));
    }
    file
}
