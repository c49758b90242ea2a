//! A disk of the test's own, which can be full or read-only, or lose its power.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::tools::{run, sh};

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
    pub fn free_space(&self) {
        std::fs::remove_file(self.place.join("filler")).unwrap();
    }

    /// Nobody may have a file on it open for writing.
    pub fn set_read_only(&self, is_so: bool) {
        let mode = if is_so { "ro" } else { "rw" };
        sh(&format!("mount -o remount,{mode} {}", self.place.display()));
    }
}

/// Tells the kernel that nothing more reaches a file system's device, as of now: neither what it has not
/// written yet nor its journal (`EXT4_IOC_SHUTDOWN`, `EXT4_GOING_FLAGS_NOLOGFLUSH`).
const CUT: &str = "import fcntl, os, struct, sys; \
    fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";

/// A disk with a journal, as servers have it, in a file.
pub struct PowerCutDisk {
    image: PathBuf,
    disk: Disk,
}

impl PowerCutDisk {
    /// A disk where the instance on `eth0` keeps what it remembers.
    pub fn for_state(lab: &crate::lab::Lab) -> Self {
        let (image, place) = (lab.path("disk"), lab.state_directory("eth0"));
        std::fs::create_dir_all(&place).unwrap();
        sh(&format!("truncate --size 64M {}", image.display()));
        sh(&format!("mkfs.ext4 -q -F {}", image.display()));
        let electric = Self { image, disk: Disk { place } };
        electric.mount();
        electric
    }

    fn mount(&self) {
        sh(&format!("mount -o loop {} {}", self.image.display(), self.disk.place.display()));
    }

    /// From now on nothing reaches it.
    pub fn cut_power(&self) {
        let mut cut = std::process::Command::new("python3");
        run(cut.args(["-c", CUT]).arg(&self.disk.place)).ok();
    }

    /// How long the disk beneath takes at the moment to keep something.
    pub fn flush_duration(&self) -> Duration {
        let begun = Instant::now();
        let mut file = std::fs::File::create(self.image.with_extension("probe")).unwrap();
        file.write_all(&[1; 4096]).unwrap();
        file.sync_all().unwrap();
        begun.elapsed()
    }

    /// The power is back: there is what had reached it.
    pub fn power_up(&mut self) {
        unmount(&self.disk.place);
        // Some mount namespace may still hold the old one.
        let again = self.image.with_extension("again");
        std::fs::copy(&self.image, &again).unwrap();
        std::fs::remove_file(&self.image).unwrap();
        std::fs::rename(&again, &self.image).unwrap();
        self.mount();
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
