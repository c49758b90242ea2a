//! A private /etc and /run for the service, so that a test can change system files.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::lab::Lab;
use crate::tools::{run, sh};

/// The victim's private /etc, initially a copy of the machine's, and an empty /run.
pub struct Files {
    etc: PathBuf,
    run: PathBuf,
}

impl Files {
    pub fn new(lab: &Lab) -> Self {
        let [etc, run] = ["etc", "run"].map(|name| lab.path(name));
        for directory in [&etc, &run] {
            std::fs::create_dir(directory).unwrap();
        }
        // Skip /etc/netns, which other tests change concurrently (see `users.rs`).
        let all = "find /etc -mindepth 1 -maxdepth 1 ! -name netns -exec cp -a -t";
        sh(&format!("{all} {} {{}} +", etc.display()));
        Self { etc, run }
    }

    /// Returns a command prefix that mounts these files for the service. ip-netns(8) has already
    /// created a private mount namespace.
    pub fn wrapper(&self) -> [String; 6] {
        let script =
            "mount --bind \"$1\" /etc && mount --bind \"$2\" /run && shift 2 && exec \"$@\"";
        let words = ["sh", "-ec", script, "sh", text(&self.etc), text(&self.run)];
        words.map(str::to_owned)
    }

    /// Overwrites a file in place, as some editors do.
    pub fn write(&self, path: &str, contents: &str) {
        let path = self.at(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, contents).unwrap();
    }

    /// Replaces a file by rename, as most programs do.
    pub fn replace(&self, path: &str, contents: &str) {
        let new = format!("{path}.new");
        self.write(&new, contents);
        std::fs::rename(self.at(&new), self.at(path)).unwrap();
    }

    /// Replaces a file with a symbolic link.
    pub fn link(&self, path: &str, target: &str) {
        run(std::process::Command::new("ln").args(["-sfn", target]).arg(self.at(path))).ok();
    }

    pub fn set_mode(&self, path: &str, mode: u32) {
        std::fs::set_permissions(self.at(path), Permissions::from_mode(mode)).unwrap();
    }

    fn at(&self, path: &str) -> PathBuf {
        let inside = |directory: &str| path.strip_prefix(directory);
        match (inside("/etc/"), inside("/run/")) {
            (Some(rest), _) => self.etc.join(rest),
            (_, Some(rest)) => self.run.join(rest),
            _ => panic!("{path} is neither in /etc nor in /run"),
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
