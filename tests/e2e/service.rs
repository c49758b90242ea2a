//! The running service: started as a service manager would, and everything it tells heard.

use std::fs::Permissions;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::lab::{BINARY, Lab};
use crate::tools::TIMEOUT;

/// The system call in which a thread waits for others, by its number in `/proc`.
const FUTEX: &str = if cfg!(target_arch = "x86_64") { "202" } else { "98" };

/// Ends the thread that hears notifications.
const NO_MORE: &str = "NO_MORE=1";

/// How the service is to be started.
#[derive(Clone, Default)]
pub struct Start {
    interface: String,
    flags: Vec<String>,
    environment: Vec<(String, String)>,
    /// A program and its arguments that in the end executes the service.
    wrapper: Vec<String>,
    binary: Option<PathBuf>,
    mute: bool,
    on_terminal: bool,
}

impl Start {
    pub fn on(interface: &str) -> Self {
        Self { interface: interface.to_owned(), ..Self::default() }
    }

    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn through<T: ToString>(mut self, wrapper: impl IntoIterator<Item = T>) -> Self {
        self.wrapper = wrapper.into_iter().map(|word| word.to_string()).collect();
        self
    }

    pub fn binary(mut self, binary: PathBuf) -> Self {
        self.binary = Some(binary);
        self
    }

    /// Nobody reads its log until [`Service::read_log`].
    pub fn with_unread_log(mut self) -> Self {
        self.mute = true;
        self
    }

    /// Started by a person in a terminal, not by a service manager.
    pub fn on_terminal(mut self) -> Self {
        self.on_terminal = true;
        self
    }

    /// The command, in the victim's namespace, with the laboratory's bus and configuration file.
    pub fn command(&self, lab: &Lab) -> Command {
        let binary = self.binary.clone().unwrap_or_else(|| BINARY.into());
        let mut words = self.wrapper.iter().map(std::ffi::OsString::from).chain([binary.into()]);
        let mut command = lab.victim.command(words.next().unwrap());
        command
            .args(words)
            .args(["run", "-i", &self.interface, "--config"])
            .arg(lab.path("tcptracker.toml"))
            .args(&self.flags);
        lab.bus.environment(&mut command);
        command.env_remove("JOURNAL_STREAM").env_remove("NOTIFY_SOCKET");
        command.env("STATE_DIRECTORY", lab.state_directory(&self.interface));
        // As a terminal's Ctrl-C must not reach it while the tests clean up.
        command.process_group(0);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts it; does not wait for anything.
    pub fn begin(&self, lab: &Lab) -> Service {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let socket_path = lab.path(&format!("notify-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        let socket = UnixDatagram::bind(&socket_path).unwrap();
        // Whoever the service runs as.
        std::fs::set_permissions(&socket_path, Permissions::from_mode(0o777)).unwrap();
        let (tell, told) = channel();
        let terminal = self.on_terminal.then(Terminal::new);
        let stdin = terminal.as_ref().map_or_else(Stdio::null, Terminal::keyboard);
        let mut child = self
            .command(lab)
            .env("NOTIFY_SOCKET", &socket_path)
            .stdin(stdin)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = child.stderr.take().unwrap();
        let mut service = Service {
            child,
            socket_path,
            tell: tell.clone(),
            told,
            unread: None,
            log: Vec::new(),
            notices: Vec::new(),
            log_ended: false,
            notices_ended: false,
            _terminal: terminal,
        };
        std::thread::spawn(move || hear_notices(&socket, &tell));
        service.unread = Some(stderr);
        if !self.mute {
            service.read_log();
        }
        service
    }
}

enum Told {
    Line(String),
    LogEnded,
    Notice(String),
    NoticesEnded,
}

/// A running service. Dropped, it is killed.
pub struct Service {
    child: Child,
    socket_path: PathBuf,
    tell: Sender<Told>,
    told: Receiver<Told>,
    unread: Option<ChildStderr>,
    /// What it has logged so far.
    log: Vec<String>,
    /// What it has told the service manager so far.
    notices: Vec<String>,
    log_ended: bool,
    notices_ended: bool,
    /// Stays open as long as it runs.
    _terminal: Option<Terminal>,
}

/// A terminal that shows nothing.
struct Terminal(OwnedFd);

impl Terminal {
    fn new() -> Self {
        let terminal =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        Self(terminal)
    }

    /// What a program in it reads from.
    fn keyboard(&self) -> Stdio {
        let name = ptsname(&self.0, Vec::new()).unwrap();
        std::fs::File::open(name.to_str().unwrap()).unwrap().into()
    }
}

impl Service {
    #[track_caller]
    pub fn await_ready(mut self) -> Self {
        self.await_notification("READY=1");
        self
    }

    /// Begins to read the log.
    pub fn read_log(&mut self) {
        let Some(stderr) = self.unread.take() else { return };
        let tell = self.tell.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let _ = tell.send(Told::Line(line));
            }
            let _ = tell.send(Told::LogEnded);
        });
    }

    /// Waits until the service has logged a line with these words in it.
    #[track_caller]
    pub fn await_line(&mut self, words: &str) -> String {
        self.await_until(&format!("a line with {words:?}"), |service| {
            service.log.iter().find(|line| line.contains(words)).cloned()
        })
    }

    /// Waits until so many lines with these words in them were logged.
    #[track_caller]
    pub fn await_lines(&mut self, words: &str, count: usize) {
        self.await_until(&format!("{count} lines with {words:?}"), |service| {
            let found = service.log.iter().filter(|line| line.contains(words)).count();
            (found >= count).then_some(())
        });
    }

