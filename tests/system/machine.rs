//! A Debian machine with a real systemd, booted by systemd-nspawn.
//!
//! A machine has a directory with its root file system, which survives reboots. Each boot has a
//! network namespace, a control group and a mount namespace. Dropping the machine removes all of
//! them; the next run removes what a killed run has left.

use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::journal::Journal;
use crate::namespace::Namespace;
use crate::tools::{Outcome, run};

/// How long a boot, a shutdown or a command may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Boots the machine. The machine always gets cgroup v2, even on a host with cgroup v1, because
/// trixie's systemd requires it. CAP_NET_ADMIN is for the firewall, and the system call bpf for
/// IPAddressDeny=.
const BOOT: &str = r#"
    name=$1 root=$2
    group=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)/$name
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mkdir -p "$group"
    echo $$ >"$group/cgroup.procs"
    mkdir -p /run/systemd/nspawn
    mount -t tmpfs tmpfs /run/systemd/nspawn
    exec setpriv --pdeathsig=KILL systemd-nspawn --quiet --boot --directory="$root" --machine="$name" \
        --network-namespace-path="/run/netns/$name" --register=no --keep-unit --notify-ready=yes \
        --capability=CAP_NET_ADMIN --system-call-filter=bpf \
        --resolv-conf=off --timezone=off --link-journal=no --console=pipe
"#;

/// Kills all processes in the machine's control group and removes the group.
const REMOVE_GROUP: &str = r#"
    group=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)/$1
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    [ -d "$group" ] || exit 0
    echo 1 >"$group/cgroup.kill"
    until grep -q '^populated 0' "$group/cgroup.events"; do :; done
    find "$group" -depth -type d -exec rmdir {} +
"#;

/// A machine, running or not.
pub struct Machine {
    /// Also the name of the network namespace and of the control group.
    name: String,
    directory: PathBuf,
    running: Option<Running>,
}

struct Running {
    nspawn: Child,
    /// The machine's first process, as the host sees it.
    leader: Pid,
    /// `None` during the shutdown.
    journal: Option<Journal>,
    network: Namespace,
}

impl Machine {
    /// Creates a machine that is switched off.
    pub fn new(name: String, archive: &Path) -> Self {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(&name);
        let machine = Self { name, directory, running: None };
        std::fs::create_dir_all(machine.root()).unwrap();
        let mut unpack = Command::new("tar");
        unpack.args(["--extract", "--numeric-owner", "--file"]).arg(archive);
        run(unpack.arg("--directory").arg(machine.root())).ok();
        // The archive contains the name of the host that made it.
        machine.write("/etc/hostname", "web1\n");
        machine
    }

    /// Prepares the network, boots the machine and waits until it has booted.
    pub fn boot(&mut self, prepare: impl FnOnce(&Namespace)) {
        assert!(self.running.is_none(), "the machine is already running");
        let network = Namespace::new(self.name.clone());
        prepare(&network);
        let socket_path = self.directory.join("notify");
        let _ = std::fs::remove_file(&socket_path);
        let socket = UnixDatagram::bind(&socket_path).unwrap();
        let console = std::fs::File::create(self.console()).unwrap();
        let mut nspawn = in_mount_namespace(BOOT);
        let mut nspawn = nspawn
            .arg(&self.name)
            .arg(self.root())
            .env("NOTIFY_SOCKET", &socket_path)
            // Ctrl-C must not reach the machine while the tests clean up.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(console.try_clone().unwrap())
            .stderr(console)
            .spawn()
            .unwrap();
        let Some(leader) = await_boot(&socket, &mut nspawn) else {
            let _ = nspawn.kill();
            let _ = nspawn.wait();
            let console = std::fs::read_to_string(self.console()).unwrap_or_default();
            panic!("this host cannot boot a machine with systemd-nspawn: {console}");
        };
        let journal = Some(Journal::follow(leader));
        self.running = Some(Running { nspawn, leader, journal, network });
    }

    /// Shuts the machine down cleanly.
    #[track_caller]
    pub fn shut_down(&mut self) {
        self.running.as_mut().expect("the machine is running").journal = None;
        // The signal of `systemctl poweroff`, see systemd(1). A command in the machine could delay
        // the shutdown.
        let leader = self.running().leader.as_raw_nonzero().to_string();
        run(Command::new("kill").args(["--signal", "RTMIN+4", &leader])).ok();
        self.await_end();
    }

