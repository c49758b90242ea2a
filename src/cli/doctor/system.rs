//! Checks the kernel, the firewall programs, and the installed files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{StatVfsMountFlags, statvfs};

use crate::block::backend::FirewallError;
use crate::block::backend::ipset::IpsetBackend;
use crate::block::backend::ipset::netlink::IpsetError;
use crate::block::backend::nftables::Nftables;
use crate::block::backend::program::{Program, RulesError};
use crate::block::backend::select::prefers_table;
use crate::cli::doctor::Finding;
use crate::cli::interfaces::default_interface;
use crate::cli::output::counted;
use crate::cli::time::absolute;
use crate::config::Config;
use crate::service::memory::most_bytes;
use crate::system::capture::CaptureError;
use crate::system::capture::live::LiveCapture;
use crate::types::{Family, IfName, WallClock};

/// The capabilities that the service needs, and their numbers (linux/capability.h).
const CAPABILITIES: [(&str, u32); 2] = [("CAP_NET_ADMIN", 12), ("CAP_NET_RAW", 13)];

/// The size of a database with 100,000 blocks, in bytes.
const DATABASE_SIZE: u64 = 64 << 20;

const UNIT: &str = "tcptracker@.service";
const UNIT_DIRECTORIES: [&str; 4] = [
    "/etc/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

const INSTALL: &str = "install the package tcptracker, or run `sudo make install`";

/// The directories of system programs, which are not in the PATH of ordinary users.
const SYSTEM_PROGRAMS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

pub fn examine(config: &Config) -> Vec<Finding> {
    let privileged = missing_capabilities().is_some_and(|missing| missing.is_empty());
    let firewall = if prefers_table(config.firewall.backend) {
        vec![table(privileged).of("nf_tables")]
    } else {
        vec![
            iptables("iptables", Family::V4, privileged).of("iptables"),
            iptables("ip6tables", Family::V6, privileged).of("ip6tables"),
            sets(privileged).of("kernel sets"),
        ]
    };
    let mut findings =
        vec![privileges().of("privileges"), capture().of("capture"), memory(config).of("memory")];
    findings.extend(firewall);
    findings.extend([
        other_firewall().of("one firewall"),
        unit().of("unit"),
        user().of("user"),
        state().of("state"),
        clock().of("clock"),
        journal().of("journal"),
    ]);
    findings
}

/// Returns the capabilities that this process lacks.
fn missing_capabilities() -> Option<Vec<&'static str>> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?.trim();
    let mask = u64::from_str_radix(mask, 16).ok()?;
    let missing = CAPABILITIES.iter().filter(|(_, bit)| mask >> bit & 1 == 0);
    Some(missing.map(|(name, _)| *name).collect())
}

fn privileges() -> Finding {
    match missing_capabilities().as_deref() {
        Some([]) => Finding::ok("CAP_NET_ADMIN and CAP_NET_RAW"),
        Some(missing) if rustix::process::geteuid().is_root() => {
            let remedy = "add them to the container (docker run --cap-add NET_ADMIN --cap-add NET_RAW), or \
                          run tcptracker on the host";
            Finding::failed(format!("root lacks {}", missing.join(", ")), remedy)
        }
        _ => Finding::unknown(),
    }
}

fn capture() -> Finding {
    let Ok(loopback) = "lo".parse::<IfName>() else { return Finding::unknown() };
    match LiveCapture::open(&loopback, false) {
        Ok(_) => Finding::ok("libpcap works"),
        Err(CaptureError::NotPermitted(_)) => Finding::unknown(),
        Err(error) => {
            let remedy = "load packet sockets: modprobe af_packet";
            Finding::failed(error.to_string(), remedy)
        }
    }
}

fn memory(config: &Config) -> Finding {
    let sources = config.detection.max_sources.get();
    let wanted = most_bytes(config, 0) >> 20;
    let available = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let kibibytes = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        kibibytes.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kibibytes| kibibytes >> 10)
    });
    let found = format!("at most {wanted} MiB with {sources} sources");
    match available {
        Some(available) if wanted * 2 > available => {
            let found = format!("{found}, but only {available} MiB are free");
            Finding::warning(found, "lower detection.max_sources")
        }
        Some(available) => Finding::ok(format!("{found}; {available} MiB are free")),
        None => Finding::ok(found),
    }
}

fn iptables(name: &'static str, family: Family, privileged: bool) -> Finding {
    let program = match Program::find(family, &Arc::default()) {
        Ok(program) => program,
        Err(RulesError::NotInstalled(_)) => match first_of(&SYSTEM_PROGRAMS, name) {
            Some(_) if !privileged => return Finding::unknown(),
            Some(file) => {
                let found = format!("{} is not in PATH", file.display());
                let directory = file.parent().unwrap_or(Path::new("/usr/sbin")).display();
                return Finding::failed(found, format!("add {directory} to PATH"));
            }
            None => return Finding::failed("not installed", "apt install iptables"),
        },
        Err(error) => {
            return Finding::failed(error.to_string(), "apt install --reinstall iptables");
        }
    };
    let kind = if program.is_nft() { "nf_tables" } else { "legacy" };
    if !privileged {
        return Finding::unknown();
    }
    match program.save() {
        Ok(_) => Finding::ok(format!("{kind}, works")),
        Err(error) => {
            let remedy = "load netfilter: modprobe nf_tables (or ip_tables)";
            Finding::failed(error.to_string(), remedy)
        }
    }
}

fn table(privileged: bool) -> Finding {
    if !privileged {
        return Finding::unknown();
    }
    match Nftables::connect(Family::V4).and_then(|mut nftables| nftables.generation()) {
        Ok(_) => Finding::ok("available over netlink"),
        Err(error) => Finding::failed(
            error.to_string(),
            "modprobe nf_tables, or install iptables and set firewall.backend = \"ipset\"",
        ),
    }
}

