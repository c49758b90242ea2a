//! The control group of this process (cgroups(7)).
//!
//! Only reads.

use std::path::Path;

/// Returns how many bytes of memory the group of this process may take. None: as much as there is, or the
/// kernel does not tell.
pub fn memory_limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = Path::new("/sys/fs/cgroup").join(group_in(&groups)?);
    // "max" if there is no limit.
    std::fs::read_to_string(group.join("memory.max")).ok()?.trim().parse().ok()
}

/// Returns the path of the group in the hierarchy of version 2, which has number 0.
fn group_in(groups: &str) -> Option<&str> {
    groups.lines().find_map(|line| line.strip_prefix("0::/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_is_that_of_version_2() {
        let groups = "4:memory:/old\n0::/system.slice/tcptracker@eth0.service\n";
        assert_eq!(group_in(groups), Some("system.slice/tcptracker@eth0.service"));
        assert_eq!(group_in("0::/\n"), Some(""));
        assert_eq!(group_in("4:memory:/old\n"), None);
    }
}
