//! A disk of the test's own, which can be full or read-only.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::tools::sh;

/// A small disk. Dropped, it is gone with all that is on it.
pub struct Disk {
    place: PathBuf,
}

impl Disk {
    /// A disk of so many kibibytes where the instance on `eth0` keeps what it remembers.
    pub fn for_state(lab: &crate::lab::Lab, kibibytes: u32) -> Self {
        let place = lab.state_directory("eth0");
        std::fs::create_dir_all(&place).unwrap();
        sh(&format!("mount -t tmpfs -o size={kibibytes}k tcptracker-test {}", place.display()));
        Self { place }
    }

    /// Fills it to the last byte.
    pub fn fill(&self) {
        let mut filler = std::fs::File::create(self.place.join("filler")).unwrap();
        while filler.write(&[0; 4096]).is_ok() {}
    }

    /// The opposite.
    pub fn make_room(&self) {
        std::fs::remove_file(self.place.join("filler")).unwrap();
    }

    /// Nobody may have a file on it open for writing.
    pub fn set_read_only(&self, is_so: bool) {
        let mode = if is_so { "ro" } else { "rw" };
        sh(&format!("mount -o remount,{mode} {}", self.place.display()));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(&self.place);
    }
}

/// Unmounts whatever is mounted there. Complains about nothing.
pub fn unmount(place: &Path) {
    let _ = std::process::Command::new("umount").arg("--lazy").arg(place).output();
}
