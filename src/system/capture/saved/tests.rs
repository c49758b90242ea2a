//! Files of both formats: well-formed, odd and damaged.

use std::io::Write;

use ::pcap::{Capture, Precision};
use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::*;

/// What is compared of a frame: link, time, bytes, whether it is cut.
type Seen = (Result<LinkLayer, i32>, Option<u64>, Vec<u8>, bool);

fn open(bytes: &[u8]) -> Result<SavedCapture, SavedError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    SavedCapture::open(file.path())
}

/// Returns the frames of a file, and the error at its end.
fn frames(bytes: &[u8]) -> (Vec<Seen>, Option<String>) {
    let mut capture = match open(bytes) {
        Ok(capture) => capture,
        Err(error) => return (Vec::new(), Some(error.to_string())),
    };
    let mut frames = Vec::new();
    loop {
        match capture.next_frame() {
            Ok(Some(frame)) => {
                frames.push((frame.link, frame.unix_nanos, frame.bytes.to_vec(), frame.is_cut));
            }
            Ok(None) => return (frames, None),
            Err(error) => return (frames, Some(error.to_string())),
        }
    }
}

fn bytes_of(order: ByteOrder, numbers: &[u32]) -> Vec<u8> {
    let bytes = |number: &u32| match order {
        ByteOrder::Little => number.to_le_bytes(),
        ByteOrder::Big => number.to_be_bytes(),
    };
    numbers.iter().flat_map(bytes).collect()
}

fn short(order: ByteOrder, numbers: &[u16]) -> Vec<u8> {
    let bytes = |number: &u16| match order {
        ByteOrder::Little => number.to_le_bytes(),
        ByteOrder::Big => number.to_be_bytes(),
    };
    numbers.iter().flat_map(bytes).collect()
}

fn pcap(order: ByteOrder, magic: u32, link_type: u32, frames: &[(u32, u32, &[u8])]) -> Vec<u8> {
    let version = short(order, &[2, 4]);
    let mut file = [bytes_of(order, &[magic]), version].concat();
    file.extend(bytes_of(order, &[0, 0, 65_535, link_type]));
    for (seconds, fraction, frame) in frames {
        let length = u32::try_from(frame.len()).unwrap();
        file.extend(bytes_of(order, &[*seconds, *fraction, length, length]));
        file.extend(*frame);
    }
    file
}

fn block(order: ByteOrder, kind: u32, body: &[u8]) -> Vec<u8> {
    let padded = body.len().next_multiple_of(4);
    let length = u32::try_from(padded + 12).unwrap();
    let mut block = bytes_of(order, &[kind, length]);
    block.extend(body);
    block.resize(8 + padded, 0);
    block.extend(bytes_of(order, &[length]));
    block
}

fn section(order: ByteOrder) -> Vec<u8> {
    let version = short(order, &[1, 0]);
    let body = [bytes_of(order, &[0x1a2b_3c4d]), version, vec![0xff; 8]].concat();
    block(order, pcapng::SECTION, &body)
}

