//! Files that say what this host depends on: reading them, and noticing that they have changed.
//!
//! Owns the watch (inotify(7)). Knows no file's meaning. It watches directories rather than files, as
//! most programs replace a file instead of writing it; each directory on the way of a symbolic link;
//! and the file itself, which may be mounted from elsewhere, as in containers.

use std::fs::{read_link, read_to_string};
use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use glob::{GlobResult, glob};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::{Errno, read};

/// What tells that a name in a directory stands for something else now.
const DIRECTORY: WatchFlags = WatchFlags::ONLYDIR
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF);

/// What tells that a file has other contents, or may be read now.
const FILE: WatchFlags = WatchFlags::CLOSE_WRITE.union(WatchFlags::ATTRIB);

/// As many symbolic links as the kernel follows.
const LINKS: usize = 40;

/// A reader of files.
pub struct Files {
    watch: Option<OwnedFd>,
}

impl Files {
    /// A reader that remembers what it has read, and hears of its changes. Where the system has no
    /// watch to spare it hears of none.
    pub fn watched() -> Self {
        Self { watch: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok() }
    }

    /// A reader for one look.
    pub const fn unwatched() -> Self {
        Self { watch: None }
    }

    /// What is ready to be read when something has changed.
    pub fn watch(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().map(AsFd::as_fd)
    }

    /// Reads a file; nothing where there is none.
    pub fn read(&self, path: &Path) -> io::Result<Option<String>> {
        // First, so that no change falls between.
        self.follow(path);
        match read_to_string(path) {
            Ok(text) => Ok(Some(text)),
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The files a pattern stands for, as shells understand it, in order.
    pub fn matching(&self, pattern: &Path) -> impl Iterator<Item = GlobResult> {
        self.follow(pattern);
        let found = pattern.to_str().and_then(|pattern| glob(pattern).ok());
        found.into_iter().flatten()
    }

    /// Whether anything that was read may have changed since the last call.
    pub fn changed(&self) -> bool {
        let Some(watch) = &self.watch else { return false };
        let mut changed = false;
        let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
        loop {
            // What has changed does not matter: all is read again. A lost event is one, too.
            match read(watch, &mut buffer) {
                Ok(_) => changed = true,
                Err(Errno::INTR) => {}
                Err(_) => return changed,
            }
        }
    }

    fn follow(&self, path: &Path) {
        let Some(watch) = &self.watch else { return };
        // Not there, or not for us to see: its directory tells when that changes.
        let _ = inotify::add_watch(watch, path, FILE);
        let mut path = path.to_owned();
        for _ in 0..LINKS {
            let Some(directory) = path.parent().map(Path::to_owned) else { return };
            // Where that does not exist yet either, the nearest that does.
            directory.ancestors().find(|up| inotify::add_watch(watch, *up, DIRECTORY).is_ok());
            let Ok(target) = read_link(&path) else { return };
            path = directory.join(target);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir, rename, write};
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    /// inotify tells of a change before the call that made it returns.
    #[test]
    fn every_way_to_change_a_file_is_noticed() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        let (file, link) = (at("deep/er/file"), at("link"));
        symlink("deep/er/file", &link).unwrap();
        let files = Files::watched();
        let look = || files.read(&link).unwrap();
        assert_eq!((look(), files.changed()), (None, false));

        for directory in ["deep", "deep/er"] {
            create_dir(at(directory)).unwrap();
            assert!(files.changed(), "{directory}");
            assert_eq!(look(), None);
        }
        write(&file, "one").unwrap();
        assert!(files.changed());
        assert_eq!((look(), files.changed()), (Some("one".to_owned()), false));

        write(&file, "in place").unwrap();
        assert!(files.changed());
        assert_eq!(look().unwrap(), "in place");

        write(at("new"), "replaced").unwrap();
        files.changed();
        rename(at("new"), &file).unwrap();
        assert!(files.changed());
        assert_eq!(look().unwrap(), "replaced");
        write(&file, "and in place again").unwrap();
        assert!(files.changed(), "the new file is watched as the old one was");

        write(at("other"), "elsewhere").unwrap();
        symlink("other", at("new link")).unwrap();
        files.changed();
        rename(at("new link"), &link).unwrap();
        assert!(files.changed());
        assert_eq!(look().unwrap(), "elsewhere");
    }

    #[test]
    fn a_file_that_begins_to_match_is_noticed() {
        let place = tempfile::tempdir().unwrap();
        let pattern = place.path().join("*.conf");
        let files = Files::watched();
        let matching = || files.matching(&pattern).collect::<Result<Vec<_>, _>>().unwrap();
        assert_eq!(matching(), Vec::<PathBuf>::new());
        write(place.path().join("one.conf"), "").unwrap();
        assert!(files.changed());
        assert_eq!(matching(), [place.path().join("one.conf")]);
    }
}
