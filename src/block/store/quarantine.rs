//! Unusable databases: renamed and kept, because an administrator may want to look at them.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::block::store::beside;

/// How many to keep. They may be large.
const KEPT: u32 = 3;

/// Renames a database and its log to `tcptracker.db.aside-1`, an earlier one of this name to `-2`, and so
/// on. Returns the new name.
pub fn quarantine(file: &Path) -> std::io::Result<PathBuf> {
    let kept = |number: u32| beside(file, &format!(".aside-{number}"));
    for number in (1..KEPT).rev() {
        rename(&kept(number), &kept(number + 1))?;
    }
    rename(file, &kept(1))?;
    // SQLite creates the index of the log again when the file is opened.
    unless_missing(std::fs::remove_file(beside(file, "-shm")))?;
    Ok(kept(1))
}

/// Renames a database and its log and replaces those that have the new name.
fn rename(from: &Path, to: &Path) -> std::io::Result<()> {
    for part in ["", "-wal"] {
        // A log must never lie next to a database to which it does not belong.
        unless_missing(std::fs::remove_file(beside(to, part)))?;
    }
    for part in ["-wal", ""] {
        unless_missing(std::fs::rename(beside(from, part), beside(to, part)))?;
    }
    Ok(())
}

fn unless_missing(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
