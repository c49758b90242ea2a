//! The lab: a victim, an attacker and a bystander on one switch, and a bus.
//!
//! ```text
//!   attacker .1 ──┐
//!                 ├── switch ── eth0 .2 victim     10.77.0.0/24, fd77::/64
//!   bystander .3 ─┘
//! ```

use std::fs::Permissions;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::Mode;
use tempfile::TempDir;

use crate::bus::{Bus, Kind};
use crate::kernel::Rules;
use crate::namespace::{self, Namespace};
use crate::service::{Service, Start};
use crate::tools::{Outcome, await_that, install_copy, require_prerequisites, run};
use crate::users::{EtcOverlay, overlay_directory, remove_overlay};

pub const BINARY: &str = env!("CARGO_BIN_EXE_tcptracker");

/// A port on which the victim listens.
pub const OPEN_PORT: u16 = 7000;

pub const ATTACKER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1));
pub const VICTIM: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2));
pub const ATTACKER_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1));
pub const VICTIM_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2));
/// On the second link, see [`Lab::second_link`].
pub const ATTACKER_ON_ETH1: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 78, 0, 1));
pub const VICTIM_ON_ETH1: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 78, 0, 2));

/// A lab. Removed on drop, also when the test fails.
pub struct Lab {
    // Drop order matters: the bus before the namespaces, the namespaces before the directory.
    pub bus: Bus,
    pub victim: Namespace,
    pub attacker: Namespace,
    pub bystander: Namespace,
    switch: Namespace,
    _overlay: Option<EtcOverlay>,
    _listener: TcpListener,
    /// The firewall before the service starts.
    pub rules_before: Rules,
    directory: TempDir,
}

impl Lab {
    pub fn new() -> Self {
        Self::make(Kind::Daemon, |_| None)
    }

    /// Creates a lab with private users, see `users.rs`.
    pub fn with_users() -> Self {
        Self::make(Kind::Daemon, |victim| Some(EtcOverlay::create(victim)))
    }

    /// Creates a lab with private users and dbus-broker.
    pub fn on_broker() -> Self {
        Self::make(Kind::Broker, |victim| Some(EtcOverlay::create(victim)))
    }

    /// Starts a new bus after the old one was killed.
    pub fn restart_bus(&mut self) {
        let _ = std::fs::remove_file(self.path("bus"));
        self.bus = Bus::start(self.directory.path(), &self.victim);
    }

    /// Blocks an address over the bus until it is unblocked.
    #[track_caller]
    pub fn block_over_bus(&self, address: &str) {
        self.bus.call("eth0", &["Block", "sts", address, "0", "one of many"]).ok();
    }

