//! Replay of a large file, compared with a bare libpcap loop over the same file.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use pcap::Capture;

use crate::{TCPTRACKER, load, median, row};

const SYNS: u32 = 10_000_000;
const SOURCES: u32 = 1_000_000;

/// Writes a pcap file of SYNs, 1 us apart, from alternating sources.
fn write(path: &Path) {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).unwrap());
    let header: [u32; 6] = [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65_535, 1];
    for word in header {
        file.write_all(&word.to_ne_bytes()).unwrap();
    }
    let mut frame = load::syn();
    for number in 0..SYNS {
        load::set(&mut frame, 0x0b00_0000 + number % SOURCES, 80, 40_000);
        let length = u32::try_from(frame.len()).unwrap();
        let seconds = 1_700_000_000 + number / 1_000_000;
        for word in [seconds, number % 1_000_000, length, length] {
            file.write_all(&word.to_ne_bytes()).unwrap();
        }
        file.write_all(&frame).unwrap();
    }
    file.flush().unwrap();
}

/// The reference: counts the packets of a file.
pub(crate) fn count(file: &str) {
    let mut capture = Capture::from_file(file).unwrap();
    let mut packets = 0u64;
    while capture.next_packet().is_ok() {
        packets += 1;
    }
    println!("{packets}");
}

fn seconds(command: &mut Command) -> f64 {
    let begun = Instant::now();
    assert!(command.stdout(Stdio::null()).status().unwrap().success());
    begun.elapsed().as_secs_f64()
}

pub(crate) fn run() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("syns.pcap");
    write(&file);
    let (mut ours, mut crafted) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let this = std::env::current_exe().unwrap();
        crafted.push(seconds(Command::new(this).arg("count-file").arg(&file)));
        ours.push(seconds(Command::new(TCPTRACKER).arg("replay").arg(&file)));
    }
    let (ours, crafted) = (median(ours), median(crafted));
    row(
        "replay: 10 M SYNs from 1 M sources",
        &format!("{ours:.2} s"),
        &format!("{crafted:.2} s"),
        Some(ours / crafted),
        "at most 3 times the crafted loop",
    );
}
