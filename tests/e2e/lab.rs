//! The laboratory: a victim, an attacker and a bystander on one switch, and a bus.
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
use crate::users::{View, remove_view, views};

pub const BINARY: &str = env!("CARGO_BIN_EXE_tcptracker");

/// Where somebody listens on the victim.
pub const OPEN_PORT: u16 = 7000;

pub const ATTACKER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1));
pub const VICTIM: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2));
pub const ATTACKER_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1));
pub const VICTIM_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2));
/// On the second link, see [`Lab::second_link`].
pub const ATTACKER_ON_ETH1: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 78, 0, 1));
pub const VICTIM_ON_ETH1: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 78, 0, 2));

/// A laboratory. Dropped, also by a test that fails, it is gone without a trace.
pub struct Lab {
    // In the order in which they must go.
    pub bus: Bus,
    pub victim: Namespace,
    pub attacker: Namespace,
    pub bystander: Namespace,
    switch: Namespace,
    _view: Option<View>,
    _listener: TcpListener,
    /// The firewall as its owner has set it up.
    pub rules_before: Rules,
    directory: TempDir,
}

impl Lab {
    pub fn new() -> Self {
        Self::make(Kind::Daemon, |_| None)
    }

    /// A laboratory with users of its own, see `users.rs`.
    pub fn with_users() -> Self {
        Self::make(Kind::Daemon, |victim| Some(View::make(victim)))
    }

    /// The same with the other bus.
    pub fn on_broker() -> Self {
        Self::make(Kind::Broker, |victim| Some(View::make(victim)))
    }

    /// Starts the bus anew that has died.
    pub fn restart_bus(&mut self) {
        let _ = std::fs::remove_file(self.path("bus"));
        self.bus = Bus::start(self.directory.path(), &self.victim);
    }

    /// Somebody blocks an address for good.
    #[track_caller]
    pub fn block_over_bus(&self, address: &str) {
        self.bus.call("eth0", &["Block", "sts", address, "0", "one of many"]).ok();
    }

    fn make(kind: Kind, view: impl FnOnce(&Namespace) -> Option<View>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        static CLEAN: Once = Once::new();
        require_prerequisites();
        CLEAN.call_once(|| {
            remove_leftovers_of_killed_runs();
            // Ordinary users read what is written here, whatever whoever runs the tests keeps from others.
            rustix::process::umask(Mode::WGRP | Mode::WOTH);
        });
        let prefix = format!("tt-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = tempfile::Builder::new().prefix(&format!("{prefix}-")).tempdir().unwrap();
        // Ordinary users reach the bus, too.
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
        let view = view(&victim);
        // What the owner has set up must be there afterwards as it was.
        for program in ["iptables", "ip6tables"] {
            let own_rule = ["-A", "INPUT", "-p", "udp", "--dport", "9", "-j", "ACCEPT"];
            run(victim.command(program).args(own_rule)).ok();
            run(victim.command(program).args(["-P", "FORWARD", "DROP"])).ok();
        }
        std::fs::write(directory.path().join("tcptracker.toml"), "").unwrap();
        Self {
            bus: Bus::start_as(kind, directory.path(), &victim),
            rules_before: Rules::of(&victim),
            _view: view,
            _listener: victim.listen(OPEN_PORT),
            victim,
            attacker,
            bystander,
            switch,
            directory,
        }
    }

    /// Gives the victim its `eth0` back after it was deleted.
    pub fn reattach_eth0(&self) {
        connect(&self.switch, &self.victim, 2);
    }

    /// A second interface, `eth1`, of victim and attacker.
    pub fn second_link(&self) {
        self.link(1);
    }

    /// One more interface of victim and attacker, `eth1` or another: 10.78.0.0/24, fd78::/64 and so on.
    pub fn link(&self, number: u8) {
        let (name, net) = (format!("eth{number}"), 77 + number);
        add_veth(&self.attacker, &name, &self.victim, &name, net, 2);
        self.attacker.ip(&format!("addr add 10.{net}.0.1/24 dev {name}"));
    }

    /// A host behind the victim, `.3` on the victim's `eth1`, which the others reach through it.
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

    /// Makes the victim a router.
    pub fn enable_forwarding(&self) {
        self.victim.inside(|| {
            for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                std::fs::write(Path::new("/proc/sys/net").join(setting), "1").unwrap();
            }
        });
    }

    /// A file's place in the laboratory's own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Where the instance on an interface keeps what it remembers.
    pub fn state_directory(&self, interface: &str) -> PathBuf {
        self.path("state").join(interface)
    }

    /// Lets a user keep what the service remembers.
    pub fn chown_state(&self, user: u32) {
        let directory = self.state_directory("eth0");
        std::fs::create_dir_all(&directory).unwrap();
        std::os::unix::fs::chown(&directory, Some(user), Some(user)).unwrap();
    }

    /// Writes the service's configuration file; empty without this.
    pub fn configure(&self, text: &str) -> PathBuf {
        let file = self.path("tcptracker.toml");
        std::fs::write(&file, text).unwrap();
        file
    }

