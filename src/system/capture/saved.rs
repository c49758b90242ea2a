//! A capture file as a source of frames: pcap and pcapng, plain or gzip, or standard input.
//!
//! Owns the libpcap handle of the file. Bytes that libpcap cannot read by itself come through a pipe, from
//! a thread that the caller starts. So an unpacked file of any size takes no more memory than the pipe.

use std::fs::File;
use std::io::{self, Cursor, PipeReader, PipeWriter, Read, stdin};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use flate2::read::MultiGzDecoder;
use pcap::{Capture, Offline, Precision};

use crate::system::capture::frame::LinkLayer;
use crate::system::capture::live::{Frame, frame_of, text_of};

const GZIP: [u8; 2] = [0x1f, 0x8b];

/// How a pcapng file begins, and the bytes around a packet in it and in a pcap file.
const PCAPNG: [u8; 2] = [0x0a, 0x0d];
const AROUND_IN_PCAPNG: u64 = 32;
const AROUND_IN_PCAP: u64 = 16;

/// Stands for standard input.
const STDIN: &str = "-";

/// Returns the name of a file for people.
pub fn name_of(file: &Path) -> String {
    if file.as_os_str() == STDIN { "standard input".into() } else { file.display().to_string() }
}

/// Why a capture file cannot be read, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    #[error("cannot read {}: {error}", name_of(.file))]
    Unreadable { file: PathBuf, error: io::Error },
    #[error("{} is not a capture file (pcap or pcapng, plain or gzip): {text}", name_of(.file))]
    NotACapture {
        file: PathBuf,
        /// libpcap's text.
        text: String,
    },
    #[error("{} holds {name} frames, which tcptracker cannot read", name_of(.file))]
    UnknownLinkLayer {
        file: PathBuf,
        /// libpcap's name of the link type.
        name: String,
    },
    /// The file ends too early, or is invalid from some point on.
    #[error("{} is damaged, and only what comes before that was read: {text}", name_of(.file))]
    Damaged {
        file: PathBuf,
        /// What libpcap or the unpacker says.
        text: String,
    },
}

/// The thread that unpacks, and its result.
type UnpackThread = JoinHandle<io::Result<()>>;

/// An open capture file.
pub struct SavedCapture {
    file: PathBuf,
    handle: Capture<Offline>,
    link: LinkLayer,
    feed: Option<Feed>,
    /// The size of the file, if it has one.
    size: Option<u64>,
    /// Approximately how much of it was read.
    read: u64,
    around: u64,
}

/// The end of the pipe from which libpcap reads.
struct Feed {
    pipe: PipeReader,
    thread: UnpackThread,
    consumed: Arc<AtomicU64>,
}

/// The work of the thread that feeds libpcap.
pub struct Unpacker {
    input: Box<dyn Read + Send>,
    pipe: PipeWriter,
}

impl Unpacker {
    /// Feeds libpcap until the input ends, or the capture is closed.
    pub fn run(mut self) -> io::Result<()> {
        match io::copy(&mut self.input, &mut self.pipe) {
            // The capture was closed.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result.map(drop),
        }
    }
}

/// A file, and how much of it was consumed.
struct Counted {
    input: Box<dyn Read + Send>,
    consumed: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.input.read(buffer)?;
        self.consumed.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}

impl SavedCapture {
    /// Opens a file; `-` is standard input. `start` runs an [`Unpacker`] in a thread, if the file needs one.
    pub fn open(
        file: &Path,
        start: impl FnOnce(Unpacker) -> io::Result<UnpackThread>,
    ) -> Result<Self, SavedError> {
        let unreadable = |error| SavedError::Unreadable { file: file.to_owned(), error };
        let Opened { feed, size, around } = open_input(file, start).map_err(unreadable)?;
        let path = match &feed {
            Some(feed) => PathBuf::from(format!("/proc/self/fd/{}", feed.pipe.as_raw_fd())),
            None => file.to_owned(),
        };
        let handle = Capture::from_file_with_precision(path, Precision::Nano).map_err(|error| {
            SavedError::NotACapture { file: file.to_owned(), text: text_of(&error) }
        })?;
        let linktype = handle.get_datalink();
        let link =
            LinkLayer::of_linktype(linktype.0).ok_or_else(|| SavedError::UnknownLinkLayer {
                file: file.to_owned(),
                name: linktype.get_name().unwrap_or_else(|_| linktype.0.to_string()),
            })?;
        Ok(Self { file: file.to_owned(), handle, link, feed, size, read: 0, around })
    }

