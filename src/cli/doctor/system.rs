//! Checks the kernel, the firewall programs, and the installed files.

use std::path::{Path, PathBuf};

use rustix::fs::{StatVfsMountFlags, statvfs};

use crate::block::backend::FirewallError;
use crate::block::backend::ipset::IpsetBackend;
use crate::block::backend::ipset::netlink::IpsetError;
use crate::block::backend::program::{Program, RulesError};
use crate::cli::doctor::{Finding, Verdict};
use crate::cli::interfaces::default_interface;
use crate::cli::output::counted;
use crate::cli::time::absolute;
use crate::config::Config;
use crate::system::capture::CaptureError;
use crate::system::capture::live::LiveCapture;
use crate::types::{Family, IfName, WallClock};

/// The capabilities that the service needs, and their numbers (linux/capability.h).
const CAPABILITIES: [(&str, u32); 2] = [("CAP_NET_ADMIN", 12), ("CAP_NET_RAW", 13)];

/// The memory of one source with several ports and three with one, in bytes: ARCHITECTURE.md, "Trust
/// boundaries".
const BYTES_PER_SOURCE: u64 = 200 + 3 * 30;

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
    let mut findings = vec![privileges(), capture(), memory(config)];
    for (check, family) in [("iptables", Family::V4), ("ip6tables", Family::V6)] {
        findings.push(iptables(check, family, privileged));
    }
    findings.extend([sets(config, privileged), other_firewall(), unit(), user(), state(), clock()]);
    findings.push(journal());
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
    const CHECK: &str = "privileges";
    match missing_capabilities().as_deref() {
        Some([]) => Finding::ok(CHECK, "CAP_NET_ADMIN and CAP_NET_RAW"),
        Some(missing) if rustix::process::geteuid().is_root() => {
            let remedy = "add them to the container (docker run --cap-add NET_ADMIN --cap-add NET_RAW), or \
                          run tcptracker on the host";
            Finding::failed(CHECK, format!("root lacks {}", missing.join(", ")), remedy)
        }
        _ => Finding::unknown(CHECK),
    }
}

fn capture() -> Finding {
    const CHECK: &str = "capture";
    let Ok(loopback) = "lo".parse::<IfName>() else { return Finding::unknown(CHECK) };
    match LiveCapture::open(&loopback, false) {
        Ok(_) => Finding::ok(CHECK, "libpcap works"),
        Err(CaptureError::NotPermitted(_)) => Finding::unknown(CHECK),
        Err(error) => {
            let remedy = "load packet sockets: modprobe af_packet";
            Finding::failed(CHECK, error.to_string(), remedy)
        }
    }
}

fn memory(config: &Config) -> Finding {
    const CHECK: &str = "memory";
    let sources = u64::try_from(config.detection.max_sources.get()).unwrap_or(u64::MAX);
    let wanted = sources.saturating_mul(BYTES_PER_SOURCE) >> 20;
    let available = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let kibibytes = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        kibibytes.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kibibytes| kibibytes >> 10)
    });
    let found = format!("at most about {} MiB for {sources} sources", wanted.max(1));
    match available {
        Some(available) if wanted * 2 > available => {
            let found = format!("{found}, but only {available} MiB are free");
            Finding::warning(CHECK, found, "lower detection.max_sources")
        }
        Some(available) => Finding::ok(CHECK, format!("{found}; {available} MiB are free")),
        None => Finding::ok(CHECK, found),
    }
}

fn iptables(check: &'static str, family: Family, privileged: bool) -> Finding {
    let program = match Program::find(family) {
        Ok(program) => program,
        Err(RulesError::NotInstalled(_)) => match first_of(&SYSTEM_PROGRAMS, check) {
            Some(_) if !privileged => return Finding::unknown(check),
            Some(file) => {
                let found = format!("{} is not in PATH", file.display());
                let directory = file.parent().unwrap_or(Path::new("/usr/sbin")).display();
                return Finding::failed(check, found, format!("add {directory} to PATH"));
            }
            None => return Finding::failed(check, "not installed", "apt install iptables"),
        },
        Err(error) => {
            return Finding::failed(check, error.to_string(), "apt install --reinstall iptables");
        }
    };
    let kind = if program.is_nft() { "nf_tables" } else { "legacy" };
    if !privileged {
        return Finding::unknown(check);
    }
    match program.save() {
        Ok(_) => Finding::ok(check, format!("{kind}, works")),
        Err(error) => {
            let remedy = "load netfilter: modprobe nf_tables (or ip_tables)";
            Finding::failed(check, error.to_string(), remedy)
        }
    }
}

