//! A capture file as a source of frames: pcap and pcapng, plain or gzip, or standard input.
//!
//! Owns the input and what both formats share. Reads without libpcap, which refuses pcapng files with several
//! link types or snapshot lengths. A file of any size and content takes no more memory than its longest
//! record, which is bounded. Must not panic, whatever the file contains.

mod pcap;
mod pcapng;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, stdin};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ::pcap::Linktype;
use flate2::bufread::MultiGzDecoder;

use crate::system::capture::frame::LinkLayer;
use crate::system::capture::saved::pcap::Pcap;
use crate::system::capture::saved::pcapng::Pcapng;

const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Stands for standard input.
const STDIN: &str = "-";

/// The longest record that is valid. Wireshark has the same limit.
const LONGEST_RECORD: u32 = 16 << 20;

/// Bytes read at once.
const BUFFER: usize = 64 << 10;

const NANOS_PER_SECOND: i128 = 1_000_000_000;

/// Returns the name of a file for people.
pub fn name_of(file: &Path) -> String {
    if file.as_os_str() == STDIN { "standard input".into() } else { file.display().to_string() }
}

/// Returns the name of a link type for people.
pub fn name_of_link_type(link_type: i32) -> String {
    Linktype(link_type).get_name().unwrap_or_else(|_| format!("link type {link_type}"))
}

/// Why a capture file cannot be read, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    #[error("cannot read {}: {error}", name_of(.file))]
    Unreadable { file: PathBuf, error: io::Error },
    #[error("{} is not a capture file (pcap or pcapng, plain or gzip): {damage}", name_of(.file))]
    NotACapture { file: PathBuf, damage: Damage },
    #[error("{} holds {name} frames, which tcptracker cannot read", name_of(.file))]
    UnknownLinkLayer { file: PathBuf, name: String },
    /// The file ends too early, or is invalid from some point on.
    #[error("{} is damaged, and only what comes before that was read: {damage}", name_of(.file))]
    Damaged { file: PathBuf, damage: Damage },
}

/// What is wrong with the content of a file.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// What the operating system or the unpacker says.
    #[error(transparent)]
    Unreadable(#[from] io::Error),
    #[error("the file is empty")]
    Empty,
    #[error("the file ends within {0}")]
    EndsWithin(&'static str),
    #[error("{0} is invalid")]
    Invalid(&'static str),
    #[error("a length of {0} bytes is invalid")]
    Length(u32),
}

/// A frame in a file.
pub struct SavedFrame<'a> {
    pub bytes: &'a [u8],
    /// The link layer, or the number of a link type that is not supported.
    pub link: Result<LinkLayer, i32>,
    /// Nanoseconds since the Unix epoch. None if the file has no time for the frame, or one before 1970 or
    /// after 2262.
    pub unix_nanos: Option<u64>,
    /// The capture has kept only the start of the frame.
    pub is_cut: bool,
}

/// An open capture file.
pub struct SavedCapture {
    file: PathBuf,
    input: Input,
    format: Format,
    /// The size of the file, if it has one.
    size: Option<u64>,
    consumed: Arc<AtomicU64>,
    /// The link type of the last frame that cannot be read, if no frame can be read.
    unknown: Option<i32>,
    is_any_known: bool,
}

enum Format {
    Pcap(Pcap),
    Pcapng(Pcapng),
}

/// What a file says about the frame that was read into [`Input::record`].
struct Header {
    link_type: i32,
    unix_nanos: Option<u64>,
    bytes: Range<usize>,
    original_length: u32,
}

impl SavedCapture {
    /// Opens a file; `-` is standard input.
    pub fn open(file: &Path) -> Result<Self, SavedError> {
        let unreadable = |error| SavedError::Unreadable { file: file.to_owned(), error };
        let (bytes, size): (Box<dyn Read + Send>, _) = if file.as_os_str() == STDIN {
            (Box::new(stdin()), None)
        } else {
            let opened = File::open(file).map_err(unreadable)?;
            let data = opened.metadata().map_err(unreadable)?;
            (Box::new(opened), data.is_file().then_some(data.len()))
        };
        let consumed = Arc::new(AtomicU64::new(0));
        let counted = Counted { bytes, consumed: Arc::clone(&consumed) };
        let mut input = Input::new(counted).map_err(unreadable)?;
        let format = Format::of(&mut input)
            .map_err(|damage| SavedError::NotACapture { file: file.to_owned(), damage })?;
        if let Format::Pcap(pcap) = &format
            && LinkLayer::of_linktype(pcap.link_type()).is_none()
        {
            let name = name_of_link_type(pcap.link_type());
            return Err(SavedError::UnknownLinkLayer { file: file.to_owned(), name });
        }
        let file = file.to_owned();
        Ok(Self { file, input, format, size, consumed, unknown: None, is_any_known: false })
    }

    /// Returns the share of the file that was read, or nothing if its size is unknown.
    pub fn share_read(&self) -> Option<f64> {
        let read = self.consumed.load(Ordering::Relaxed);
        #[expect(clippy::cast_precision_loss, reason = "a share, for people")]
        self.size.filter(|size| *size > 0).map(|size| (read as f64 / size as f64).min(1.0))
    }

    /// Returns the next frame, or nothing at the end.
    pub fn next_frame(&mut self) -> Result<Option<SavedFrame<'_>>, SavedError> {
        let Self { file, input, format, unknown, is_any_known, .. } = self;
        let header = match format {
            Format::Pcap(pcap) => pcap.next(input),
            Format::Pcapng(pcapng) => pcapng.next(input),
        };
        let file = || file.clone();
        match header.map_err(|damage| SavedError::Damaged { file: file(), damage })? {
            Some(Header { link_type, unix_nanos, bytes, original_length }) => {
                let link = LinkLayer::of_linktype(link_type).ok_or(link_type);
                *is_any_known |= link.is_ok();
                *unknown = link.err();
                let bytes = input.record.get(bytes).unwrap_or_default();
                let is_cut = (bytes.len() as u64) < u64::from(original_length);
                Ok(Some(SavedFrame { bytes, link, unix_nanos, is_cut }))
            }
            None => match unknown.filter(|_| !*is_any_known) {
                Some(link_type) => {
                    let name = name_of_link_type(link_type);
                    Err(SavedError::UnknownLinkLayer { file: file(), name })
                }
                None => Ok(None),
            },
        }
    }
}

