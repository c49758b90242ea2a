//! A capture file as a source of frames: pcap and pcapng, plain or gzip, or standard input.
//!
//! Owns the file's handle and, where bytes have to be unpacked or come from standard input, the
//! thread that feeds them to libpcap through a pipe. What can be read is read; what cannot is said.

use std::fs::File;
use std::io::{self, Cursor, PipeReader, Read, stdin};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use flate2::read::MultiGzDecoder;
use pcap::{Capture, Offline, Precision};

use super::frame::LinkLayer;
use super::live::{Frame, frame_of, text_of};

const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Stands for standard input.
const STDIN: &str = "-";

/// Why a capture file cannot be read, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// The file cannot be opened.
    #[error("cannot read {}: {error}", .file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// The file is something else.
    #[error("{} is not a capture file (pcap or pcapng, plain or gzip): {text}", .file.display())]
    NotACapture {
        /// The file.
        file: PathBuf,
        /// libpcap's text.
        text: String,
    },
    /// The file carries something that is not understood.
    #[error("{} holds {name} frames, which tcptracker cannot read", .file.display())]
    UnknownLinkLayer {
        /// The file.
        file: PathBuf,
        /// libpcap's name of the link type.
        name: String,
    },
    /// The file ends too early, or goes wrong halfway.
    #[error("{} is damaged, and only what comes before that was read: {text}", .file.display())]
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
}

/// The thread that unpacks, and the end of the pipe libpcap reads from.
struct Feeder {
    pipe: PipeReader,
    thread: JoinHandle<io::Result<()>>,
}

impl SavedCapture {
    /// Opens a file; `-` is standard input.
    pub fn open(file: &Path) -> Result<Self, SavedError> {
        let unreadable = |error| SavedError::Unreadable { file: file.to_owned(), error };
        let feeder = feeder(file).map_err(unreadable)?;
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
        Ok(Self { file: file.to_owned(), handle, link, feeder })
    }

    /// How the file wraps its packets.
    pub fn link(&self) -> LinkLayer {
        self.link
    }

    /// The next frame, or nothing at the end.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, SavedError> {
        let damaged = |text| SavedError::Damaged { file: self.file.clone(), text };
        match self.handle.next_packet() {
            Ok(packet) => Ok(Some(frame_of(&packet))),
            Err(pcap::Error::NoMorePackets) => {
                // Only now is it known whether all of it could be unpacked.
                match self.feeder.take().map(|feeder| feeder.thread.join()) {
                    Some(Ok(Err(error))) => Err(damaged(error.to_string())),
                    _ => Ok(None),
                }
            }
            Err(error) => Err(damaged(text_of(&error))),
        }
    }
}

/// What libpcap cannot read by itself comes through a pipe.
fn feeder(file: &Path) -> io::Result<Option<Feeder>> {
    // What can be read once only, libpcap must not open again.
    let mut only_once = true;
    let mut input: Box<dyn Read + Send> = if file.as_os_str() == STDIN {
        Box::new(stdin())
    } else {
        let opened = File::open(file)?;
        only_once = !opened.metadata()?.is_file();
        Box::new(opened)
    };
    let mut start = Vec::with_capacity(GZIP.len());
    input.by_ref().take(GZIP.len() as u64).read_to_end(&mut start)?;
    let packed = start == GZIP;
    if !packed && !only_once {
        return Ok(None);
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
    Ok(Some(Feeder { pipe, thread }))
}
