//! Checks whether the threads between a probe and its block have real-time priority.
//!
//! A running service shows that better than an attempt of this process, which has other limits.

use std::path::{Path, PathBuf};

use crate::cli::doctor::Finding;
use crate::system::scheduling::is_permitted;

/// The policies of proc_pid_stat(5).
const SCHED_RR: &str = "2";

const CONSEQUENCE: &str =
    "a scanner learns more ports while other programs keep the processors busy";

pub fn examine() -> Finding {
    let services: Vec<Service> = processes().iter().filter_map(|path| Service::of(path)).collect();
    if let Some(service) = services.iter().find(|service| !service.is_realtime) {
        let found =
            format!("process {} runs without real-time priority: {CONSEQUENCE}", service.process);
        let remedy = if service.may_be_realtime {
            "during a flood this is intended; otherwise the kernel has CONFIG_RT_GROUP_SCHED: boot it with \
             rt_group_sched=0"
        } else {
            "add LimitRTPRIO=1 to the unit; in a container: --ulimit rtprio=1"
        };
        return Finding::warning(found, remedy);
    }
    if !services.is_empty() {
        return Finding::ok("blocking runs with real-time priority");
    }
    if !rustix::process::geteuid().is_root() {
        return Finding::unknown();
    }
    if is_permitted() {
        return Finding::ok("real-time priority is permitted");
    }
    let found = format!("the kernel refuses real-time priority: {CONSEQUENCE}");
    let remedy = "in a container: --ulimit rtprio=1; otherwise the kernel has \
                  CONFIG_RT_GROUP_SCHED: boot it with rt_group_sched=0";
    Finding::warning(found, remedy)
}

/// A running service.
struct Service {
    process: String,
    is_realtime: bool,
    /// Its limit permits real-time priority.
    may_be_realtime: bool,
}

impl Service {
    /// Returns nothing if the process is not a service that captures.
    fn of(process: &Path) -> Option<Self> {
        let read = |path: &Path, file| std::fs::read_to_string(path.join(file)).ok();
        // Not those of other containers, which have other limits. Only root can see the difference.
        let network = |process: &Path| std::fs::read_link(process.join("ns/net")).ok();
        if network(process)? != network(Path::new("/proc/self"))? {
            return None;
        }
        if read(process, "comm")?.trim() != "tcptracker" {
            return None;
        }
        let threads = directories(&process.join("task"));
        let capture = threads
            .iter()
            .find(|thread| read(thread, "comm").is_some_and(|name| name.trim() == "capture"))?;
        let limits = read(process, "limits").unwrap_or_default();
        Some(Self {
            process: process.file_name()?.to_string_lossy().into_owned(),
            is_realtime: policy_in(&read(capture, "stat")?)? == SCHED_RR,
            may_be_realtime: realtime_limit_in(&limits).is_none_or(|limit| limit != "0"),
        })
    }
}

/// Returns field 41 of `stat`. The second field is a name in parentheses, which may contain anything.
fn policy_in(stat: &str) -> Option<&str> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(38)
}

fn realtime_limit_in(limits: &str) -> Option<&str> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max realtime priority"))?;
    line.split_whitespace().next()
}

fn processes() -> Vec<PathBuf> {
    directories(Path::new("/proc"))
}

fn directories(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_and_limit_are_read() {
        let before = "1234 (a ) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 \
                      30 31 32 33 34 17 1 1 2 0 0";
        // tty_nr and so on: the priority is field 40, the policy field 41.
        assert_eq!(policy_in(before), Some("2"));
        let own = std::fs::read_to_string("/proc/self/stat").unwrap();
        assert_eq!(policy_in(&own), Some("0"));
        let limits = "Max nice priority         0                    0                    \n\
                      Max realtime priority     1                    1                    \n";
        assert_eq!(realtime_limit_in(limits), Some("1"));
    }
}