    fn make(kind: Kind, overlay: impl FnOnce(&Namespace) -> Option<EtcOverlay>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        static CLEAN: Once = Once::new();
        require_prerequisites();
        CLEAN.call_once(|| {
            remove_leftovers_of_killed_runs();
            // Unprivileged users must be able to read the files, whatever the caller's umask is.
            rustix::process::umask(Mode::WGRP | Mode::WOTH);
        });
        let prefix = format!("tt-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = tempfile::Builder::new().prefix(&format!("{prefix}-")).tempdir().unwrap();
        // Unprivileged users need access to the bus socket.
        std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();

        let host = |role: &str| Namespace::new(format!("{prefix}-{role}"));
        let switch = host("switch");
        switch.ip("link add br0 type bridge mcast_snooping 0");
        switch.ip("link set br0 up");
        let [attacker, victim, bystander] =
            [("attacker", 1), ("victim", 2), ("bystander", 3)].map(|(role, number)| {
                let host = host(role);
                connect(&switch, &host, number);
                host
            });
        let overlay = overlay(&victim);
        // The service must preserve rules that the owner set up.
        for program in ["iptables", "ip6tables"] {
            let own_rule = ["-A", "INPUT", "-p", "udp", "--dport", "9", "-j", "ACCEPT"];
            run(victim.command(program).args(own_rule)).ok();
            run(victim.command(program).args(["-P", "FORWARD", "DROP"])).ok();
        }
        std::fs::write(directory.path().join("tcptracker.toml"), "").unwrap();
        Self {
            bus: Bus::start_as(kind, directory.path(), &victim),
            rules_before: Rules::of(&victim),
            _overlay: overlay,
            _listener: victim.listen(OPEN_PORT),
            victim,
            attacker,
            bystander,
            switch,
            directory,
        }
    }

    /// Reconnects the victim's `eth0` after it was deleted.
    pub fn reattach_eth0(&self) {
        connect(&self.switch, &self.victim, 2);
    }

    /// Adds a second link, `eth1`, between victim and attacker.
    pub fn second_link(&self) {
        self.link(1);
    }

    /// Adds link `eth<number>` between victim and attacker: 10.78.0.0/24 and fd78::/64 for `eth1`,
    /// and so on.
    pub fn link(&self, number: u8) {
        let (name, net) = (format!("eth{number}"), 77 + number);
        add_veth(&self.attacker, &name, &self.victim, &name, net, 2);
        self.attacker.ip(&format!("addr add 10.{net}.0.1/24 dev {name}"));
    }

    /// Adds a host behind the victim's `eth1`, with address `.3`. The victim forwards packets to
    /// it.
    pub fn add_forwarded_host(&self) -> Namespace {
        let behind = Namespace::new(self.victim.name().replace("victim", "behind"));
        add_veth(&behind, "eth0", &self.victim, "eth1", 78, 2);
        behind.ip("addr add 10.78.0.3/24 dev eth0");
        behind.ip("addr add fd78::3/64 dev eth0 nodad");
        behind.ip("route add default via 10.78.0.2");
        behind.ip("route add default via fd78::2");
        for host in [&self.attacker, &self.bystander] {
            host.ip("route add 10.78.0.0/24 via 10.77.0.2");
            host.ip("route add fd78::/64 via fd77::2");
        }
        self.enable_forwarding();
        behind
    }

    /// Enables IP forwarding on the victim.
    pub fn enable_forwarding(&self) {
        self.victim.inside(|| {
            for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                std::fs::write(Path::new("/proc/sys/net").join(setting), "1").unwrap();
            }
        });
    }

    /// Returns the path of a file in the lab's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Returns the state directory of the instance on an interface.
    pub fn state_directory(&self, interface: &str) -> PathBuf {
        self.path("state").join(interface)
    }

    /// Creates the state directory of the instance on `eth0` and changes its owner.
    pub fn chown_state(&self, user: u32) {
        let directory = self.state_directory("eth0");
        std::fs::create_dir_all(&directory).unwrap();
        std::os::unix::fs::chown(&directory, Some(user), Some(user)).unwrap();
    }

    /// Writes the service's configuration file, which is empty by default.
    pub fn configure(&self, text: &str) -> PathBuf {
        let file = self.path("tcptracker.toml");
        std::fs::write(&file, text).unwrap();
        file
    }

    /// Starts the service on `eth0` and waits until it is ready.
    pub fn start(&self) -> Service {
        Start::on("eth0").begin(self).await_ready()
    }

    /// Adds a second link, and starts an instance on each link.
    pub fn start_on_two_links(&self) -> [Service; 2] {
        self.second_link();
        let second = Start::on("eth1").env("TCPTRACKER_METRICS__LISTEN", "127.0.0.1:8082");
        [self.start(), second.begin(self).await_ready()]
    }

    /// Runs the service on the victim until it exits.
    pub fn run_service(&self, start: &Start) -> Outcome {
        run(&mut start.command(self))
    }

    /// Returns a tcptracker command that runs on the victim and its bus.
    pub fn client(&self, words: &str) -> Command {
        let mut command = self.victim.command(BINARY);
        self.bus.environment(&mut command).args(words.split_whitespace());
        command
    }

