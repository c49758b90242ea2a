//! The service as a process whose log may be left unread.
//!
//! `service::Service` always reads the log. Here an attack decides whether anything reads it.

use std::collections::VecDeque;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::process::{Pid, Signal, kill_process};

use crate::lab::Lab;
use crate::service::Start;
use crate::tools::{TIMEOUT, await_that};

/// The log fills this quickly if nothing reads it.
const LOG_BUFFER: usize = 4096;

/// Lines of the log to show with a failure.
const TAIL: usize = 30;

/// What the service sent to its service manager.
#[derive(Default)]
struct Notified {
    ready: bool,
    /// The last `WATCHDOG=1`.
    fed: Option<Instant>,
}

/// Decides whether anything reads the log.
#[derive(Default)]
pub struct LogReader {
    paused: AtomicBool,
    closed: AtomicBool,
    tail: Mutex<VecDeque<String>>,
}

impl LogReader {
    /// Stops reading the log, or reads it again.
    pub fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::SeqCst);
    }

    /// Closes the reading end for good.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// Returns the last lines.
    pub fn tail(&self) -> String {
        self.tail.lock().unwrap().iter().map(|line| format!("    {line}\n")).collect()
    }

    pub fn record(&self, text: &str) {
        let mut tail = self.tail.lock().unwrap();
        // Attacks make connections by the thousand, and the observer calls all the time.
        let is_noise = |line: &&str| {
            [" connection: ", crate::observer::OTHER].iter().any(|noise| line.contains(noise))
        };
        for line in text.lines().filter(|line| !is_noise(line)) {
            tail.push_back(line.to_owned());
        }
        while tail.len() > TAIL {
            tail.pop_front();
        }
    }

    /// Calls `receive` until it returns false, unless paused. Ends when closed.
    pub fn read_all(&self, mut receive: impl FnMut() -> bool) {
        while !self.closed.load(Ordering::SeqCst) {
            if self.paused.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            } else if !receive() {
                return;
            }
        }
    }
}

/// A running service. Killed on drop.
pub struct Process {
    child: Child,
    notified: Arc<Mutex<Notified>>,
    pub log: Arc<LogReader>,
}

impl Process {
    /// Starts the service without waiting for it. A full standard error is `/dev/full`.
    pub fn begin(lab: &Lab, start: &Start, log: &Arc<LogReader>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let path = lab.path(&format!("abuse-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        let socket = UnixDatagram::bind(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        set_socket_send_buffer_size(&theirs, LOG_BUFFER).unwrap();
        let child = start
            .command(lab)
            .env("NOTIFY_SOCKET", &path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(OwnedFd::from(theirs))
            .spawn()
            .unwrap();
        let notified = Arc::default();
        read_notifications(socket, path, Arc::clone(&notified));
        let reader = Arc::clone(log);
        std::thread::spawn(move || {
            // So that an attack can end the reading at any time.
            ours.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            let mut buffer = vec![0; 65_536];
            reader.read_all(|| match (&ours).read(&mut buffer) {
                Ok(0) => false,
                Ok(length) => {
                    reader.record(&String::from_utf8_lossy(&buffer[..length]));
                    true
                }
                Err(_) => true,
            });
        });
        Self { child, notified, log: Arc::clone(log) }
    }

    /// Waits until the service is ready.
    #[track_caller]
    pub fn await_ready(mut self) -> Self {
        await_that("the service is ready", || {
            assert!(self.is_alive(), "the service ended while it started:\n{}", self.log.tail());
            self.is_ready()
        });
        self
    }

    pub fn is_ready(&self) -> bool {
        self.notified.lock().unwrap().ready
    }

    /// Returns whether the process runs. The pid stays: wrappers replace themselves.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Stops the service in order. Returns nothing if it does not end within this time.
    pub fn stop(&mut self, within: Duration) -> Option<ExitStatus> {
        self.signal(Signal::TERM);
        let deadline = Instant::now() + within;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }

    /// Returns a way to read when the watchdog was last fed.
    pub fn watchdog(&self) -> impl Fn() -> Option<Instant> + Send + use<> {
        let notified = Arc::clone(&self.notified);
        move || notified.lock().unwrap().fed
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.log.close();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_notifications(socket: UnixDatagram, path: PathBuf, notified: Arc<Mutex<Notified>>) {
    std::thread::spawn(move || {
        // The thread ends when the service has sent nothing for so long.
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut buffer = [0; 4096];
        while let Ok(length) = socket.recv(&mut buffer) {
            let mut notified = notified.lock().unwrap();
            for line in String::from_utf8_lossy(&buffer[..length]).lines() {
                notified.ready |= line == "READY=1";
                if line == "WATCHDOG=1" {
                    notified.fed = Some(Instant::now());
                }
            }
        }
        let _ = std::fs::remove_file(path);
    });
}

/// A journal that may be left unread, or be absent. The service finds it through [`Self::wrapper`].
pub struct AbsentJournal {
    directory: PathBuf,
}

impl AbsentJournal {
    pub fn new(lab: &Lab) -> Self {
        let directory = lab.path("journal");
        std::fs::create_dir(&directory).unwrap();
        Self { directory }
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("socket")
    }

    /// Listens. The socket is there until `log` is closed; then its file stays.
    pub fn listen(&self, log: &Arc<LogReader>) {
        let _ = std::fs::remove_file(self.socket());
        let socket = UnixDatagram::bind(self.socket()).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let log = Arc::clone(log);
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            log.read_all(|| {
                if let Ok(length) = socket.recv(&mut buffer) {
                    let entry = String::from_utf8_lossy(&buffer[..length]);
                    // The field's name, a length in eight bytes, and the text.
                    if let Some((_, message)) = entry.split_once("MESSAGE\n") {
                        log.record(
                            message.get(8..).unwrap_or(message).lines().next().unwrap_or(""),
                        );
                    }
                }
                true
            });
        });
    }

    /// Removes the socket's file, so that the service cannot connect again.
    pub fn remove(&self) {
        let _ = std::fs::remove_file(self.socket());
    }

    /// Returns a command prefix that mounts this journal at journald's path.
    pub fn wrapper(directory: &Path) -> Vec<String> {
        let script = "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal \
                      && mount --bind \"$1\" /run/systemd/journal && shift \
                      && JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2) exec \"$@\"";
        ["sh", "-ec", script, "sh", directory.to_str().unwrap()].map(str::to_owned).to_vec()
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }
}