    /// Starts the service on `eth0` and waits until it is ready.
    pub fn start(&self) -> Service {
        Start::on("eth0").begin(self).await_ready()
    }

    /// Adds a second link, and starts one instance on each.
    pub fn start_on_two_links(&self) -> [Service; 2] {
        self.second_link();
        let second = Start::on("eth1").env("TCPTRACKER_METRICS__LISTEN", "127.0.0.1:8082");
        [self.start(), second.begin(self).await_ready()]
    }

    /// The service's command line, in the victim, to be run to its end.
    pub fn run_service(&self, start: &Start) -> Outcome {
        run(&mut start.command(self))
    }

    /// A command of the command line, on the victim and its bus.
    pub fn client(&self, words: &str) -> Command {
        let mut command = self.victim.command(BINARY);
        self.bus.environment(&mut command).args(words.split_whitespace());
        command
    }

    /// The same by a user without privileges.
    pub fn client_as_nobody(&self, words: &str) -> Command {
        // Where the binary was built an ordinary user may have no access.
        let binary = self.path("tcptracker");
        install_copy(&binary, BINARY);
        let mut command = self.victim.command("setpriv");
        command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]).arg(binary);
        self.bus.environment(&mut command).args(words.split_whitespace());
        command
    }

    /// Runs a command of the command line to its end.
    pub fn cli(&self, words: &str) -> Outcome {
        run(&mut self.client(words))
    }

    /// What a command prints to a terminal of the usual width, without colours.
    pub fn on_terminal(&self, words: &str) -> String {
        self.on_terminal_of(80, "NO_COLOR=1", words)
    }

    /// What a command prints to a terminal so many columns wide.
    pub fn on_terminal_of(&self, columns: u16, environment: &str, words: &str) -> String {
        let line = format!("TZ=UTC TERM=xterm {environment} {BINARY} {words}");
        run(&mut self.terminal(&format!("cols {columns} -onlcr"), &line)).ok()
    }

    /// Who carries out a line of shell on a terminal, set up as stty(1) says.
    pub fn terminal(&self, stty: &str, line: &str) -> Command {
        // Whoever runs the tests in the background ignores Ctrl-C, and so would all that is started here.
        let mut command = self.victim.command("env");
        command.args(["--default-signal=INT,QUIT,HUP", "script"]);
        command.args(["-qec", &format!("stty {stty}; {line}"), "/dev/null"]);
        // Not the shell that whoever runs the tests likes: they differ.
        self.bus.environment(&mut command).env("SHELL", "/bin/sh");
        command
    }

    /// The value of a metric, by its name and labels as they are written.
    #[track_caller]
    pub fn metric(&self, name: &str) -> u64 {
        let (code, text) = self.victim.http_get(8081, "/metrics");
        assert_eq!(code, 200, "{text}");
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no metric {name} in:\n{text}")).parse().unwrap()
    }

    /// The victim's IPv4 rules, as iptables-save prints them.
    pub fn victim_rules(&self) -> String {
        run(self.victim.command("iptables-save").args(["-t", "filter"])).ok()
    }

    /// Nothing of the service is left in the kernel, and all that was there before is.
    #[track_caller]
    pub fn assert_untouched(&self) {
        assert_eq!(Rules::of(&self.victim), self.rules_before);
    }
}

/// Connects a host to the switch.
fn connect(switch: &Namespace, host: &Namespace, number: u8) {
    add_veth(switch, &format!("port{number}"), host, "eth0", 77, number);
    switch.ip(&format!("link set port{number} master br0"));
    // A frame that comes sooner is dropped.
    await_that("the switch forwards", || {
        let shown = switch.ip(&format!("-json -details link show port{number}"));
        let links: serde_json::Value = serde_json::from_str(&shown).unwrap();
        links[0]["linkinfo"]["info_slave_data"]["state"] == "forwarding"
    });
}

/// Connects a host to another by a cable.
fn add_veth(
    one: &Namespace,
    its_end: &str,
    other: &Namespace,
    other_end: &str,
    net: u8,
    number: u8,
) {
    let (one_name, name) = (one.name(), other.name());
    crate::tools::sh(&format!(
        "ip link add {its_end} netns {one_name} type veth peer name {other_end} netns {name}"
    ));
    other.ip(&format!("addr add 10.{net}.0.{number}/24 dev {other_end}"));
    // Duplicate address detection would take a second.
    other.ip(&format!("addr add fd{net}::{number}/64 dev {other_end} nodad"));
    one.ip(&format!("link set {its_end} up"));
    other.ip(&format!("link set {other_end} up"));
    // Even without it the kernel makes an address usable on a thread of its own, in its own time.
    await_that("the address may be used", || {
        !other.ip(&format!("-6 addr show dev {other_end} tentative")).contains(&format!("fd{net}"))
    });
}

/// A run that was killed could not tidy up.
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
    for view in names_in(views()) {
        if dead(&view).is_some() {
            remove_view(&views().join(view));
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