fn sets(config: &Config, privileged: bool) -> Finding {
    const CHECK: &str = "kernel sets";
    if !privileged {
        return Finding::unknown(CHECK);
    }
    let Ok(loopback) = "lo".parse::<IfName>() else { return Finding::unknown(CHECK) };
    match IpsetBackend::connect(&loopback, &config.firewall, config.block.established) {
        Ok(_) => Finding::ok(CHECK, "available over netlink"),
        Err(FirewallError::Set(IpsetError::Unsupported)) => {
            let found =
                "the kernel has no ipset: tcptracker uses one rule per address, at most 1,000";
            Finding::warning(CHECK, found, "modprobe ip_set ip_set_hash_net xt_set")
        }
        Err(error) => Finding::failed(CHECK, error.to_string(), "fix iptables first"),
    }
}

/// Checks whether both kinds of iptables have rules. An empty legacy table is harmless, and stays in the
/// kernel until the next boot.
fn other_firewall() -> Finding {
    const CHECK: &str = "one firewall";
    if !rustix::process::geteuid().is_root() {
        return Finding::unknown(CHECK);
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
            return Finding::warning(CHECK, found, remedy);
        }
    }
    Finding::ok(CHECK, "nf_tables and legacy rules are not mixed")
}

/// Returns the number of rules of iptables-legacy beside those of nf_tables.
fn legacy_rules(family: Family, tables: &Path) -> u64 {
    // Listing a table that does not exist would create it.
    let has_table = std::fs::read_to_string(tables).is_ok_and(|names| names.contains("filter"));
    let Ok(program) = Program::find(family) else { return 0 };
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
    const CHECK: &str = "unit";
    if !Path::new("/run/systemd/system").is_dir() {
        let interface =
            default_interface().map_or_else(|| "INTERFACE".to_owned(), |name| name.to_string());
        let remedy = format!("start it with: tcptracker run -i {interface}");
        return Finding::warning(CHECK, "systemd is not running", remedy);
    }
    match first_of(&UNIT_DIRECTORIES, UNIT) {
        Some(file) => Finding::ok(CHECK, file.display().to_string()),
        None => Finding::failed(CHECK, format!("{UNIT} is not installed"), INSTALL),
    }
}

fn user() -> Finding {
    const CHECK: &str = "user";
    let has = |file| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        text.lines().any(|line| line.starts_with("tcptracker:"))
    };
    if has("/etc/passwd") && has("/etc/group") {
        return Finding::ok(CHECK, "user and group tcptracker");
    }
    let found = "user or group tcptracker is missing: the unit cannot start, and only root may block and \
                 unblock";
    Finding::warning(CHECK, found, "systemd-sysusers; if that does not help, reinstall the package")
}

fn state() -> Finding {
    const CHECK: &str = "state";
    let directory = Path::new("/var/lib/tcptracker");
    let (place, found) = if directory.is_dir() {
        (directory, "/var/lib/tcptracker")
    } else {
        (Path::new("/var/lib"), "/var/lib/tcptracker is created at the first start")
    };
    let Ok(space) = statvfs(place) else { return Finding::unknown(CHECK) };
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    let found = format!("{found}; {} MiB are free", free >> 20);
    if space.f_flag.contains(StatVfsMountFlags::RDONLY) {
        let found = format!("{} is on a read-only file system", place.display());
        let remedy = "remount it read-write; blocks cannot survive a restart otherwise";
        return Finding::failed(CHECK, found, remedy);
    }
    if free < DATABASE_SIZE {
        let remedy = "free some space; blocks cannot survive a restart otherwise";
        return Finding::failed(CHECK, found, remedy);
    }
    Finding::ok(CHECK, found)
}

fn clock() -> Finding {
    const CHECK: &str = "clock";
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
        return Finding::bad(CHECK, Verdict::Failed, found, remedy);
    }
    let is_synchronized = Path::new("/run/systemd/timesync/synchronized").exists();
    let suffix = if is_synchronized { ", synchronized by systemd-timesyncd" } else { "" };
    Finding::ok(CHECK, absolute(now) + suffix)
}

fn journal() -> Finding {
    const CHECK: &str = "journal";
    if Path::new("/run/systemd/journal/socket").exists() {
        return Finding::ok(CHECK, "journald is running");
    }
    let found = "journald is not running: the service logs to its standard error";
    Finding::warning(CHECK, found, "start systemd-journald, or redirect standard error to a file")
}
