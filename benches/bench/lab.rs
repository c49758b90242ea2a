//! Two network namespaces and a veth between them; traffic never leaves them.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use tempfile::TempDir;

use crate::TCPTRACKER;

/// The namespaces; dropping it removes them.
pub(crate) struct Lab {
    attacker: String,
    victim: String,
    /// The state directory of the service.
    state: TempDir,
}

/// The unit's `Nice=`.
const NICE: &str = "-10";

impl Lab {
    pub(crate) fn new() -> Self {
        let id = std::process::id();
        let (attacker, victim) = (format!("ttb-{id}-a"), format!("ttb-{id}-v"));
        let lab = Self { attacker, victim, state: TempDir::new().unwrap() };
        let (a, v) = (&lab.attacker, &lab.victim);
        for command in [
            format!("netns add {a}"),
            format!("netns add {v}"),
            format!("link add ve0 netns {a} type veth peer name eth0 netns {v}"),
            format!("-n {a} link set ve0 address 02:00:00:00:00:01 up"),
            format!("-n {v} link set eth0 address 02:00:00:00:00:02 up"),
            format!("-n {v} link set lo up"),
            format!("-n {v} addr add 10.78.0.2/16 dev eth0"),
            format!("-n {a} addr add 10.78.0.1/16 dev ve0"),
        ] {
            assert!(Command::new("ip").args(command.split(' ')).status().unwrap().success());
        }
        lab
    }

    /// Lets the victim answer a source without asking for its hardware address first.
    pub(crate) fn neighbour(&self, source: &str) {
        let victim = &self.victim;
        let command =
            format!("-n {victim} neigh replace {source} lladdr 02:00:00:00:00:01 dev eth0");
        assert!(Command::new("ip").args(command.split(' ')).status().unwrap().success());
    }