    /// Returns a tcptracker command that runs on the victim as user nobody.
    pub fn client_as_nobody(&self, words: &str) -> Command {
        // Unprivileged users may have no access to the build directory.
        let binary = self.path("tcptracker");
        install_copy(&binary, BINARY);
        let mut command = self.victim.command("setpriv");
        command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]).arg(binary);
        self.bus.environment(&mut command).args(words.split_whitespace());
        command
    }

    /// Runs a tcptracker command until it exits.
    pub fn cli(&self, words: &str) -> Outcome {
        run(&mut self.client(words))
    }

    /// Returns the output of a command on a terminal with 80 columns, without colours.
    pub fn on_terminal(&self, words: &str) -> String {
        self.on_terminal_of(80, "NO_COLOR=1", words)
    }

    /// Returns the output of a command on a terminal of this width.
    pub fn on_terminal_of(&self, columns: u16, environment: &str, words: &str) -> String {
        let line = format!("TZ=UTC TERM=xterm {environment} {BINARY} {words}");
        run(&mut self.terminal(&format!("cols {columns} -onlcr"), &line)).ok()
    }

    /// Returns a command that runs a shell line on a terminal with these stty(1) settings.
    pub fn terminal(&self, stty: &str, line: &str) -> Command {
        // A background test run ignores SIGINT, and child processes inherit that.
        let mut command = self.victim.command("env");
        command.args(["--default-signal=INT,QUIT,HUP", "script"]);
        command.args(["-qec", &format!("stty {stty}; {line}"), "/dev/null"]);
        // script(1) runs $SHELL. Do not depend on the caller's shell.
        self.bus.environment(&mut command).env("SHELL", "/bin/sh");
        command
    }

    /// Returns the value of a metric. `name` includes the labels, as in the text format.
    #[track_caller]
    pub fn metric(&self, name: &str) -> u64 {
        let (code, text) = self.victim.http_get(8081, "/metrics");
        assert_eq!(code, 200, "{text}");
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no metric {name} in:\n{text}")).parse().unwrap()
    }

    /// Returns the victim's IPv4 rules, as iptables-save prints them.
    pub fn victim_rules(&self) -> String {
        run(self.victim.command("iptables-save").args(["-t", "filter"])).ok()
    }

    /// Asserts that the kernel's rules and sets equal those before the service started.
    #[track_caller]
    pub fn assert_untouched(&self) {
        assert_eq!(Rules::of(&self.victim), self.rules_before);
    }
}

/// Connects a host to the switch.
fn connect(switch: &Namespace, host: &Namespace, number: u8) {
    add_veth(switch, &format!("port{number}"), host, "eth0", 77, number);
    switch.ip(&format!("link set port{number} master br0"));
    // The switch drops frames until the port forwards.
    await_that("the switch forwards", || {
        let shown = switch.ip(&format!("-json -details link show port{number}"));
        let links: serde_json::Value = serde_json::from_str(&shown).unwrap();
        links[0]["linkinfo"]["info_slave_data"]["state"] == "forwarding"
    });
}

/// Connects two hosts with a veth pair.
fn add_veth(
    one: &Namespace,
    one_end: &str,
    other: &Namespace,
    other_end: &str,
    net: u8,
    number: u8,
) {
    let (one_name, name) = (one.name(), other.name());
    crate::tools::sh(&format!(
        "ip link add {one_end} netns {one_name} type veth peer name {other_end} netns {name}"
    ));
    other.ip(&format!("addr add 10.{net}.0.{number}/24 dev {other_end}"));
    // Skip duplicate address detection, which takes a second.
    other.ip(&format!("addr add fd{net}::{number}/64 dev {other_end} nodad"));
    one.ip(&format!("link set {one_end} up"));
    other.ip(&format!("link set {other_end} up"));
    // Even with nodad, the kernel activates an address asynchronously.
    await_that("the address is usable", || {
        !other.ip(&format!("-6 addr show dev {other_end} tentative")).contains(&format!("fd{net}"))
    });
}

/// Removes namespaces and files of test runs that were killed.
fn remove_leftovers_of_killed_runs() {
    let dead = |name: &str| {
        let pid = name.strip_prefix("tt-")?.split('-').next()?;
        pid.parse::<u32>().ok()?;
        (!Path::new("/proc").join(pid).exists()).then_some(())
    };
    for namespace in names_in(Path::new(namespace::DIRECTORY)) {
        if dead(&namespace).is_some() {
            namespace::remove(&namespace);
        }
    }
    for overlay in names_in(overlay_directory()) {
        if dead(&overlay).is_some() {
            remove_overlay(&overlay_directory().join(overlay));
        }
    }
    let temporary = std::env::temp_dir();
    for directory in names_in(&temporary) {
        if dead(&directory).is_some() {
            let directory = temporary.join(directory);
            crate::disk::unmount(&directory.join("state/eth0"));
            let _ = std::fs::remove_dir_all(directory);
        }
    }
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
