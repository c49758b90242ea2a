//! A running service: starts it as a service manager does, and collects its log and notifications.

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
use crate::tools::{TIMEOUT, run};

/// The number of the futex system call, as `/proc` shows it.
const FUTEX: &str = if cfg!(target_arch = "x86_64") { "202" } else { "98" };

/// Ends the thread that reads notifications.
const END_OF_NOTIFICATIONS: &str = "NO_MORE=1";

/// The command line and the environment of the service.
#[derive(Clone, Default)]
pub struct Start {
    interface: String,
    flags: Vec<String>,
    environment: Vec<(String, String)>,
    /// A command prefix that executes the service.
    wrapper: Vec<String>,
    binary: Option<PathBuf>,
    unread_log: bool,
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

    /// Leaves the log unread until [`Service::read_log`].
    pub fn with_unread_log(mut self) -> Self {
        self.unread_log = true;
        self
    }

    /// Starts the service on a terminal, as a user does.
    pub fn on_terminal(mut self) -> Self {
        self.on_terminal = true;
        self
    }

    /// Returns the command, in the victim's namespace, with the lab's bus and configuration file.
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
        // Ctrl-C on the test run's terminal must not stop the service before the tests clean up.
        command.process_group(0);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts the service without waiting for it.
    pub fn begin(&self, lab: &Lab) -> Service {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let socket_path = lab.path(&format!("notify-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        let socket = UnixDatagram::bind(&socket_path).unwrap();
        // The service may run as any user.
        std::fs::set_permissions(&socket_path, Permissions::from_mode(0o777)).unwrap();
        let (sender, output) = channel();
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
            sender: sender.clone(),
            output,
            unread_stderr: None,
            log: Vec::new(),
            notifications: Vec::new(),
            log_ended: false,
            notifications_ended: false,
            _terminal: terminal,
        };
        std::thread::spawn(move || read_notifications(&socket, &sender));
        service.unread_stderr = Some(stderr);
        if !self.unread_log {
            service.read_log();
        }
        service
    }
}

/// Output of the service, received by a reader thread.
enum Output {
    LogLine(String),
    LogEnded,
    Notification(String),
    NotificationsEnded,
}

/// A running service. Killed on drop.
pub struct Service {
    child: Child,
    socket_path: PathBuf,
    sender: Sender<Output>,
    output: Receiver<Output>,
    unread_stderr: Option<ChildStderr>,
    /// The lines logged so far.
    log: Vec<String>,
    /// The notifications received so far.
    notifications: Vec<String>,
    log_ended: bool,
    notifications_ended: bool,
    /// Keeps the terminal open while the service runs.
    _terminal: Option<Terminal>,
}

/// A pseudo-terminal that discards its output.
struct Terminal(OwnedFd);

impl Terminal {
    fn new() -> Self {
        let terminal =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        Self(terminal)
    }

    /// Returns the standard input of a program on this terminal.
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

