//! Files that describe what this host depends on: reading them, and noticing that they have changed.
//!
//! Owns the watch (inotify(7)), and knows nothing about the contents. It watches the directory of a file,
//! because most programs replace a file instead of writing it; each directory on the path of a symbolic
//! link; and the file itself, which may be a mount point, as in containers.

use std::fs::{read_link, read_to_string};
use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use glob::{GlobResult, glob};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::{Errno, read};

use crate::system::reserve;

/// Events after which a name in a directory may stand for another file.
const DIRECTORY: WatchFlags = WatchFlags::ONLYDIR
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF);

/// Events after which a file may have other contents, or be readable.
const FILE: WatchFlags = WatchFlags::CLOSE_WRITE.union(WatchFlags::ATTRIB);

/// The kernel follows at most so many symbolic links.
const LINKS: usize = 40;

/// A reader of files that notices when they change.
pub struct FileWatcher {
    watch: Option<OwnedFd>,
}

impl FileWatcher {
    /// Makes a reader that watches the files that it reads. If the system has no inotify instance left, it
    /// notices no change.
    pub fn new() -> Self {
        Self { watch: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok() }
    }

    /// Makes a reader that watches nothing.
    pub const fn once() -> Self {
        Self { watch: None }
    }

    /// The file descriptor that is readable after a change.
    pub fn watch(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().map(AsFd::as_fd)
    }

    /// Reads a file. Returns nothing if it does not exist.
    pub fn read(&self, path: &Path) -> io::Result<Option<String>> {
        // Before reading, so that no change goes unnoticed.
        self.follow(path);
        match reserve::spend(|| read_to_string(path)) {
            Ok(text) => Ok(Some(text)),
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the files that match a shell pattern, in order.
    pub fn matching(&self, pattern: &Path) -> impl Iterator<Item = GlobResult> {
        self.follow(pattern);
        let found = pattern.to_str().and_then(|pattern| glob(pattern).ok());
        found.into_iter().flatten()
    }

    /// Returns whether any file that was read may have changed since the last call.
    pub fn changed(&self) -> bool {
        let Some(watch) = &self.watch else { return false };
        let mut changed = false;
        let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
        loop {
            // Everything is read again, whatever has changed. An overflow is an event, too.
            match read(watch, &mut buffer) {
                Ok(_) => changed = true,
                Err(Errno::INTR) => {}
                Err(_) => return changed,
            }
        }
    }

    fn follow(&self, path: &Path) {
        let Some(watch) = &self.watch else { return };
        // If the file does not exist or is unreadable, its directory shows when that changes.
        let _ = inotify::add_watch(watch, path, FILE);
        let mut path = path.to_owned();
        for _ in 0..LINKS {
            let Some(directory) = path.parent().map(Path::to_owned) else { return };
            // If the directory does not exist yet: its nearest ancestor that does.
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

    /// inotify reports a change before the call that made it returns.
    #[test]
    fn every_kind_of_change_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let (file, link) = (at("deep/er/file"), at("link"));
        symlink("deep/er/file", &link).unwrap();
        let files = FileWatcher::new();
        let look = || files.read(&link).unwrap();
        assert_eq!((look(), files.changed()), (None, false));

        for name in ["deep", "deep/er"] {
            create_dir(at(name)).unwrap();
            assert!(files.changed(), "{name}");
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
        assert!(files.changed(), "the new file is watched");

        write(at("other"), "elsewhere").unwrap();
        symlink("other", at("new link")).unwrap();
        files.changed();
        rename(at("new link"), &link).unwrap();
        assert!(files.changed());
        assert_eq!(look().unwrap(), "elsewhere");
    }

    #[test]
    fn new_matching_file_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let pattern = directory.path().join("*.conf");
        let files = FileWatcher::new();
        let matching = || files.matching(&pattern).collect::<Result<Vec<_>, _>>().unwrap();
        assert_eq!(matching(), Vec::<PathBuf>::new());
        write(directory.path().join("one.conf"), "").unwrap();
        assert!(files.changed());
        assert_eq!(matching(), [directory.path().join("one.conf")]);
    }
}
