//! A journal of the test's own, in the place where journald has its socket.

use std::collections::BTreeMap;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use crate::lab::Lab;
use crate::tools::PATIENCE;

/// An entry's fields.
pub type Entry = BTreeMap<String, String>;

/// The journal.
pub struct Journal {
    directory: PathBuf,
    socket: UnixDatagram,
}

impl Journal {
    pub fn new(lab: &Lab) -> Self {
        let directory = lab.path("journal");
        std::fs::create_dir(&directory).unwrap();
        let socket = UnixDatagram::bind(directory.join("socket")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { directory, socket }
    }

    /// What to start the service through, so that it finds this journal at the fixed path, and is told
    /// that its stderr is connected to it. Its mount namespace is its own already: ip-netns(8) makes
    /// one.
    pub fn wrapper(&self) -> [String; 5] {
        let script = "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal \
                      && mount --bind \"$1\" /run/systemd/journal && shift \
                      && JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2) exec \"$@\"";
        let words = ["sh", "-ec", script, "sh", path_text(&self.directory)];
        words.map(str::to_owned)
    }

    /// The next entry with this field.
    #[track_caller]
    pub fn next_with(&self, field: &str, value: &str) -> Entry {
        loop {
            let entry = self.next();
            if entry.get(field).is_some_and(|found| found == value) {
                return entry;
            }
        }
    }

    #[track_caller]
    fn next(&self) -> Entry {
        let mut buffer = vec![0; 65_536];
        let length = self.socket.recv(&mut buffer).expect("an entry in the journal");
        parse(&buffer[..length])
    }
}

fn path_text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The native protocol (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>): `NAME=value` lines, or a
/// name, a length in eight bytes and a value.
fn parse(mut rest: &[u8]) -> Entry {
    let mut entry = Entry::new();
    while !rest.is_empty() {
        let line_end = rest.iter().position(|byte| *byte == b'\n').unwrap();
        let line = text(&rest[..line_end]);
        rest = &rest[line_end + 1..];
        if let Some((name, value)) = line.split_once('=') {
            entry.insert(name.to_owned(), value.to_owned());
        } else {
            let (length, value) = rest.split_at(8);
            let length = usize::try_from(u64::from_le_bytes(length.try_into().unwrap())).unwrap();
            entry.insert(line, text(&value[..length]));
            rest = &value[length + 1..];
        }
    }
    entry
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
