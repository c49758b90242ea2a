//! What the kernel and the file system have for the service.

use std::path::{Path, PathBuf};

use rustix::fs::{StatVfsMountFlags, statvfs};

use crate::block::backend::FirewallError;
use crate::block::backend::ipset::IpsetBackend;
use crate::block::backend::ipset::netlink::IpsetError;
use crate::block::backend::program::{Program, RulesError};
use crate::cli::doctor::{Finding, Verdict};
use crate::cli::time::absolute;
use crate::config::Config;
use crate::system::capture::CaptureError;
use crate::system::capture::live::LiveCapture;
use crate::types::clock::WallClock;
use crate::types::ifname::IfName;
use crate::types::network::Family;

/// Capabilities and their numbers (linux/capability.h).
const CAPABILITIES: [(&str, u32); 2] = [("CAP_NET_ADMIN", 12), ("CAP_NET_RAW", 13)];

/// A source with several ports and three with one, in bytes: ARCHITECTURE.md, "Trust boundaries".
const BYTES_PER_SOURCE: u64 = 200 + 3 * 30;

/// The database of 100,000 blocks has about this size.
const ROOM_FOR_STATE: u64 = 64 << 20;

const UNIT: &str = "tcptracker@.service";
const UNIT_DIRECTORIES: [&str; 4] = [
    "/etc/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

const INSTALL: &str = "install the package tcptracker, or `sudo make install`";

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

/// Those of the service's capabilities that this process could not have either.
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
            let remedy = "give them to the container (docker run --cap-add NET_ADMIN --cap-add NET_RAW), \
                        or run it on the host";
            Finding::failed(CHECK, format!("root, but without {}", missing.join(", ")), remedy)
        }
        _ => Finding::not_seen(CHECK),
    }
}

