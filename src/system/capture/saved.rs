//! A capture file as a source of frames: pcap and pcapng, plain or gzip, or standard input.
//!
//! Owns the file's handle and, where bytes have to be unpacked or come from standard input, the
//! thread that feeds them to libpcap through a pipe. What can be read is read; what cannot is said.

use std::fs::File;
use std::io::{self, Cursor, PipeReader, Read, stdin};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use flate2::read::MultiGzDecoder;
use pcap::{Capture, Offline, Precision};

use crate::system::capture::frame::LinkLayer;
use crate::system::capture::live::{Frame, frame_of, text_of};

const GZIP: [u8; 2] = [0x1f, 0x8b];

/// How a pcapng file begins, and what surrounds a packet in it and in a pcap file, in bytes.
const PCAPNG: [u8; 2] = [0x0a, 0x0d];
const AROUND_IN_PCAPNG: u64 = 32;
const AROUND_IN_PCAP: u64 = 16;

/// Stands for standard input.
const STDIN: &str = "-";

/// A file as people read of it.
pub fn name_of(file: &Path) -> String {
    if file.as_os_str() == STDIN { "standard input".into() } else { file.display().to_string() }
}

/// Why a capture file cannot be read, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// The file cannot be opened.
    #[error("cannot read {}: {error}", name_of(.file))]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// The file is something else.
    #[error("{} is not a capture file (pcap or pcapng, plain or gzip): {text}", name_of(.file))]
    NotACapture {
        /// The file.
        file: PathBuf,
        /// libpcap's text.
        text: String,
    },
    /// The file carries something that is not understood.
    #[error("{} holds {name} frames, which tcptracker cannot read", name_of(.file))]
    UnknownLinkLayer {
        /// The file.
        file: PathBuf,
        /// libpcap's name of the link type.
        name: String,
    },
    /// The file ends too early, or goes wrong halfway.
    #[error("{} is damaged, and only what comes before that was read: {text}", name_of(.file))]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What libpcap or the unpacker says.
        text: String,
    },
}

/// An open capture file.
pub struct SavedCapture {
    file: PathBuf,
    handle: Capture<Offline>,
    link: LinkLayer,
    feeder: Option<Feeder>,
    /// Its size; none where nobody knows.
    size: Option<u64>,
    /// How much of it was read, about.
    read: u64,
    around: u64,
}

/// The thread that unpacks, and the end of the pipe libpcap reads from.
struct Feeder {
    pipe: PipeReader,
    thread: JoinHandle<io::Result<()>>,
    taken: Arc<AtomicU64>,
}

/// A file, and how much was taken from it.
struct Counted {
    input: Box<dyn Read + Send>,
    taken: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.input.read(buffer)?;
        self.taken.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}

impl SavedCapture {
    /// Opens a file; `-` is standard input.
    pub fn open(file: &Path) -> Result<Self, SavedError> {
        let unreadable = |error| SavedError::Unreadable { file: file.to_owned(), error };
        let Opened { feeder, size, around } = opened(file).map_err(unreadable)?;
        let path = match &feeder {
            Some(feeder) => PathBuf::from(format!("/proc/self/fd/{}", feeder.pipe.as_raw_fd())),
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
        Ok(Self { file: file.to_owned(), handle, link, feeder, size, read: 0, around })
    }

    /// How much of the file was read, as a share; none where nobody knows how large it is.
    pub fn share_read(&self) -> Option<f64> {
        let read =
            self.feeder.as_ref().map_or(self.read, |feeder| feeder.taken.load(Ordering::Relaxed));
        #[expect(clippy::cast_precision_loss, reason = "a share, for people")]
        self.size.filter(|size| *size > 0).map(|size| (read as f64 / size as f64).min(1.0))
    }

    /// How the file wraps its packets.
    pub fn link(&self) -> LinkLayer {
        self.link
    }

    /// The next frame, or nothing at the end.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, SavedError> {
        let Self { file, handle, feeder, read, around, .. } = self;
        let damaged = |text| SavedError::Damaged { file: file.clone(), text };
        match handle.next_packet() {
            Ok(packet) => {
                *read += *around + u64::from(packet.header.caplen);
                Ok(Some(frame_of(&packet)))
            }
            Err(pcap::Error::NoMorePackets) => {
                // Only now is it known whether all of it could be unpacked.
                match feeder.take().map(|feeder| feeder.thread.join()) {
                    Some(Ok(Err(error))) => Err(damaged(error.to_string())),
                    _ => Ok(None),
                }
            }
            Err(error) => Err(damaged(text_of(&error))),
        }
    }
}

/// What is found at the beginning of a file.
struct Opened {
    feeder: Option<Feeder>,
    size: Option<u64>,
    around: u64,
}

/// What libpcap cannot read by itself comes through a pipe.
fn opened(file: &Path) -> io::Result<Opened> {
    // What can be read once only, libpcap must not open again.
    let mut size = None;
    let input: Box<dyn Read + Send> = if file.as_os_str() == STDIN {
        Box::new(stdin())
    } else {
        let opened = File::open(file)?;
        size = Some(opened.metadata()?).filter(std::fs::Metadata::is_file).map(|data| data.len());
        Box::new(opened)
    };
    let taken = Arc::new(AtomicU64::new(0));
    let mut input = Counted { input, taken: Arc::clone(&taken) };
    let mut start = Vec::with_capacity(GZIP.len());
    input.by_ref().take(GZIP.len() as u64).read_to_end(&mut start)?;
    let packed = start == GZIP;
    let around = if start == PCAPNG { AROUND_IN_PCAPNG } else { AROUND_IN_PCAP };
    if !packed && size.is_some() {
        return Ok(Opened { feeder: None, size, around });
    }
    let (pipe, mut feed) = io::pipe()?;
    let mut bytes: Box<dyn Read + Send> = Box::new(Cursor::new(start).chain(input));
    if packed {
        bytes = Box::new(MultiGzDecoder::new(bytes));
    }
    let thread = thread::Builder::new().name("unpack".to_owned()).spawn(move || {
        match io::copy(&mut bytes, &mut feed) {
            // libpcap has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result.map(drop),
        }
    })?;
    Ok(Opened { feeder: Some(Feeder { pipe, thread, taken }), size, around })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    #[test]
    fn how_much_was_read_is_known_of_files_that_have_a_size() {
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
            let mut capture = SavedCapture::open(&file).unwrap();
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
