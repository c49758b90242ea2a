//! The unpack thread of `tcptracker replay`: feeds libpcap with what it cannot read by itself.

use std::io;
use std::thread::{Builder, JoinHandle};

use crate::system::capture::saved::Unpacker;

/// Starts the unpack thread. It ends with the input, or when the capture is closed.
pub fn spawn(unpacker: Unpacker) -> io::Result<JoinHandle<io::Result<()>>> {
    Builder::new().name("unpack".to_owned()).spawn(|| unpacker.run())
}