impl Format {
    fn of(input: &mut Input) -> Result<Self, Damage> {
        let magic = input.read("its first number")?.ok_or(Damage::Empty)?;
        if magic == pcapng::SECTION.to_le_bytes() {
            return Pcapng::open(input).map(Self::Pcapng);
        }
        Pcap::open(magic, input).map(Self::Pcap)
    }
}

/// The bytes of a file, unpacked.
struct Input {
    bytes: Box<dyn BufRead + Send>,
    /// The last record.
    record: Vec<u8>,
}

impl Input {
    fn new(mut counted: Counted) -> io::Result<Self> {
        let mut head = Vec::with_capacity(GZIP.len());
        counted.by_ref().take(GZIP.len() as u64).read_to_end(&mut head)?;
        let is_packed = head == GZIP;
        let bytes = BufReader::with_capacity(BUFFER, io::Cursor::new(head).chain(counted));
        let bytes: Box<dyn BufRead + Send> = if is_packed {
            Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(bytes)))
        } else {
            Box::new(bytes)
        };
        Ok(Self { bytes, record: Vec::new() })
    }

    /// Reads the first bytes of a record. Returns none at the end of the file.
    fn read<const N: usize>(&mut self, what: &'static str) -> Result<Option<[u8; N]>, Damage> {
        if self.bytes.fill_buf()?.is_empty() {
            return Ok(None);
        }
        let mut bytes = [0; N];
        fill(&mut *self.bytes, &mut bytes, what)?;
        Ok(Some(bytes))
    }

    /// Reads a record.
    fn read_record(&mut self, length: u32, what: &'static str) -> Result<(), Damage> {
        if length > LONGEST_RECORD {
            return Err(Damage::Length(length));
        }
        self.record.resize(length as usize, 0);
        fill(&mut *self.bytes, &mut self.record, what)
    }
}

fn fill(input: &mut dyn BufRead, bytes: &mut [u8], what: &'static str) -> Result<(), Damage> {
    input.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Damage::EndsWithin(what),
        _ => Damage::Unreadable(error),
    })
}

/// A file, and how much of it was consumed.
struct Counted {
    bytes: Box<dyn Read + Send>,
    consumed: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.bytes.read(buffer)?;
        self.consumed.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}

/// The byte order of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ByteOrder {
    Little,
    Big,
}

impl ByteOrder {
    /// Returns the number at an offset, or zero if the bytes end before it.
    fn u32_at(self, bytes: &[u8], at: usize) -> u32 {
        let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default();
        match self {
            Self::Little => u32::from_le_bytes(bytes),
            Self::Big => u32::from_be_bytes(bytes),
        }
    }

    fn u16_at(self, bytes: &[u8], at: usize) -> u16 {
        let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default();
        match self {
            Self::Little => u16::from_le_bytes(bytes),
            Self::Big => u16::from_be_bytes(bytes),
        }
    }
}

/// Converts a time to what the detector can count with.
fn representable(unix_nanos: i128) -> Option<u64> {
    i64::try_from(unix_nanos).ok().and_then(|nanos| u64::try_from(nanos).ok())
}

#[cfg(test)]
mod tests;
