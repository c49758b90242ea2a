//! A file for parsers that read from a path. `make fuzz` puts it into memory.

use std::path::PathBuf;
use std::sync::OnceLock;

/// Writes the bytes to a file of this process.
pub fn write(bytes: &[u8]) -> &'static PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    let path = PATH.get_or_init(|| {
        // libFuzzer may run several processes at once.
        std::env::temp_dir().join(format!("fuzz-{}", std::process::id()))
    });
    std::fs::write(path, bytes).expect("a writable temporary directory");
    path
}
