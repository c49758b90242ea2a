//! A database that is of no use is not thrown away: somebody may want to look at it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::block::store::beside;

/// How many are kept. They may be large.
const KEPT: u32 = 3;

/// Renames a database and its log: `tcptracker.db.aside-1`, what bore this name `-2`, and so on. Returns
/// the new name.
pub fn set_aside(file: &Path) -> std::io::Result<PathBuf> {
    let kept = |number: u32| beside(file, &format!(".aside-{number}"));
    for number in (1..KEPT).rev() {
        rename(&kept(number), &kept(number + 1))?;
    }
    rename(file, &kept(1))?;
    // An index of the log, made anew by whoever opens it.
    unless_missing(std::fs::remove_file(beside(file, "-shm")))?;
    Ok(kept(1))
}

/// Renames a database and its log, over others of that name.
fn rename(from: &Path, to: &Path) -> std::io::Result<()> {
    for part in ["", "-wal"] {
        // A log must never lie beside a database it does not belong to.
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