fn sets(privileged: bool) -> Finding {
    if !privileged {
        return Finding::unknown();
    }
    let Ok(loopback) = "lo".parse::<IfName>() else { return Finding::unknown() };
    match IpsetBackend::connect(&loopback) {
        Ok(_) => Finding::ok("available over netlink"),
        Err(FirewallError::Set(IpsetError::Unsupported)) => {
            let found =
                "the kernel has no ipset: tcptracker uses one rule per address, at most 1,000";
            Finding::warning(found, "modprobe ip_set ip_set_hash_net xt_set")
        }
        Err(error) => Finding::failed(error.to_string(), "fix iptables first"),
    }
}

/// Checks whether both kinds of iptables have rules. An empty legacy table is harmless, and stays in the
/// kernel until the next boot.
fn other_firewall() -> Finding {
    if !rustix::process::geteuid().is_root() {
        return Finding::unknown();
    }
    let families = [
        (Family::V4, "/proc/net/ip_tables_names", "iptables-legacy-save"),
        (Family::V6, "/proc/net/ip6_tables_names", "ip6tables-legacy-save"),
    ];
    for (family, tables, program) in families {
        let count = legacy_rules(family, Path::new(tables));
        if count > 0 {
            let found = format!(
                "iptables uses nf_tables, but iptables-legacy has {} as well ({}): each may drop \
                 packets that the other accepts",
                counted(count, "rule"),
                family.as_str()
            );
            let remedy = format!("list them with {program}, and move them to one of the two");
            return Finding::warning(found, remedy);
        }
    }
    Finding::ok("nf_tables and legacy rules are not mixed")
}

/// Returns the number of rules of iptables-legacy beside those of nf_tables.
fn legacy_rules(family: Family, tables: &Path) -> u64 {
    // Listing a table that does not exist would create it.
    let has_table = std::fs::read_to_string(tables).is_ok_and(|names| names.contains("filter"));
    let Ok(program) = Program::find(family, &Arc::default()) else { return 0 };
    let legacy = (has_table && program.is_nft()).then(|| program.other_variant()).flatten();
    let saved = legacy.and_then(|legacy| legacy.save().ok().flatten()).unwrap_or_default();
    // "[0:0] -A INPUT -j DROP"
    saved.lines().map(|line| u64::from(line.contains("] -A "))).sum()
}

/// Returns the first of these files that exists.
pub fn first_of(directories: &[&str], file: &str) -> Option<PathBuf> {
    directories.iter().map(|directory| Path::new(directory).join(file)).find(|path| path.exists())
}

fn unit() -> Finding {
    if !Path::new("/run/systemd/system").is_dir() {
        let interface =
            default_interface().map_or_else(|| "INTERFACE".to_owned(), |name| name.to_string());
        let remedy = format!("start it with: tcptracker run -i {interface}");
        return Finding::warning("systemd is not running", remedy);
    }
    match first_of(&UNIT_DIRECTORIES, UNIT) {
        Some(file) => Finding::ok(file.display().to_string()),
        None => Finding::failed(format!("{UNIT} is not installed"), INSTALL),
    }
}

fn user() -> Finding {
    let has = |file| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        text.lines().any(|line| line.starts_with("tcptracker:"))
    };
    if has("/etc/passwd") && has("/etc/group") {
        return Finding::ok("user and group tcptracker");
    }
    let found = "user or group tcptracker is missing: the unit cannot start, and only root may block and \
                 unblock";
    Finding::warning(found, "systemd-sysusers; if that does not help, reinstall the package")
}

fn state() -> Finding {
    let directory = Path::new("/var/lib/tcptracker");
    let (place, found) = if directory.is_dir() {
        (directory, "/var/lib/tcptracker")
    } else {
        (Path::new("/var/lib"), "/var/lib/tcptracker is created at the first start")
    };
    let Ok(space) = statvfs(place) else { return Finding::unknown() };
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    let found = format!("{found}; {} MiB are free", free >> 20);
    if space.f_flag.contains(StatVfsMountFlags::RDONLY) {
        let found = format!("{} is on a read-only file system", place.display());
        let remedy = "remount it read-write; blocks cannot survive a restart otherwise";
        return Finding::failed(found, remedy);
    }
    if free < DATABASE_SIZE {
        let remedy = "free some space; blocks cannot survive a restart otherwise";
        return Finding::failed(found, remedy);
    }
    Finding::ok(found)
}

fn clock() -> Finding {
    let clock = WallClock::read();
    let now = clock.unix_seconds(clock.now());
    // This program cannot be newer than the current time.
    let newest = std::env::current_exe()
        .and_then(|file| file.metadata()?.modified())
        .ok()
        .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
        .map_or(0, |since| since.as_secs());
    if now + 86_400 < newest {
        let found = format!("{}, which is before this program was built", absolute(now));
        let remedy =
            "set the clock (timedatectl set-ntp true); blocks end at the wrong time otherwise";
        return Finding::failed(found, remedy);
    }
    let is_synchronized = Path::new("/run/systemd/timesync/synchronized").exists();
    let suffix = if is_synchronized { ", synchronized by systemd-timesyncd" } else { "" };
    Finding::ok(absolute(now) + suffix)
}

fn journal() -> Finding {
    if Path::new("/run/systemd/journal/socket").exists() {
        return Finding::ok("journald is running");
    }
    let found = "journald is not running: the service logs to its standard error";
    Finding::warning(found, "start systemd-journald, or redirect standard error to a file")
}
