//! Firewall rules and sets in the kernel, as the system's tools show them.

use crate::namespace::Namespace;
use crate::tools::run;

/// The rules and sets of a host.
#[derive(Debug, PartialEq, Eq)]
pub struct Rules {
    pub ipv4: Vec<String>,
    pub ipv6: Vec<String>,
    /// As `ipset list` prints them.
    pub sets: String,
    /// The table of nf_tables, as `nft list` prints it; empty if there is none.
    pub table: String,
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
            table: run(host.command("nft").args(["list", "table", "inet", "tcptracker"])).out,
        }
    }

    /// Returns the rules of a chain, in order, per address family.
    pub fn chain(&self, chain: &str) -> [Vec<&str>; 2] {
        let prefix = format!("-A {chain} ");
        [&self.ipv4, &self.ipv6].map(|rules| {
            rules.iter().filter_map(|rule| rule.strip_prefix(&prefix)).collect::<Vec<_>>()
        })
    }

    /// Asserts that the hooks and sets exist, and that the chain has exactly one rule per
    /// interface, in this order.
    #[track_caller]
    pub fn assert_enforced_for(&self, interfaces: &[&str]) {
        self.assert_hooked();
        for rules in self.chain("tcptracker") {
            assert_eq!(rules.len(), interfaces.len(), "{self:#?}");
            for (rule, interface) in rules.iter().zip(interfaces) {
                let comment = format!("\"tcptracker@{interface}\"");
                assert!(rule.contains(&comment), "{comment} is not in {rule}");
            }
        }
        for interface in interfaces {
            self.assert_has_rule_of(interface);
        }
    }

    /// Asserts that the first rule of each built-in chain is the only hook.
    #[track_caller]
    pub fn assert_hooked(&self) {
        for hook in ["INPUT", "FORWARD"] {
            for rules in self.chain(hook) {
                assert_eq!(rules.first(), Some(&"-j tcptracker"), "{hook}: {self:#?}");
                let jumps = rules.iter().filter(|rule| rule.contains("tcptracker")).count();
                assert_eq!(jumps, 1, "{hook}: {self:#?}");
            }
        }
    }

    /// Asserts that an interface has one rule and one set per address family.
    #[track_caller]
    pub fn assert_has_rule_of(&self, interface: &str) {
        for (family, version) in [(0, "v4"), (1, "v6")] {
            let parts = [
                format!("-m set --match-set tcptracker-{interface}-{version} src"),
                format!("-m comment --comment \"tcptracker@{interface}\" -j DROP"),
            ];
            let is_ours = |rule: &&&str| parts.iter().all(|part| rule.contains(part));
            let ours = self.chain("tcptracker")[family].iter().filter(is_ours).count();
            assert_eq!(ours, 1, "{interface} {version}: {self:#?}");
            let set = format!("Name: tcptracker-{interface}-{version}\n");
            assert!(self.sets.contains(&set), "no {set} in {}", self.sets);
        }
    }
}

/// Returns the remaining seconds of an element of a set.
#[track_caller]
pub fn remaining(host: &Namespace, set: &str, element: &str) -> u64 {
    let listed = run(host.command("ipset").args(["list", set])).ok();
    let prefix = format!("{element} timeout ");
    let found = listed.lines().find_map(|line| line.strip_prefix(&prefix));
    let found = found.unwrap_or_else(|| panic!("no {element} in:\n{listed}"));
    found.split_whitespace().next().unwrap().parse().unwrap()
}

/// Returns the elements of a set.
#[track_caller]
pub fn members(host: &Namespace, set: &str) -> Vec<String> {
    let listed = run(host.command("ipset").args(["list", set])).ok();
    let (_, members) = listed.split_once("Members:\n").unwrap();
    members.lines().filter_map(|line| Some(line.split(' ').next()?.to_owned())).collect()
}

/// Removes all rules and sets of the service from the kernel, as a reboot does.
pub fn wipe(host: &Namespace) {
    for program in ["iptables", "ip6tables"] {
        for rule in ["-D INPUT -j", "-D FORWARD -j", "-F", "-X"] {
            // Ignore the failure if an object does not exist.
            run(host.command(program).args(rule.split(' ')).arg("tcptracker"));
        }
    }
    run(host.command("ipset").arg("destroy")).ok();
}

/// Removes the packet and byte counters after a chain's policy.
fn without_counters(line: &str) -> String {
    line.split(" [").next().unwrap_or(line).to_owned()
}
