//! Unusable databases: renamed and kept, because an administrator may want to look at them.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::block::store::beside;

/// How many to keep. They may be large.
const KEPT: u32 = 3;

/// The logs of a database, and the database itself, which is renamed last.
const PARTS: [&str; 3] = ["-journal", "-wal", ""];

/// Renames a database and its log to the first name for kept ones. Returns that.
pub fn quarantine(file: &Path) -> std::io::Result<PathBuf> {
    let kept = make_room(file)?;
    rename(file, &kept)?;
    // SQLite creates the index of the log again when the file is opened.
    unless_missing(std::fs::remove_file(beside(file, "-shm")))?;
    Ok(kept)
}

/// Renames `tcptracker.db.aside-1`, if there is one, to `-2`, an earlier one of this name to `-3`, and so on.
/// Returns the first name.
pub fn make_room(file: &Path) -> std::io::Result<PathBuf> {
    let kept = |number: u32| beside(file, &format!(".aside-{number}"));
    for number in (1..KEPT).rev() {
        rename(&kept(number), &kept(number + 1))?;
    }
    Ok(kept(1))
}

/// Renames a database and its log and replaces those that have the new name.
fn rename(from: &Path, to: &Path) -> std::io::Result<()> {
    for part in PARTS {
        // A log must never lie next to a database to which it does not belong.
        unless_missing(std::fs::remove_file(beside(to, part)))?;
    }
    for part in PARTS {
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