    /// Returns the share of the file that was read, or nothing if its size is unknown.
    pub fn share_read(&self) -> Option<f64> {
        let consumed = |feed: &Feed| feed.consumed.load(Ordering::Relaxed);
        let read = self.feed.as_ref().map_or(self.read, consumed);
        #[expect(clippy::cast_precision_loss, reason = "a share, for people")]
        self.size.filter(|size| *size > 0).map(|size| (read as f64 / size as f64).min(1.0))
    }

    /// The link layer of the file's packets.
    pub fn link(&self) -> LinkLayer {
        self.link
    }

    /// Returns the next frame, or nothing at the end.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, SavedError> {
        let Self { file, handle, feed, read, around, .. } = self;
        let damaged = |text| SavedError::Damaged { file: file.clone(), text };
        match handle.next_packet() {
            Ok(packet) => {
                *read += *around + u64::from(packet.header.caplen);
                Ok(Some(frame_of(&packet)))
            }
            Err(pcap::Error::NoMorePackets) => {
                // Only at the end is it known whether everything could be unpacked.
                match feed.take().map(|feed| feed.thread.join()) {
                    Some(Ok(Err(error))) => Err(damaged(error.to_string())),
                    _ => Ok(None),
                }
            }
            Err(error) => Err(damaged(text_of(&error))),
        }
    }
}

/// What the beginning of a file shows.
struct Opened {
    feed: Option<Feed>,
    size: Option<u64>,
    around: u64,
}

fn open_input(
    file: &Path,
    start: impl FnOnce(Unpacker) -> io::Result<UnpackThread>,
) -> io::Result<Opened> {
    // Only a regular file can be opened a second time, by libpcap.
    let mut size = None;
    let input: Box<dyn Read + Send> = if file.as_os_str() == STDIN {
        Box::new(stdin())
    } else {
        let opened = File::open(file)?;
        size = Some(opened.metadata()?).filter(std::fs::Metadata::is_file).map(|data| data.len());
        Box::new(opened)
    };
    let consumed = Arc::new(AtomicU64::new(0));
    let mut input = Counted { input, consumed: Arc::clone(&consumed) };
    let mut head = Vec::with_capacity(GZIP.len());
    input.by_ref().take(GZIP.len() as u64).read_to_end(&mut head)?;
    let is_packed = head == GZIP;
    let around = if head == PCAPNG { AROUND_IN_PCAPNG } else { AROUND_IN_PCAP };
    if !is_packed && size.is_some() {
        return Ok(Opened { feed: None, size, around });
    }
    let (reader, writer) = io::pipe()?;
    let mut bytes: Box<dyn Read + Send> = Box::new(Cursor::new(head).chain(input));
    if is_packed {
        bytes = Box::new(MultiGzDecoder::new(bytes));
    }
    let thread = start(Unpacker { input: bytes, pipe: writer })?;
    Ok(Opened { feed: Some(Feed { pipe: reader, thread, consumed }), size, around })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::thread::spawn;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the caller of `open` starts the thread")]
    fn share_read_is_known_for_files_with_a_size() {
        let number = |number: u32| number.to_le_bytes();
        let mut pcap: Vec<u8> =
            [0xa1b2_3c4d, 2 | 4 << 16, 0, 0, 65_535, 1].into_iter().flat_map(number).collect();
        let head: Vec<u8> = [1, 0, 1000, 1000].into_iter().flat_map(number).collect();
        for _ in 0..100 {
            pcap.extend_from_slice(&head);
            pcap.resize(pcap.len() + 1000, 7);
        }
        let mut gzip = GzEncoder::new(Vec::new(), Compression::none());
        gzip.write_all(&pcap).unwrap();
        let gzip = gzip.finish().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("capture");
        for bytes in [pcap, gzip] {
            std::fs::write(&file, bytes).unwrap();
            let mut capture =
                SavedCapture::open(&file, |unpacker| Ok(spawn(|| unpacker.run()))).unwrap();
            let (mut last, mut packets) = (capture.share_read().unwrap(), 0);
            while capture.next_frame().unwrap().is_some() {
                let share = capture.share_read().unwrap();
                assert!((last..=1.0).contains(&share), "{share} after {last}");
                (last, packets) = (share, packets + 1);
            }
            assert!(packets == 100 && last > 0.99, "{last} after {packets} packets");
        }
    }
}