    /// Starts to read the log.
    pub fn read_log(&mut self) {
        let Some(stderr) = self.unread_stderr.take() else { return };
        let sender = self.sender.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let _ = sender.send(Output::LogLine(line));
            }
            let _ = sender.send(Output::LogEnded);
        });
    }

    /// Waits for a log line that contains these words.
    #[track_caller]
    pub fn await_line(&mut self, words: &str) -> String {
        self.await_until(&format!("a line with {words:?}"), |service| {
            service.log.iter().find(|line| line.contains(words)).cloned()
        })
    }

    /// Waits longer than usual for a log line that contains these words.
    #[track_caller]
    pub fn await_line_within(&mut self, timeout: Duration, words: &str) -> String {
        let look = |service: &Self| service.log.iter().find(|line| line.contains(words)).cloned();
        self.listen_until(timeout, look).unwrap_or_else(|| panic!("no line with {words:?}"))
    }

    /// Waits for `count` log lines that contain these words.
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

    /// Waits for `count` notifications with this prefix and returns all of them.
    #[track_caller]
    pub fn await_notifications(&mut self, prefix: &str, count: usize) -> Vec<String> {
        self.await_until(&format!("{count} times {prefix:?}"), |service| {
            let found = service
                .notifications
                .iter()
                .filter(|notification| notification.starts_with(prefix));
            let found: Vec<String> = found.cloned().collect();
            (found.len() >= count).then_some(found)
        })
    }

    /// Returns the lines logged so far that contain these words.
    pub fn lines_with(&mut self, words: &str) -> Vec<String> {
        while let Ok(output) = self.output.try_recv() {
            self.record(output);
        }
        self.log.iter().filter(|line| line.contains(words)).cloned().collect()
    }

    /// Discards the lines logged so far, so that later waits match only new lines.
    pub fn clear_log(&mut self) {
        self.lines_with("");
        self.log.clear();
    }

    /// Returns the notifications received so far.
    pub fn notifications(&self) -> &[String] {
        &self.notifications
    }

    /// Returns the resident memory of the service.
    #[track_caller]
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let kibibytes: u64 = resident.trim().strip_suffix(" kB").unwrap().parse().unwrap();
        kibibytes * 1024
    }

    /// Takes all descriptors from the service that it does not use.
    pub fn take_free_descriptors(&self) {
        let directory = format!("/proc/{}/fd", self.child.id());
        let limit = (0..1024).find(|fd| !Path::new(&directory).join(fd.to_string()).is_symlink());
        let pid = self.child.id().to_string();
        let limit = format!("--nofile={}", limit.unwrap_or(0));
        run(Command::new("prlimit").args(["--pid", &pid, &limit])).ok();
    }

    /// Returns the name and the scheduling policy of each thread: field 41 of proc_pid_stat(5).
    pub fn policies(&self) -> Vec<(String, String)> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let stats = tasks.flatten().map(|entry| std::fs::read_to_string(entry.path().join("stat")));
        let policy = |stat: String| {
            let (name, fields) = stat.split_once('(')?.1.rsplit_once(')')?;
            Some((name.to_owned(), fields.split_whitespace().nth(38)?.to_owned()))
        };
        stats.flatten().filter_map(policy).collect()
    }

    /// Returns whether a thread of the service waits for another thread, that is, neither computes
    /// nor waits for the kernel or for another program.
    pub fn is_idle(&self, thread: &str) -> bool {
        let of =
            |task: &Path, file: &str| std::fs::read_to_string(task.join(file)).unwrap_or_default();
        let is_thread = |task: &PathBuf| of(task, "comm").trim_end() == thread;
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let task = tasks.flatten().map(|entry| entry.path()).find(is_thread);
        let task = task.unwrap_or_else(|| panic!("no thread {thread}"));
        // The file contains "running", or the number and the arguments of a system call.
        of(&task, "syscall").split(' ').next() == Some(FUTEX)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Stops the service as the service manager does, and waits for its exit.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.end_by(Signal::TERM)
    }

    /// Kills the service, to simulate a crash.
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

    /// Returns the status of a service that ends within `span`, whether its log is read or not.
    pub fn exits_within(&mut self, span: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + span;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }

    /// Waits until `look` returns a value. Calls `look` after each log line and notification.
    #[track_caller]
    pub fn await_until<T>(&mut self, what: &str, look: impl Fn(&Self) -> Option<T>) -> T {
        self.listen_until(TIMEOUT, look).unwrap_or_else(|| {
            panic!(
                "no {what}; notifications: {:?}; log:\n{}",
                self.notifications,
                self.log.join("\n")
            )
        })
    }

    /// Returns the lines logged so far, for [`Self::await_until`].
    pub fn log(&self) -> &[String] {
        &self.log
    }

    fn listen_until<T>(
        &mut self,
        timeout: Duration,
        look: impl Fn(&Self) -> Option<T>,
    ) -> Option<T> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(found) = look(self) {
                return Some(found);
            }
            // No further output is possible.
            if self.has_ended() {
                return None;
            }
            let remaining = deadline.saturating_duration_since(Instant::now());
            let output = self.output.recv_timeout(remaining).ok()?;
            self.record(output);
        }
    }

    fn record(&mut self, output: Output) {
        match output {
            Output::LogLine(line) => self.log.push(line),
            Output::Notification(notification) => self.notifications.push(notification),
            Output::LogEnded => {
                self.log_ended = true;
                // Notifications sent earlier may still be in the socket buffer.
                self.end_notifications();
            }
            Output::NotificationsEnded => self.notifications_ended = true,
        }
    }

    /// Returns whether all log lines and notifications were received after the exit.
    fn has_ended(&self) -> bool {
        self.log_ended && self.notifications_ended
    }

    /// Queues an end marker after all notifications sent so far.
    fn end_notifications(&self) {
        if let Ok(socket) = UnixDatagram::unbound() {
            let _ = socket.send_to(END_OF_NOTIFICATIONS.as_bytes(), &self.socket_path);
        }
    }

    fn pid(&self) -> Pid {
        // ip-netns(8) and the wrappers replace themselves with the service, so the pid stays the
        // same.
        Pid::from_child(&self.child)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !self.log_ended {
            self.end_notifications();
        }
    }
}

fn read_notifications(socket: &UnixDatagram, sender: &Sender<Output>) {
    let mut buffer = [0; 4096];
    while let Ok(length) = socket.recv(&mut buffer) {
        for notification in String::from_utf8_lossy(&buffer[..length]).lines() {
            if notification == END_OF_NOTIFICATIONS {
                let _ = sender.send(Output::NotificationsEnded);
                return;
            }
            let _ = sender.send(Output::Notification(notification.to_owned()));
        }
    }
}
