//! Private disks that can become full or read-only, or lose power.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::tools::{run, sh};

/// A small disk. Unmounted on drop, which discards its contents.
pub struct Disk {
    mount_point: PathBuf,
}

impl Disk {
    /// Mounts a disk of this size at the state directory of the instance on `eth0`.
    pub fn for_state(lab: &crate::lab::Lab, kibibytes: u32) -> Self {
        let mount_point = lab.state_directory("eth0");
        std::fs::create_dir_all(&mount_point).unwrap();
        sh(&format!(
            "mount -t tmpfs -o size={kibibytes}k tcptracker-test {}",
            mount_point.display()
        ));
        Self { mount_point }
    }

    /// Fills the disk to the last byte.
    pub fn fill(&self) {
        let mut filler = std::fs::File::create(self.mount_point.join("filler")).unwrap();
        while filler.write(&[0; 4096]).is_ok() {}
    }

    /// Removes the file that [`Self::fill`] wrote.
    pub fn free_space(&self) {
        std::fs::remove_file(self.mount_point.join("filler")).unwrap();
    }

    /// Remounts the disk. Read-only fails while a file is open for writing.
    pub fn set_read_only(&self, read_only: bool) {
        let mode = if read_only { "ro" } else { "rw" };
        sh(&format!("mount -o remount,{mode} {}", self.mount_point.display()));
    }
}

/// Stops all writes to a file system's device, including dirty pages and the journal
/// (`EXT4_IOC_SHUTDOWN`, `EXT4_GOING_FLAGS_NOLOGFLUSH`).
const CUT: &str = "import fcntl, os, struct, sys; \
    fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";

/// A disk with a journalling file system, backed by a file.
pub struct PowerCutDisk {
    image: PathBuf,
    disk: Disk,
}

impl PowerCutDisk {
    /// Mounts a disk at the state directory of the instance on `eth0`.
    pub fn for_state(lab: &crate::lab::Lab) -> Self {
        let (image, mount_point) = (lab.path("disk"), lab.state_directory("eth0"));
        std::fs::create_dir_all(&mount_point).unwrap();
        sh(&format!("truncate --size 64M {}", image.display()));
        sh(&format!("mkfs.ext4 -q -F {}", image.display()));
        let disk = Self { image, disk: Disk { mount_point } };
        disk.mount();
        disk
    }

    fn mount(&self) {
        sh(&format!("mount -o loop {} {}", self.image.display(), self.disk.mount_point.display()));
    }

    /// Cuts the power: no later write reaches the disk.
    pub fn cut_power(&self) {
        let mut cut = std::process::Command::new("python3");
        run(cut.args(["-c", CUT]).arg(&self.disk.mount_point)).ok();
    }

    /// Measures how long the underlying disk takes to flush a small write.
    pub fn flush_duration(&self) -> Duration {
        let begun = Instant::now();
        let mut file = std::fs::File::create(self.image.with_extension("probe")).unwrap();
        file.write_all(&[1; 4096]).unwrap();
        file.sync_all().unwrap();
        begun.elapsed()
    }

    /// Restores the power. The disk contains the writes that reached it before the cut.
    pub fn power_up(&mut self) {
        unmount(&self.disk.mount_point);
        // Another mount namespace may still hold the old image.
        let copy = self.image.with_extension("copy");
        std::fs::copy(&self.image, &copy).unwrap();
        std::fs::remove_file(&self.image).unwrap();
        std::fs::rename(&copy, &self.image).unwrap();
        self.mount();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(&self.mount_point);
    }
}

/// Unmounts the directory and ignores errors.
pub fn unmount(mount_point: &Path) {
    let _ = std::process::Command::new("umount").arg("--lazy").arg(mount_point).output();
}