fn interface(order: ByteOrder, link_type: u16, snapshot: u32, options: &[(u16, &[u8])]) -> Vec<u8> {
    let mut body = [short(order, &[link_type, 0]), bytes_of(order, &[snapshot])].concat();
    for (code, value) in options {
        body.extend(short(order, &[*code, u16::try_from(value.len()).unwrap()]));
        body.extend(*value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    block(order, 1, &body)
}

fn packet(order: ByteOrder, interface: u32, time: u64, frame: &[u8]) -> Vec<u8> {
    let length = u32::try_from(frame.len()).unwrap();
    let [high, low] = [time >> 32, time & 0xffff_ffff].map(|half| u32::try_from(half).unwrap());
    let head = bytes_of(order, &[interface, high, low, length, length]);
    block(order, 6, &[head, frame.to_vec()].concat())
}

const BOTH: [ByteOrder; 2] = [ByteOrder::Little, ByteOrder::Big];
const ETHERNET: Result<LinkLayer, i32> = Ok(LinkLayer::Ethernet);

#[test]
fn pcap_is_read_in_every_variant() {
    for order in BOTH {
        for (magic, nanos) in [(0xa1b2_c3d4, 7_000_005_000), (0xa1b2_3c4d, 7_000_000_005)] {
            // The highest bits of the link type announce a checksum.
            let file = pcap(order, magic, 0x2400_0001, &[(7, 5, b"frame"), (u32::MAX, 0, b"x")]);
            let late = u64::from(u32::MAX) * 1_000_000_000;
            let expected = vec![
                (ETHERNET, Some(nanos), b"frame".to_vec(), false),
                (ETHERNET, Some(late), b"x".to_vec(), false),
            ];
            assert_eq!(frames(&file), (expected, None), "{order:?} {magic:x}");
        }
        let mut kuznetsov = pcap(order, 0xa1b2_cd34, 1, &[(7, 5, b"")]);
        kuznetsov[24 + 8..].copy_from_slice(&bytes_of(order, &[5, 9]));
        kuznetsov.extend(b"iiiippttframe");
        let expected = vec![(ETHERNET, Some(7_000_005_000), b"frame".to_vec(), true)];
        assert_eq!(frames(&kuznetsov), (expected, None));
    }
}

#[test]
fn interfaces_of_a_section_may_differ() {
    for order in BOTH {
        let file = [
            section(order),
            interface(order, 1, 40, &[]),
            interface(order, 101, 0, &[(2, b"wg0"), (9, &[9])]),
            interface(order, 127, 96, &[]),
            packet(order, 0, 7_000_005, b"one"),
            block(order, 0x0bad, b"skipped"),
            packet(order, 1, 7_000_000_005, b"two"),
            packet(order, 2, 7_000_005, b"radio"),
            // A new section has interfaces of its own, and perhaps another byte order.
            section(ByteOrder::Big),
            interface(ByteOrder::Big, 12, 0, &[]),
            packet(ByteOrder::Big, 0, 8_000_000, b"three"),
        ]
        .concat();
        let expected = vec![
            (ETHERNET, Some(7_000_005_000), b"one".to_vec(), false),
            (Ok(LinkLayer::RawIp), Some(7_000_000_005), b"two".to_vec(), false),
            (Err(127), Some(7_000_005_000), b"radio".to_vec(), false),
            (Ok(LinkLayer::RawIp), Some(8_000_000_000), b"three".to_vec(), false),
        ];
        assert_eq!(frames(&file), (expected, None), "{order:?}");
    }
}

#[test]
fn times_are_converted_or_missing() {
    let order = ByteOrder::Little;
    let time = |exponent: u8, offset: i64, time: u64| {
        let options: [(u16, &[u8]); 2] = [(9, &[exponent]), (14, &offset.to_le_bytes())];
        let parts = [section(order), interface(order, 1, 0, &options), packet(order, 0, time, b"")];
        let (frames, error) = frames(&parts.concat());
        assert_eq!((frames.len(), error), (1, None));
        frames[0].1
    };
    for (exponent, offset, units, nanos) in [
        (0, 0, 7, Some(7_000_000_000)),
        (3, 5, 7_001, Some(12_001_000_000)),
        (3, -5, 7_001, Some(2_001_000_000)),
        (12, 0, 7_000_000_000_999, Some(7_000_000_000)),
        // 1/1024 of a second.
        (0x8a, 0, 1536, Some(1_500_000_000)),
        (0xbf, 0, u64::MAX, Some(1_999_999_999)),
        (38, 0, u64::MAX, Some(0)),
        (9, 0, i64::MAX as u64, Some(i64::MAX as u64)),
        (9, 0, i64::MAX as u64 + 1, None),
        (6, 0, u64::MAX, None),
        (6, -1, 999_999, None),
        (6, i64::MIN, u64::MAX, None),
        (6, i64::MAX, u64::MAX, None),
        (39, 0, 1, None),
        (0xff, 0, 1, None),
    ] {
        assert_eq!(time(exponent, offset, units), nanos, "{exponent:#x} {offset} {units}");
    }
}

#[test]
fn older_and_simple_packets_are_read() {
    for order in BOTH {
        let old = [short(order, &[0, 3]), bytes_of(order, &[0, 7_000_005, 2, 9]), b"ab".to_vec()];
        let file = [
            section(order),
            interface(order, 1, 3, &[]),
            block(order, 2, &old.concat()),
            block(order, 3, &[bytes_of(order, &[5]), b"abc\0".to_vec()].concat()),
        ];
        let expected = vec![
            (ETHERNET, Some(7_000_005_000), b"ab".to_vec(), true),
            (ETHERNET, None, b"abc".to_vec(), true),
        ];
        assert_eq!(frames(&file.concat()), (expected, None));
    }
}

#[test]
fn damage_ends_the_file_after_the_frames_before_it() {
    let order = ByteOrder::Little;
    let good = [section(order), interface(order, 1, 0, &[]), packet(order, 0, 1, b"one")].concat();
    let mut second_length = packet(order, 0, 1, b"two");
    *second_length.last_mut().unwrap() = 1;
    for (bad, why) in [
        (packet(order, 1, 1, b"two"), "the interface of a frame is invalid"),
        (second_length, "the second length of a block is invalid"),
        (bytes_of(order, &[6, 10, 0, 0]), "a length of 10 bytes is invalid"),
        (bytes_of(order, &[6, 13, 0, 0]), "a length of 13 bytes is invalid"),
        (bytes_of(order, &[6, 0xffff_fffc]), "a length of 4294967284 bytes is invalid"),
        (block(order, 6, &bytes_of(order, &[0, 0, 1, 9, 9])), "a length of 9 bytes is invalid"),
        (packet(order, 0, 1, b"two")[..30].to_vec(), "the file ends within a block"),
        (block(order, pcapng::SECTION, &[7; 16]), "the byte order of a section is invalid"),
    ] {
        let (frames, error) = frames(&[good.clone(), bad].concat());
        assert_eq!(frames.len(), 1, "{why}");
        let error = error.unwrap();
        assert!(
            error.ends_with(&format!("only what comes before that was read: {why}")),
            "{error}"
        );
    }
    let pcap = pcap(order, 0xa1b2_c3d4, 1, &[(1, 1, b"one"), (1, 1, b"two")]);
    for kept in [pcap.len() - 1, pcap.len() - 3, pcap.len() - 4, pcap.len() - 18] {
        let (frames, error) = frames(&pcap[..kept]);
        assert_eq!(frames.len(), 1);
        assert!(error.unwrap().contains("the file ends within "), "{kept}");
    }
    for (bytes, why) in [
        (vec![], "the file is empty"),
        (b"It was a dark and stormy night".to_vec(), "its first number is invalid"),
        (b"It".to_vec(), "the file ends within its first number"),
        (pcap[..20].to_vec(), "the file ends within the file header"),
        (section(order)[..20].to_vec(), "the file ends within a block"),
    ] {
        let error = frames(&bytes).1.unwrap();
        assert!(error.ends_with(&format!("plain or gzip): {why}")), "{error}");
    }
}

#[test]
fn a_file_without_any_known_link_type_is_refused() {
    let order = ByteOrder::Little;
    let radio = pcap(order, 0xa1b2_c3d4, 127, &[]);
    let parts = [section(order), interface(order, 127, 0, &[]), packet(order, 0, 1, b"radio")];
    for bytes in [radio, parts.concat()] {
        let error = frames(&bytes).1.unwrap();
        assert!(error.contains(" holds IEEE802_11_RADIO frames"), "{error}");
    }
}

#[test]
fn the_interfaces_of_a_section_are_bounded() {
    let order = ByteOrder::Little;
    let many = interface(order, 1, 0, &[]).repeat((1 << 16) + 1);
    let error = frames(&[section(order), many].concat()).1.unwrap();
    assert!(error.ends_with("the number of interfaces is invalid"), "{error}");
}

#[test]
fn share_read_is_known_for_files_with_a_size() {
    let frame = [7; 1000];
    let pcap = pcap(ByteOrder::Little, 0xa1b2_3c4d, 1, &[(1, 0, &frame[..]); 300]);
    let mut gzip = GzEncoder::new(Vec::new(), Compression::none());
    gzip.write_all(&pcap).unwrap();
    let gzip = gzip.finish().unwrap();
    for bytes in [pcap, gzip] {
        let mut capture = open(&bytes).unwrap();
        let (mut last, mut packets) = (capture.share_read().unwrap(), 0);
        assert!(last < 0.5, "{last} before the first packet");
        while capture.next_frame().unwrap().is_some() {
            let share = capture.share_read().unwrap();
            assert!((last..=1.0).contains(&share), "{share} after {last}");
            (last, packets) = (share, packets + 1);
        }
        assert!(packets == 300 && last > 0.99, "{last} after {packets} packets");
    }
}

/// Reads a file with libpcap.
fn frames_of_libpcap(bytes: &[u8]) -> Option<Vec<Seen>> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let mut capture = Capture::from_file_with_precision(file.path(), Precision::Nano).ok()?;
    let link = LinkLayer::of_linktype(capture.get_datalink().0).ok_or(capture.get_datalink().0);
    let mut frames = Vec::new();
    while let Ok(packet) = capture.next_packet() {
        let time = &packet.header.ts;
        let nanos = i128::from(time.tv_sec) * NANOS_PER_SECOND + i128::from(time.tv_usec);
        let is_cut = packet.header.caplen < packet.header.len;
        frames.push((link, representable(nanos), packet.data.to_vec(), is_cut));
    }
    Some(frames)
}

proptest! {
    #[test]
    fn no_bytes_panic(start in 0..4usize, bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let order = ByteOrder::Little;
        let start = [
            vec![],
            pcap(order, 0xa1b2_c3d4, 1, &[]),
            section(order),
            [section(order), interface(order, 1, 0, &[])].concat(),
        ][start].clone();
        let _ = frames(&[start, bytes].concat());
    }

    #[test]
    fn ordinary_files_are_read_as_libpcap_reads_them(
        is_big: bool,
        is_nano: bool,
        packets in proptest::collection::vec(
            (0..2_000_000_000_u32, 0..1_000_000_u32, proptest::collection::vec(any::<u8>(), 0..99)),
            0..9,
        ),
    ) {
        let order = BOTH[usize::from(is_big)];
        let magic = if is_nano { 0xa1b2_3c4d } else { 0xa1b2_c3d4 };
        let of_pcap: Vec<_> =
            packets.iter().map(|(time, part, frame)| (*time, *part, &frame[..])).collect();
        let of_pcapng = |(time, part, frame): &(u32, u32, Vec<u8>)| {
            packet(order, 0, u64::from(*time) * 1_000_000 + u64::from(*part), frame)
        };
        let blocks: Vec<u8> = packets.iter().flat_map(of_pcapng).collect();
        for file in [
            pcap(order, magic, 1, &of_pcap),
            [section(order), interface(order, 1, 65_535, &[]), blocks].concat(),
        ] {
            prop_assert_eq!(Some(frames(&file).0), frames_of_libpcap(&file));
        }
    }
}
