//! A fake journal that listens on journald's socket path.

use std::collections::BTreeMap;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::lab::Lab;
use crate::tools::TIMEOUT;

/// An entry's fields.
pub type Entry = BTreeMap<String, String>;

/// A fake journal. A thread receives entries, unless it is paused.
pub struct Journal {
    directory: PathBuf,
    socket: UnixDatagram,
    closed: Arc<AtomicBool>,
    paused: Arc<AtomicBool>,
    entries: Receiver<Entry>,
    reader: Option<JoinHandle<()>>,
}

impl Journal {
    pub fn new(lab: &Lab) -> Self {
        let directory = lab.path("journal");
        std::fs::create_dir(&directory).unwrap();
        let socket = UnixDatagram::bind(directory.join("socket")).unwrap();
        let closed = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&closed);
        let paused = Arc::new(AtomicBool::new(false));
        let pause = Arc::clone(&paused);
        let (sender, entries) = channel();
        let receiving = socket.try_clone().unwrap();
        let reader = thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            // The service sends an empty entry first, to test for a journal.
            while let Ok(length) = receiving.recv(&mut buffer)
                && !stop.load(Ordering::SeqCst)
            {
                let _ = sender.send(parse(&buffer[..length]));
                while pause.load(Ordering::SeqCst) && !stop.load(Ordering::SeqCst) {
                    thread::sleep(Duration::from_millis(5));
                }
            }
        });
        Self { directory, socket, closed, paused, entries, reader: Some(reader) }
    }

    /// Stops receiving after one more entry, or continues.
    pub fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::SeqCst);
    }

    /// Removes the socket's file.
    pub fn remove(&self) {
        std::fs::remove_file(self.directory.join("socket")).unwrap();
    }

    /// Returns a command prefix that mounts this journal at journald's path and sets
    /// `JOURNAL_STREAM`. ip-netns(8) has already created a private mount namespace.
    pub fn wrapper(&self) -> [String; 5] {
        let script = "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal \
                      && mount --bind \"$1\" /run/systemd/journal && shift \
                      && JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2) exec \"$@\"";
        let words = ["sh", "-ec", script, "sh", path_text(&self.directory)];
        words.map(str::to_owned)
    }

    /// Waits for the next entry with this field.
    #[track_caller]
    pub fn next_with(&self, field: &str, value: &str) -> Entry {
        loop {
            let entry = self.next();
            if entry.get(field).is_some_and(|found| found == value) {
                return entry;
            }
        }
    }

    /// Waits for `count` entries of each of two message IDs, in any order.
    #[track_caller]
    pub fn next_of_kinds(&self, kinds: [&str; 2], count: usize) -> [Vec<Entry>; 2] {
        let kind_of = |entry: &Entry| {
            let id = entry.get("MESSAGE_ID")?;
            kinds.iter().position(|kind| kind == id)
        };
        let mut found = [Vec::new(), Vec::new()];
        while found.iter().any(|entries| entries.len() < count) {
            let entry = self.next();
            if let Some(kind) = kind_of(&entry) {
                found[kind].push(entry);
            }
        }
        found
    }

    #[track_caller]
    fn next(&self) -> Entry {
        self.entries.recv_timeout(TIMEOUT).expect("an entry in the journal")
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::SeqCst);
        // Ignore errors: the test may already be panicking.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        let _ = self.reader.take().map(JoinHandle::join);
    }
}

fn path_text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Parses the native protocol (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>): `NAME=value` lines,
/// or a name, a length in eight bytes and a value.
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
