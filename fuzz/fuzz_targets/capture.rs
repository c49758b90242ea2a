//! Reads arbitrary capture files, and parses the frames in them.
//!
//! The first byte decides whether the rest is a whole file or follows a valid file header, and
//! whether the file is compressed.

#![no_main]

mod scratch;

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use libfuzzer_sys::fuzz_target;
use tcptracker::internals::{Moment, SavedCapture, segment_in};

/// A pcap header with nanoseconds and Ethernet frames.
const PCAP: [u8; 24] =
    [0x4d, 0x3c, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 1, 0, 0, 0];

/// A pcapng section header and an interface of Ethernet frames.
const PCAPNG: [u8; 48] = [
    0x0a, 0x0d, 0x0d, 0x0a, 28, 0, 0, 0, 0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0, 0xff, 0xff, 0xff,
    0xff, 0xff, 0xff, 0xff, 0xff, 28, 0, 0, 0, 1, 0, 0, 0, 20, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0,
    0, 20, 0, 0, 0,
];

/// A compressed file of some kilobytes may contain millions of frames.
const FRAMES: usize = 10_000;

fuzz_target!(|bytes: &[u8]| {
    let Some((&first, rest)) = bytes.split_first() else { return };
    let header: &[u8] = [&[], &PCAP[..], &PCAPNG][usize::from(first % 3)];
    let mut file = [header, rest].concat();
    if first & 0x80 != 0 {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::none());
        gzip.write_all(&file).expect("memory");
        file = gzip.finish().expect("memory");
    }
    let Ok(mut capture) = SavedCapture::open(scratch::write(&file)) else { return };
    for _ in 0..FRAMES {
        let Ok(Some(frame)) = capture.next_frame() else { break };
        if let Ok(link) = frame.link {
            let _ = segment_in(link, frame.bytes, Moment::default());
        }
        assert!(frame.unix_nanos.is_none_or(|nanos| i64::try_from(nanos).is_ok()));
    }
    assert!(capture.share_read().is_none_or(|share| (0.0..=1.0).contains(&share)));
});
