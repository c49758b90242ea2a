//! A file in memory for parsers that read from a path.

use std::path::PathBuf;
use std::sync::OnceLock;

/// Returns a path that no other process uses.
pub fn path() -> &'static PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        // libFuzzer runs a process per job.
        PathBuf::from(format!("/dev/shm/tcptracker-fuzz-{}", std::process::id()))
    })
}

/// Writes the bytes to the file.
pub fn write(bytes: &[u8]) -> &'static PathBuf {
    std::fs::write(path(), bytes).expect("a writable /dev/shm");
    path()
}
