//! The test setup: a machine connected to a scanner, and the package.
//!
//! ```text
//!   scanner eth0 203.0.113.66 ── 203.0.113.10 eth0 machine       further links: `Site::cable`
//! ```

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

use crate::machine::{self, Machine};
use crate::namespace::{self, Namespace};
use crate::tools::{run, sh};

/// The addresses of the README.
pub const SCANNER: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 66));
pub const MACHINE: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10));

/// A closed port of the machine: it refuses a connection, unless the source is blocked.
pub const PORT: u16 = 7000;

/// The programs that the tests start on this host, and their packages.
const PROGRAMS: [(&str, &str); 6] = [
    ("systemd-nspawn", "systemd-container"),
    ("nsenter", "util-linux"),
    ("ip", "iproute2"),
    ("ipset", "ipset"),
    ("nmap", "nmap"),
    ("dpkg-deb", "dpkg"),
];

pub struct Site {
    pub machine: Machine,
    pub scanner: Namespace,
    /// The built package.
    pub package: PathBuf,
}

impl Site {
    /// Creates a plain Debian machine, switched off.
    pub fn new(release: &str) -> Self {
        static CLEAN: Once = Once::new();
        require_programs();
        CLEAN.call_once(remove_remains_of_dead_runs);
        let temporary = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let archive = temporary.join(format!("roots/{release}.tar"));
        assert!(archive.exists(), "no {}: `make test-system` makes it", archive.display());
        let package = package(&temporary.with_file_name("debian"));
        let name = format!("tt-{}-{release}", std::process::id());
        let scanner = Namespace::new(format!("{name}-scanner"));
        Self { machine: Machine::new(name, &archive), scanner, package }
    }

    /// Boots the machine with a connected `eth0`.
    pub fn switch_on(&mut self) {
        let scanner = &self.scanner;
        self.machine.boot(|network| connect(scanner, network));
    }

    /// Boots the machine without an interface.
    pub fn switch_on_unconnected(&mut self) {
        self.machine.boot(|_| ());
    }

    /// Connects the machine's `eth0` and sets it down.
    pub fn connect_down(&self) {
        connect(&self.scanner, self.machine.network());
        self.machine.network().ip("link set eth0 down");
    }

    /// Adds an interface to the machine and connects it to the scanner: 10.NET.0.10 and
    /// 10.NET.0.66.
    pub fn cable(&self, interface: &str, net: u8) {
        let (near, far) = (format!("10.{net}.0.10"), format!("10.{net}.0.66"));
        cable(&self.scanner, &far, self.machine.network(), &near, interface);
    }

    /// The rules of both families and the names of the sets in the kernel.
    pub fn firewall(&self) -> String {
        let rules = self.machine.sh("iptables-save; ip6tables-save");
        let sets = run(self.machine.network().command("ipset").args(["list", "-name"])).ok();
        rules + &sets
    }

    #[track_caller]
    pub fn assert_let_in(&self) {
        self.scanner.assert_reaches(MACHINE, PORT);
    }

    #[track_caller]
    pub fn assert_shut_out(&self) {
        self.scanner.assert_cannot_reach(MACHINE, PORT);
    }
}

fn connect(scanner: &Namespace, network: &Namespace) {
    cable(scanner, &SCANNER.to_string(), network, &MACHINE.to_string(), "eth0");
}

/// Connects two interfaces of the same name by a veth.
fn cable(scanner: &Namespace, far: &str, network: &Namespace, near: &str, interface: &str) {
    let (one, other) = (scanner.name(), network.name());
    // The kernel removes the veth of the last boot with its namespace, but with a delay.
    let mut unplug = Command::new("ip");
    unplug.args(["-n", one, "link", "delete", interface]);
    run(&mut unplug);
    sh(&format!(
        "ip link add {interface} netns {one} type veth peer name {interface} netns {other}"
    ));
    for (end, address) in [(scanner, far), (network, near)] {
        end.ip(&format!("addr add {address}/24 dev {interface}"));
        end.ip(&format!("link set {interface} up"));
    }
}

fn package(directory: &Path) -> PathBuf {
    let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let found =
        files.map(|file| file.path()).find(|path| path.extension().is_some_and(|e| e == "deb"));
    found.unwrap_or_else(|| {
        panic!("no package in {}: `make test-system` builds it", directory.display())
    })
}

/// Fails with a clear message if the tests cannot run on this host.
fn require_programs() {
    assert!(
        rustix::process::geteuid().is_root(),
        "the tests with a real systemd boot machines and make network namespaces: run them as root"
    );
    let path = std::env::var_os("PATH").unwrap_or_default();
    for (program, package) in PROGRAMS {
        let there = std::env::split_paths(&path).any(|directory| directory.join(program).is_file());
        assert!(
            there,
            "the tests with a real systemd need {program} from package {package}: make test-deps"
        );
    }
}

/// Removes machines and namespaces of runs that were killed.
fn remove_remains_of_dead_runs() {
    let names = |directory: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    };
    let is_dead = |name: &&String| {
        let pid = name.strip_prefix("tt-").and_then(|rest| rest.split('-').next());
        let pid = pid.filter(|pid| pid.parse::<u32>().is_ok());
        pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
    };
    for name in names(Path::new(env!("CARGO_TARGET_TMPDIR"))).iter().filter(is_dead) {
        machine::remove(name);
    }
    for name in names(Path::new(namespace::DIRECTORY)).iter().filter(is_dead) {
        namespace::remove(name);
    }
}

/// Repacks the package with an earlier version number.
pub fn as_earlier_version(package: &Path, directory: &Path) -> PathBuf {
    let unpacked = directory.join("earlier");
    run(Command::new("dpkg-deb").arg("--raw-extract").args([package, &unpacked])).ok();
    let control = unpacked.join("DEBIAN/control");
    let text = std::fs::read_to_string(&control).unwrap();
    let earlier = text.lines().map(|line| match line.strip_prefix("Version: ") {
        Some(version) => format!("Version: {version}~earlier\n"),
        None => format!("{line}\n"),
    });
    std::fs::write(control, earlier.collect::<String>()).unwrap();
    let packed = directory.join("tcptracker_earlier.deb");
    let mut pack = Command::new("dpkg-deb");
    run(pack.args(["--root-owner-group", "--build"]).args([&unpacked, &packed])).ok();
    std::fs::remove_dir_all(unpacked).unwrap();
    packed
}