    /// Waits for a notification to the service manager.
    #[track_caller]
    pub fn await_notification(&mut self, prefix: &str) -> String {
        self.await_notifications(prefix, 1).pop().unwrap()
    }

    /// Waits until so many notifications of a kind have come; all of them.
    #[track_caller]
    pub fn await_notifications(&mut self, prefix: &str, count: usize) -> Vec<String> {
        self.await_until(&format!("{count} times {prefix:?}"), |service| {
            let found = service.notices.iter().filter(|notice| notice.starts_with(prefix));
            let found: Vec<String> = found.cloned().collect();
            (found.len() >= count).then_some(found)
        })
    }

    /// Waits until no notification of a kind has come for so long; false if that never happens.
    pub fn stops_notifying(&mut self, notice: &str, span: Duration) -> bool {
        let patience = Instant::now() + TIMEOUT;
        while Instant::now() < patience {
            let count = |service: &Self| {
                service.notices.iter().filter(|told| told.starts_with(notice)).count()
            };
            let before = count(self);
            if self.listen_until(span, |service| (count(service) > before).then_some(())).is_none()
            {
                return true;
            }
        }
        false
    }

    /// The lines with these words in them, of all it has logged until now.
    pub fn lines_with(&mut self, words: &str) -> Vec<String> {
        while let Ok(told) = self.told.try_recv() {
            self.note(told);
        }
        self.log.iter().filter(|line| line.contains(words)).cloned().collect()
    }

    /// Forgets what was logged until now: what is awaited next has to come anew.
    pub fn clear_log(&mut self) {
        self.lines_with("");
        self.log.clear();
    }

    /// What it has told the service manager until now.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// The memory it has at the moment.
    #[track_caller]
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let kibibytes: u64 = resident.trim().strip_suffix(" kB").unwrap().parse().unwrap();
        kibibytes * 1024
    }

    /// Whether a thread of it waits to be told something by another: it computes nothing, and asks neither the kernel
    /// nor another program.
    pub fn is_idle(&self, thread: &str) -> bool {
        let of =
            |task: &Path, file: &str| std::fs::read_to_string(task.join(file)).unwrap_or_default();
        let is_thread = |task: &PathBuf| of(task, "comm").trim_end() == thread;
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let task = tasks.flatten().map(|entry| entry.path()).find(is_thread);
        let task = task.unwrap_or_else(|| panic!("no thread {thread}"));
        // "running", or the number of the system call it is in, and its arguments.
        of(&task, "syscall").split(' ').next() == Some(FUTEX)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Asks it to stop as the service manager does, and waits for its end.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.end_by(Signal::TERM)
    }

    /// Kills it as a crash would.
    #[track_caller]
    pub fn crash(&mut self) {
        self.end_by(Signal::KILL);
    }

    #[track_caller]
    pub fn end_by(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.await_end()
    }

    #[track_caller]
    pub fn await_end(&mut self) -> ExitStatus {
        self.await_until("the end of the service", |service| service.has_ended().then_some(()));
        self.child.wait().unwrap()
    }

    /// Waits until something is so; looks again whenever the service tells something.
    #[track_caller]
    pub fn await_until<T>(&mut self, what: &str, look: impl Fn(&Self) -> Option<T>) -> T {
        self.listen_until(TIMEOUT, look).unwrap_or_else(|| {
            panic!("no {what}; notices: {:?}; log:\n{}", self.notices, self.log.join("\n"))
        })
    }

    /// The lines logged so far, for [`Self::await_until`].
    pub fn log(&self) -> &[String] {
        &self.log
    }

    fn listen_until<T>(
        &mut self,
        patience: Duration,
        look: impl Fn(&Self) -> Option<T>,
    ) -> Option<T> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(found) = look(self) {
                return Some(found);
            }
            // Nothing more will come.
            if self.has_ended() {
                return None;
            }
            let remaining = deadline.saturating_duration_since(Instant::now());
            let told = self.told.recv_timeout(remaining).ok()?;
            self.note(told);
        }
    }

    fn note(&mut self, told: Told) {
        match told {
            Told::Line(line) => self.log.push(line),
            Told::Notice(notice) => self.notices.push(notice),
            Told::LogEnded => {
                self.log_ended = true;
                // What it has told the service manager until then is on its way, and may be heard later.
                self.end_notices();
            }
            Told::NoticesEnded => self.notices_ended = true,
        }
    }

    /// Nothing more will come of it: neither a line nor a notification.
    fn has_ended(&self) -> bool {
        self.log_ended && self.notices_ended
    }

    /// Behind all that was told until now.
    fn end_notices(&self) {
        if let Ok(socket) = UnixDatagram::unbound() {
            let _ = socket.send_to(NO_MORE.as_bytes(), &self.socket_path);
        }
    }

    fn pid(&self) -> Pid {
        // ip-netns(8) and the wrappers execute the service in their own place.
        Pid::from_child(&self.child)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !self.log_ended {
            self.end_notices();
        }
    }
}

fn hear_notices(socket: &UnixDatagram, tell: &Sender<Told>) {
    let mut buffer = [0; 4096];
    while let Ok(length) = socket.recv(&mut buffer) {
        for notice in String::from_utf8_lossy(&buffer[..length]).lines() {
            if notice == NO_MORE {
                let _ = tell.send(Told::NoticesEnded);
                return;
            }
            let _ = tell.send(Told::Notice(notice.to_owned()));
        }
    }
}