    fn command(namespace: &str, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace, program]).args(arguments);
        command
    }

    /// Returns the command that runs a program on the victim.
    pub(crate) fn on_victim(&self, program: &str, arguments: &[&str]) -> Command {
        Self::command(&self.victim, program, arguments)
    }

    /// The directory of the service's database.
    pub(crate) fn state(&self) -> &Path {
        self.state.path()
    }

    /// Runs a part of this benchmark on the attacker and returns its output.
    pub(crate) fn attack(&self, arguments: &[&str]) -> String {
        output(&mut Self::command(&self.attacker, &own_binary(), arguments))
    }

    /// Runs a program on the attacker and returns its output.
    pub(crate) fn attack_with(&self, program: &str, arguments: &[&str]) -> String {
        output(&mut Self::command(&self.attacker, program, arguments))
    }

    /// Gives the attacker an address, from which it sends from now on.
    pub(crate) fn add_attacker(&self, source: &str) {
        let attacker = &self.attacker;
        for command in [
            format!("-n {attacker} addr add {source}/32 dev ve0"),
            format!("-n {attacker} route replace 10.78.0.2/32 dev ve0 src {source}"),
            format!("-n {attacker} neigh replace 10.78.0.2 lladdr 02:00:00:00:00:02 dev ve0"),
        ] {
            assert!(Command::new("ip").args(command.split(' ')).status().unwrap().success());
        }
        self.neighbour(source);
    }

    /// Runs many commands of ip(8) on the victim.
    pub(crate) fn batch(&self, commands: impl Iterator<Item = String>) {
        let mut command = Command::new("ip");
        command.args(["-n", &self.victim, "-batch", "-"]);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let mut input = std::io::BufWriter::new(child.stdin.take().unwrap());
        for command in commands {
            writeln!(input, "{command}").unwrap();
        }
        drop(input);
        assert!(child.wait().unwrap().success());
    }

    /// Adds a route or removes it again.
    pub(crate) fn change_route(&self, number: u32) {
        let (verb, last) = (if number.is_multiple_of(2) { "add" } else { "del" }, number / 2 % 256);
        self.batch(std::iter::once(format!("route {verb} 198.51.100.{last} via 10.78.0.1")));
    }

    /// Runs a part of this benchmark on the victim and returns its output.
    pub(crate) fn defend(&self, arguments: &[&str]) -> String {
        output(&mut Self::command(&self.victim, &own_binary(), arguments))
    }

    /// Packets that the victim's first rule in INPUT has counted.
    pub(crate) fn seen_by_input(&self) -> u64 {
        let arguments = ["-nvxL", "INPUT", "1"];
        let listed = output(&mut Self::command(&self.victim, "iptables", &arguments));
        listed.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Starts a packet counter on the attacker or the victim.
    pub(crate) fn count(&self, by_attacker: bool, filter: &str) -> Counter {
        let (namespace, interface) =
            if by_attacker { (&self.attacker, "ve0") } else { (&self.victim, "eth0") };
        Self::capture(namespace, &["count", interface, filter])
    }

    /// Starts to record the TCP segments that the victim receives and sends.
    pub(crate) fn record(&self, filter: &str) -> Counter {
        Self::capture(&self.victim, &["record", "eth0", filter])
    }

    fn capture(namespace: &str, arguments: &[&str]) -> Counter {
        let mut command = Self::command(namespace, &own_binary(), arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        output.read_line(&mut String::new()).unwrap();
        Counter { child, output }
    }

    /// Starts the service with the preset `classic` and waits until it captures.
    pub(crate) fn serve(&self) -> Service {
        self.serve_with("classic")
    }

    /// Starts the service with a preset and waits until it captures.
    pub(crate) fn serve_with(&self, preset: &str) -> Service {
        self.serve_as(preset, &[])
    }

    /// Starts the service with a preset and more arguments.
    pub(crate) fn serve_as(&self, preset: &str, arguments: &[&str]) -> Service {
        let environment = [
            ("TCPTRACKER_BUS__ENABLED", "false"),
            ("TCPTRACKER_LOG__CONNECTIONS", "false"),
            ("TCPTRACKER_DETECTION__PRESET", preset),
        ];
        self.begin(&environment, arguments)
    }

    /// Starts the service with its defaults on a bus.
    pub(crate) fn serve_on(&self, bus: &Bus) -> Service {
        self.begin(&[("DBUS_SYSTEM_BUS_ADDRESS", &bus.address)], &[])
    }

    fn begin(&self, environment: &[(&str, &str)], arguments: &[&str]) -> Service {
        // The unit sets the same priority. For ablations another program, or another way to start it.
        let program = std::env::var("BENCH_PROGRAM").unwrap_or_else(|_| TCPTRACKER.to_owned());
        let prefix = std::env::var("BENCH_PREFIX").unwrap_or_else(|_| format!("nice -n {NICE}"));
        let mut words: Vec<&str> = prefix.split(' ').collect();
        words.extend([&*program, "run", "-i", "eth0"]);
        words.extend(arguments);
        let mut child = Self::command(&self.victim, words[0], &words[1..])
            .env("STATE_DIRECTORY", self.state.path())
            .envs(environment.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("watching eth0") {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "the service did not start");
        }
        // Without a reader the pipe would fill and block the journal thread.
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Service { child, lines, victim: self.victim.clone() }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for namespace in [&self.attacker, &self.victim] {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
    }
}

/// A bus without access restrictions.
pub(crate) struct Bus {
    daemon: Child,
    address: String,
    _directory: TempDir,
}

impl Bus {
    pub(crate) fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let file = directory.path().join("bus.conf");
        let socket = directory.path().join("bus");
        let configuration = format!(
            r#"<busconfig><listen>unix:path={}</listen><auth>EXTERNAL</auth><policy context="default">
                <allow user="*"/><allow own="*"/>
                <allow send_destination="*"/><allow receive_sender="*"/>
            </policy></busconfig>"#,
            socket.display()
        );
        std::fs::write(&file, configuration).unwrap();
        let mut daemon = Command::new("dbus-daemon")
            .args(["--nofork", "--print-address"])
            .arg(format!("--config-file={}", file.display()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut address = String::new();
        BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut address).unwrap();
        Self { daemon, address: address.trim().to_owned(), _directory: directory }
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// A running packet counter.
pub(crate) struct Counter {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Counter {
    /// Processor time used so far, in nanoseconds.
    pub(crate) fn cpu(&self) -> f64 {
        cpu(self.child.id())
    }

    /// Stops the counter and returns the count.
    pub(crate) fn end(self) -> f64 {
        self.lines()[0].parse().unwrap()
    }

    /// Stops the recorder and returns what it has recorded.
    pub(crate) fn lines(mut self) -> Vec<String> {
        drop(self.child.stdin.take());
        let mut text = String::new();
        self.output.read_to_string(&mut text).unwrap();
        self.child.wait().unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

/// The running service.
pub(crate) struct Service {
    child: Child,
    lines: Receiver<String>,
    victim: String,
}

impl Service {
    /// Waits until the service logs these words.
    pub(crate) fn await_line(&self, words: &str) {
        assert!(
            self.lines.iter().any(|line| line.contains(words)),
            "the service never logged {words:?}"
        );
    }

    /// Processor time used so far, in nanoseconds.
    pub(crate) fn cpu(&self) -> f64 {
        cpu(self.child.id())
    }

    /// How often its threads have waited for something.
    pub(crate) fn wakeups(&self) -> f64 {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let count = |thread: std::io::Result<std::fs::DirEntry>| {
            let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
            let line = status.lines().find(|line| line.starts_with("voluntary_ctxt")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap()
        };
        threads.map(count).sum()
    }

    /// Resident memory, in MiB.
    pub(crate) fn resident(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    }

    /// The value of a metric, given by its name with its labels.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let arguments = ["netns", "exec", &self.victim, "curl", "-s", "127.0.0.1:8081/metrics"];
        let output = Command::new("ip").args(arguments).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no metric {name}")).parse().unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

/// User and system time of a process in nanoseconds: fields 14 and 15 of proc_pid_stat(5), in ticks
/// of a hundredth of a second.
fn cpu(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let after_name = stat.rsplit(')').next().unwrap();
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks: f64 = fields[11..13].iter().map(|field| field.parse::<f64>().unwrap()).sum();
    ticks * 1e7
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn own_binary() -> String {
    std::env::current_exe().unwrap().to_str().unwrap().to_owned()
}
