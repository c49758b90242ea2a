//! Files of the machine's that the service finds as a test wants them: /etc and /run of its own.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::lab::Lab;
use crate::tools::{run, sh};

/// The victim's own /etc, at first a copy of the machine's, and an empty /run.
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
        // What other tests make and remove meanwhile is left out, see `users.rs`.
        let all = "find /etc -mindepth 1 -maxdepth 1 ! -name netns -exec cp -a -t";
        sh(&format!("{all} {} {{}} +", etc.display()));
        Self { etc, run }
    }

    /// What to start the service through, so that it finds them. Its mount namespace is its own already:
    /// ip-netns(8) makes one.
    pub fn wrapper(&self) -> [String; 6] {
        let script =
            "mount --bind \"$1\" /etc && mount --bind \"$2\" /run && shift 2 && exec \"$@\"";
        let words = ["sh", "-ec", script, "sh", text(&self.etc), text(&self.run)];
        words.map(str::to_owned)
    }

    /// Writes a file in place, as editors do that do not replace it.
    pub fn write(&self, path: &str, contents: &str) {
        let path = self.at(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, contents).unwrap();
    }

    /// Puts another file in its place, as most programs do.
    pub fn replace(&self, path: &str, contents: &str) {
        let new = format!("{path}.new");
        self.write(&new, contents);
        std::fs::rename(self.at(&new), self.at(path)).unwrap();
    }

    /// Puts a symbolic link in its place.
    pub fn link(&self, path: &str, target: &str) {
        run(std::process::Command::new("ln").args(["-sfn", target]).arg(self.at(path))).ok();
    }

    /// Who may read it.
    pub fn set_mode(&self, path: &str, mode: u32) {
        std::fs::set_permissions(self.at(path), Permissions::from_mode(mode)).unwrap();
    }

    fn at(&self, path: &str) -> PathBuf {
        let inside = |directory: &str| path.strip_prefix(directory);
        match (inside("/etc/"), inside("/run/")) {
            (Some(rest), _) => self.etc.join(rest),
            (_, Some(rest)) => self.run.join(rest),
            _ => panic!("{path} is the machine's"),
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
