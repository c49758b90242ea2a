//! A Debian machine with a real systemd, booted by systemd-nspawn.
//!
//! What it consists of: a directory with its root, which outlives its boots; and for each boot a network
//! namespace, a control group, and a mount namespace for what is mounted. All of it is gone when it is
//! dropped, or else at the next run.

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

/// Boots the machine. On a host whose control groups are those of old, the machine gets the present kind
/// all the same: trixie's systemd takes no other. Allowed besides what nspawn allows: to change the firewall
/// of its network, and to make the kernel filter an IPAddressDeny=.
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

/// Removes its control group, once all in it have ended.
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
    /// Of its network namespace and its control group as well.
    name: String,
    directory: PathBuf,
    running: Option<Running>,
}

struct Running {
    nspawn: Child,
    /// The machine's first process, as the host sees it.
    leader: Pid,
    /// Not while it shuts down.
    journal: Option<Journal>,
    network: Namespace,
}

impl Machine {
    /// A new machine, switched off.
    pub fn new(name: String, archive: &Path) -> Self {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(&name);
        let machine = Self { name, directory, running: None };
        std::fs::create_dir_all(machine.root()).unwrap();
        let mut unpack = Command::new("tar");
        unpack.args(["--extract", "--numeric-owner", "--file"]).arg(archive);
        run(unpack.arg("--directory").arg(machine.root())).ok();
        // Not that of the host on which the archive was made.
        machine.write("/etc/hostname", "web1\n");
        machine
    }

    /// Switches it on, once its network is as it is to find it, and waits until it has booted.
    pub fn boot(&mut self, prepare: impl FnOnce(&Namespace)) {
        assert!(self.running.is_none(), "it runs already");
        let network = Namespace::new(self.name.clone());
        prepare(&network);
        let socket_path = self.directory.join("notify");
        let _ = std::fs::remove_file(&socket_path);
        let socket = UnixDatagram::bind(&socket_path).unwrap();
        let console = std::fs::File::create(self.console()).unwrap();
        let mut nspawn = with_mounts_of_its_own(BOOT);
        let mut nspawn = nspawn
            .arg(&self.name)
            .arg(self.root())
            .env("NOTIFY_SOCKET", &socket_path)
            // A terminal's Ctrl-C must not reach it while the tests clean up.
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

    /// Shuts it down in order.
    #[track_caller]
    pub fn shut_down(&mut self) {
        self.running.as_mut().expect("it runs").journal = None;
        // As `systemctl poweroff` does, see systemd(1): a process of this host's might be in the way.
        let leader = self.running().leader.as_raw_nonzero().to_string();
        run(Command::new("kill").args(["--signal", "RTMIN+4", &leader])).ok();
        self.await_end();
    }

    /// Pulls the plug.
    #[track_caller]
    pub fn cut_power(&mut self) {
        kill_process(self.running().leader, Signal::KILL).unwrap();
        self.await_end();
    }

    #[track_caller]
    fn await_end(&mut self) {
        let mut running = self.running.take().expect("it runs");
        let ended = has_ended_within(&running.nspawn, PATIENCE);
        running.end();
        self.remove_group();
        assert!(ended, "it does not switch off: {}", self.console().display());
    }

    /// What root types at the console.
    #[track_caller]
    pub fn run(&self, line: &str) -> Outcome {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", &PATIENCE.as_secs().to_string()]);
        command.args(enter(self.running().leader));
        run(command.args(["sh", "-c", line]))
    }

    /// The same, which has to succeed; what it prints.
    #[track_caller]
    pub fn sh(&self, line: &str) -> String {
        self.run(line).ok()
    }

    pub fn network(&self) -> &Namespace {
        &self.running().network
    }

    pub fn journal(&mut self) -> &mut Journal {
        self.running.as_mut().and_then(|running| running.journal.as_mut()).expect("it runs")
    }

    /// A file of the machine's, as the host sees it.
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
        self.running.as_ref().expect("it runs")
    }

    fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    fn console(&self) -> PathBuf {
        self.directory.join("console")
    }

    fn remove_group(&self) {
        let _ = with_mounts_of_its_own(REMOVE_GROUP).arg(&self.name).output();
    }
}

impl Running {
    /// Ends what is left of it.
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

/// Removes what a run has left that was killed.
pub fn remove(name: &str) {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    drop(Machine { name: name.to_owned(), directory, running: None });
    crate::namespace::remove(name);
}

/// A shell whose mounts nobody else sees, and that are gone when the last process in it is.
fn with_mounts_of_its_own(script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-euc", script, "sh"]);
    command
}

/// Enters a machine, by its first process. Nothing of the tests' environment is taken along.
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

/// Hears what nspawn tells until the machine has booted: its first process, unless it has failed.
fn await_boot(socket: &UnixDatagram, nspawn: &mut Child) -> Option<Pid> {
    let begun = Instant::now();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let (mut leader, mut buffer) = (None, [0; 4096]);
    while begun.elapsed() < PATIENCE && nspawn.try_wait().unwrap().is_none() {
        let Ok(length) = socket.recv(&mut buffer) else { continue };
        for told in String::from_utf8_lossy(&buffer[..length]).lines() {
            if let Some(pid) = told.strip_prefix("X_NSPAWN_LEADER_PID=") {
                leader = Pid::from_raw(pid.parse().unwrap());
            } else if told == "READY=1" {
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