    /// Ends the machine without a shutdown.
    #[track_caller]
    pub fn cut_power(&mut self) {
        kill_process(self.running().leader, Signal::KILL).unwrap();
        self.await_end();
    }

    #[track_caller]
    fn await_end(&mut self) {
        let mut running = self.running.take().expect("the machine is running");
        let ended = has_ended_within(&running.nspawn, PATIENCE);
        running.end();
        self.remove_group();
        assert!(ended, "the machine does not switch off: {}", self.console().display());
    }

    /// Runs a command line as root in the machine.
    #[track_caller]
    pub fn run(&self, line: &str) -> Outcome {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", &PATIENCE.as_secs().to_string()]);
        command.args(enter(self.running().leader));
        run(command.args(["sh", "-c", line]))
    }

    /// Runs a command line that must succeed and returns its output.
    #[track_caller]
    pub fn sh(&self, line: &str) -> String {
        self.run(line).ok()
    }

    pub fn network(&self) -> &Namespace {
        &self.running().network
    }

    pub fn journal(&mut self) -> &mut Journal {
        self.running
            .as_mut()
            .and_then(|running| running.journal.as_mut())
            .expect("the machine is running")
    }

    /// The host's path of a file of the machine.
    pub fn path(&self, absolute: &str) -> PathBuf {
        self.root().join(absolute.trim_start_matches('/'))
    }

    #[track_caller]
    pub fn write(&self, file: &str, text: &str) {
        let path = self.path(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn running(&self) -> &Running {
        self.running.as_ref().expect("the machine is running")
    }

    fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    fn console(&self) -> PathBuf {
        self.directory.join("console")
    }

    fn remove_group(&self) {
        let _ = in_mount_namespace(REMOVE_GROUP).arg(&self.name).output();
    }
}

impl Running {
    /// Ends nspawn.
    fn end(&mut self) {
        let _ = self.nspawn.kill();
        let _ = self.nspawn.wait();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(mut running) = self.running.take() {
            let _ = kill_process(running.leader, Signal::KILL);
            has_ended_within(&running.nspawn, PATIENCE);
            running.end();
        }
        self.remove_group();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Removes the remains of a killed run.
pub fn remove(name: &str) {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    drop(Machine { name: name.to_owned(), directory, running: None });
    crate::namespace::remove(name);
}

/// A shell in a private mount namespace.
fn in_mount_namespace(script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-euc", script, "sh"]);
    command
}

/// The command that enters a machine by its first process, with a clean environment.
pub fn enter(leader: Pid) -> Vec<String> {
    let leader = leader.as_raw_nonzero().to_string();
    let words = [
        "nsenter",
        "--all",
        "--target",
        &leader,
        "env",
        "--ignore-environment",
        "--chdir=/root",
        "HOME=/root",
        "LANG=C.UTF-8",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ];
    words.map(str::to_owned).to_vec()
}

/// Waits for nspawn's notification that the machine has booted. Returns its first process, or
/// `None` if the boot failed.
fn await_boot(socket: &UnixDatagram, nspawn: &mut Child) -> Option<Pid> {
    let begun = Instant::now();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let (mut leader, mut buffer) = (None, [0; 4096]);
    while begun.elapsed() < PATIENCE && nspawn.try_wait().unwrap().is_none() {
        let Ok(length) = socket.recv(&mut buffer) else { continue };
        for line in String::from_utf8_lossy(&buffer[..length]).lines() {
            if let Some(pid) = line.strip_prefix("X_NSPAWN_LEADER_PID=") {
                leader = Pid::from_raw(pid.parse().unwrap());
            } else if line == "READY=1" {
                return leader;
            }
        }
    }
    None
}

fn has_ended_within(child: &Child, patience: Duration) -> bool {
    let Ok(process) = pidfd_open(Pid::from_child(child), PidfdFlags::empty()) else { return true };
    let patience = Timespec::try_from(patience).unwrap();
    poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&patience)).is_ok_and(|ended| ended == 1)
}
