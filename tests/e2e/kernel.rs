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

    /// One hook in front of each built-in chain.
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

    /// An interface's rule of each family, and its sets.
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

/// The remaining seconds of an element of a set.
#[track_caller]
pub fn remaining(host: &Namespace, set: &str, element: &str) -> u64 {
    let listed = run(host.command("ipset").args(["list", set])).ok();
    let prefix = format!("{element} timeout ");
    let found = listed.lines().find_map(|line| line.strip_prefix(&prefix));
    let found = found.unwrap_or_else(|| panic!("no {element} in:\n{listed}"));
    found.split_whitespace().next().unwrap().parse().unwrap()
}

/// The elements of a set.
#[track_caller]
pub fn members(host: &Namespace, set: &str) -> Vec<String> {
    let listed = run(host.command("ipset").args(["list", set])).ok();
    let (_, members) = listed.split_once("Members:\n").unwrap();
    members.lines().filter_map(|line| Some(line.split(' ').next()?.to_owned())).collect()
}

/// Takes all that is the service's out of the kernel, as a boot does.
pub fn wipe(host: &Namespace) {
    for program in ["iptables", "ip6tables"] {
        for rule in ["-D INPUT -j", "-D FORWARD -j", "-F", "-X"] {
            // What is not there need not go.
            run(host.command(program).args(rule.split(' ')).arg("tcptracker"));
        }
    }
    run(host.command("ipset").arg("destroy")).ok();
}

/// A chain's policy is followed by packet and byte counters.
fn without_counters(line: &str) -> String {
    line.split(" [").next().unwrap_or(line).to_owned()
}