fn capture() -> Finding {
    const CHECK: &str = "capture";
    // The name is fixed, and valid.
    let Ok(loopback) = "lo".parse::<IfName>() else { return Finding::not_seen(CHECK) };
    match LiveCapture::open(&loopback, false) {
        Ok(_) => Finding::ok(CHECK, "libpcap captures"),
        Err(CaptureError::NotPermitted(_)) => Finding::not_seen(CHECK),
        Err(error) => {
            let remedy = "the kernel needs packet sockets: modprobe af_packet";
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
    let found = format!("about {} MiB at most for {sources} sources", wanted.max(1));
    match available {
        Some(available) if wanted * 2 > available => {
            let found = format!("{found}, of {available} MiB that are free");
            Finding::warning(CHECK, found, "lower detection.max_sources")
        }
        Some(available) => Finding::ok(CHECK, format!("{found}; {available} MiB are free")),
        None => Finding::ok(CHECK, found),
    }
}

fn iptables(check: &'static str, family: Family, privileged: bool) -> Finding {
    let program = match Program::find(family) {
        Ok(program) => program,
        Err(RulesError::NotInstalled(_)) => {
            return Finding::failed(check, "not installed", "apt install iptables");
        }
        Err(error) => {
            return Finding::failed(check, error.to_string(), "apt install --reinstall iptables");
        }
    };
    let kind = if program.is_nft() { "nf_tables" } else { "legacy" };
    if !privileged {
        return Finding::not_seen(check);
    }
    match program.save() {
        Ok(_) => Finding::ok(check, format!("{kind}, works")),
        Err(error) => {
            let remedy = "the kernel lacks a part of netfilter: modprobe nf_tables (or ip_tables)";
            Finding::failed(check, error.to_string(), remedy)
        }
    }
}

fn sets(config: &Config, privileged: bool) -> Finding {
    const CHECK: &str = "kernel sets";
    if !privileged {
        return Finding::not_seen(CHECK);
    }
    let Ok(loopback) = "lo".parse::<IfName>() else { return Finding::not_seen(CHECK) };
    match IpsetBackend::connect(&loopback, &config.firewall, config.block.established) {
        Ok(_) => Finding::ok(CHECK, "there, by netlink"),
        Err(FirewallError::Set(IpsetError::Unsupported)) => {
            let found = "the kernel has none: a rule per address is used, 1,000 at most";
            Finding::warning(CHECK, found, "modprobe ip_set ip_set_hash_net xt_set")
        }
        Err(error) => Finding::failed(CHECK, error.to_string(), "repair iptables first"),
    }
}

/// Two programs that each believe they own the firewall.
fn other_firewall() -> Finding {
    const CHECK: &str = "one firewall";
    if !rustix::process::geteuid().is_root() {
        return Finding::not_seen(CHECK);
    }
    let legacy = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"]
        .iter()
        .any(|file| std::fs::read_to_string(file).is_ok_and(|names| names.contains("filter")));
    let is_nft = Program::find(Family::V4).is_ok_and(Program::is_nft);
    if legacy && is_nft {
        let found = "iptables is the one of nf_tables, and there are tables of iptables-legacy as well: \
                     each passes packets the other drops, or drops what it passes";
        return Finding::warning(
            CHECK,
            found,
            "look with iptables-legacy-save, and keep one of them",
        );
    }
    Finding::ok(CHECK, "nf_tables and legacy rules are not mixed")
}

/// The first of these that exists.
pub fn first_of(directories: &[&str], file: &str) -> Option<PathBuf> {
    directories.iter().map(|directory| Path::new(directory).join(file)).find(|path| path.exists())
}

fn unit() -> Finding {
    const CHECK: &str = "unit";
    if !Path::new("/run/systemd/system").is_dir() {
        let remedy = "start it yourself: tcptracker run -i INTERFACE";
        return Finding::warning(CHECK, "systemd does not run here", remedy);
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
    let found =
        "user or group tcptracker is missing: the unit does not start, and only root may change";
    Finding::warning(
        CHECK,
        found,
        "systemd-sysusers; if that does not help, install the package again",
    )
}

fn state() -> Finding {
    const CHECK: &str = "state";
    let directory = Path::new("/var/lib/tcptracker");
    let (place, found) = if directory.is_dir() {
        (directory, "/var/lib/tcptracker")
    } else {
        (Path::new("/var/lib"), "/var/lib/tcptracker is made at the first start")
    };
    let Ok(space) = statvfs(place) else { return Finding::not_seen(CHECK) };
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    let found = format!("{found}; {} MiB are free", free >> 20);
    if space.f_flag.contains(StatVfsMountFlags::RDONLY) {
        let found = format!("{} is on a file system that is read-only", place.display());
        let remedy =
            "mount it for writing: what cannot be written is not remembered over a restart";
        return Finding::failed(CHECK, found, remedy);
    }
    if free < ROOM_FOR_STATE {
        let remedy = "make room: what cannot be written is not remembered over a restart";
        return Finding::failed(CHECK, found, remedy);
    }
    Finding::ok(CHECK, found)
}

fn clock() -> Finding {
    const CHECK: &str = "clock";
    let clock = WallClock::read();
    let now = clock.unix_seconds(clock.now());
    // Nothing on this disk can be from the future; this program is on it.
    let newest = std::env::current_exe()
        .and_then(|file| file.metadata()?.modified())
        .ok()
        .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
        .map_or(0, |since| since.as_secs());
    if now + 86_400 < newest {
        let found = format!("{}, before this program was made", absolute(now));
        let remedy =
            "set it, or blocks end at the wrong time after a restart: timedatectl set-ntp true";
        return Finding::bad(CHECK, Verdict::Failed, found, remedy);
    }
    let kept = Path::new("/run/systemd/timesync/synchronized").exists();
    Finding::ok(CHECK, absolute(now) + if kept { ", kept by systemd-timesyncd" } else { "" })
}

fn journal() -> Finding {
    const CHECK: &str = "journal";
    if Path::new("/run/systemd/journal/socket").exists() {
        return Finding::ok(CHECK, "journald listens");
    }
    let found = "journald does not run here: what the service tells goes to its standard error";
    Finding::warning(CHECK, found, "start systemd-journald, or keep what the service prints")
}
