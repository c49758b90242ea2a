//! What the kernel holds: rules of both families and sets, as the system's own tools show them.

use crate::namespace::Namespace;
use crate::tools::run;

/// Rules and sets of a host.
#[derive(Debug, PartialEq, Eq)]
pub struct Rules {
    pub ipv4: Vec<String>,
    pub ipv6: Vec<String>,
    /// As `ipset list` prints them.
    pub sets: String,
}

impl Rules {
    pub fn of(host: &Namespace) -> Self {
        let rules = |program: &str| {
            let saved = run(&mut host.command(program)).ok();
            saved.lines().filter(|line| !line.starts_with('#')).map(without_counters).collect()
        };
        Self {
            ipv4: rules("iptables-save"),
            ipv6: rules("ip6tables-save"),
            sets: run(host.command("ipset").arg("list")).ok(),
        }
    }

    /// The rules of a chain, in order, of each family.
    pub fn chain(&self, chain: &str) -> [Vec<&str>; 2] {
        let prefix = format!("-A {chain} ");
        [&self.ipv4, &self.ipv6].map(|rules| {
            rules.iter().filter_map(|rule| rule.strip_prefix(&prefix)).collect::<Vec<_>>()
        })
    }

    /// One rule for each of these interfaces, in this order, one hook in front of each built-in
    /// chain, and the sets: what the contract says.
    #[track_caller]
    pub fn assert_enforced_for(&self, interfaces: &[&str]) {
        for (family, version) in [(0, "v4"), (1, "v6")] {
            for hook in ["INPUT", "FORWARD"] {
                let rules = &self.chain(hook)[family];
                assert_eq!(rules.first(), Some(&"-j tcptracker"), "{hook} {version}: {self:#?}");
                let jumps = rules.iter().filter(|rule| rule.contains("tcptracker")).count();
                assert_eq!(jumps, 1, "{hook} {version}: {self:#?}");
            }
            let rules = &self.chain("tcptracker")[family];
            assert_eq!(rules.len(), interfaces.len(), "{version}: {self:#?}");
            for (rule, interface) in rules.iter().zip(interfaces) {
                for part in [
                    format!("-m set --match-set tcptracker-{interface}-{version} src"),
                    format!("-m comment --comment \"tcptracker@{interface}\" -j DROP"),
                ] {
                    assert!(rule.contains(&part), "{part} is not in {rule}");
                }
                let set = format!("Name: tcptracker-{interface}-{version}\n");
                assert!(self.sets.contains(&set), "no {set} in {}", self.sets);
            }
        }
    }
}

/// The remaining seconds of an element of a set.
#[track_caller]
pub fn remaining(host: &Namespace, set: &str, element: &str) -> u64 {
    let listed = run(host.command("ipset").args(["list", set])).ok();
    let prefix = format!("{element} timeout ");
    let found = listed.lines().find_map(|line| line.strip_prefix(&prefix));
    let found = found.unwrap_or_else(|| panic!("no {element} in:\n{listed}"));
    found.split_whitespace().next().unwrap().parse().unwrap()
}

/// A chain's policy is followed by packet and byte counters.
fn without_counters(line: &str) -> String {
    line.split(" [").next().unwrap_or(line).to_owned()
}
