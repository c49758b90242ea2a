//! The table `filter` as it is, compared with what it should be, and the commands that change it.
//!
//! Pure: reads the text of `iptables-save` and writes that of `iptables-restore`. Owns the chain
//! `tcptracker`, the jumps to it (hooks), and of the rules in that chain only those with this instance's
//! comment.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::block::reconcile::{Fault, HookFault};
use crate::config::values::Hook;
use crate::types::Family;

/// The chain that all instances share.
pub const CHAIN: &str = "tcptracker";

/// The source that a rule names; `None` for a rule that asks a set. Identifies a rule among those of its
/// instance.
pub type Source = Option<IpNet>;

/// A rule of this instance.
#[derive(Clone, Debug, PartialEq, Eq)]
struct OwnRule {
    source: Source,
    /// The rest of the rule, without quotes.
    options: String,
    packets: u64,
    /// The whole rule as iptables prints it.
    text: String,
}

/// The parts of the table that concern this instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// The rules of this instance in the chain; `None` if there is no chain.
    own: Option<Vec<OwnRule>>,
    /// The chain holds rules of other instances or of other programs.
    is_shared: bool,
    /// The rules of other programs in the chain.
    foreign: Vec<String>,
    /// Rules of other programs elsewhere that use a set of this instance.
    outside: Vec<String>,
    /// A rule of another program precedes one of this instance and may accept packets of blocked sources.
    is_preceded: bool,
    /// The rules that jump to the chain, as iptables prints them, and their position in their chain.
    jumps: Vec<(String, usize)>,
}

/// What a look at the table has found.
#[derive(Clone, Debug, Default)]
pub struct Inspection {
    /// What is wrong with chain and hooks.
    pub faults: Vec<Fault>,
    /// The sources of this instance's rules that are as they should be.
    pub sources: BTreeSet<Source>,
    /// How many further rules this instance has: changed rules and duplicates.
    pub unexpected: usize,
}

impl Ruleset {
    /// Reads what `iptables-save -c -t filter` prints. Each rule of this instance has this comment.
    pub fn parse(saved: &str, comment: &str) -> Self {
        let mut ruleset = Self::default();
        let set = format!("{}-v", comment.replacen('@', "-", 1));
        // The chain that the lines belong to, and the number of its rules so far.
        let (mut current, mut count) = ("", 0);
        for line in saved.lines() {
            if line.strip_prefix(':').is_some_and(|chain| words(chain).next() == Some(CHAIN)) {
                ruleset.own = Some(Vec::new());
            }
            let Some((packets, text)) = split_counters(line) else { continue };
            let chain = words(text).nth(1).unwrap_or_default();
            if chain != current {
                (current, count) = (chain, 0);
            }
            count += 1;
            if chain == CHAIN {
                if let Some(rule) = own_rule(text, packets, comment) {
                    ruleset.is_preceded |= ruleset.has_foreign_rules();
                    ruleset.own.get_or_insert_default().push(rule);
                } else {
                    ruleset.is_shared = true;
                    if !words(text).any(|word| word.starts_with("tcptracker@")) {
                        ruleset.foreign.push(text.to_owned());
                    }
                }
            } else if jumps_to_chain(text) {
                ruleset.jumps.push((text.to_owned(), count));
            } else if uses(text, &set) {
                ruleset.outside.push(text.to_owned());
            }
        }
        ruleset
    }

    pub fn has_foreign_rules(&self) -> bool {
        !self.foreign.is_empty()
    }

    /// The commands that remove the rules of other programs from the chain. Those of other instances stay.
    pub fn clearing(&self) -> Vec<String> {
        self.foreign.iter().map(|rule| deletion(rule)).collect()
    }

    /// The commands that remove every rule in the chain that uses a set of this instance.
    pub fn release(&self, comment: &str) -> Vec<String> {
        let set = format!("{}-v", comment.replacen('@', "-", 1));
        let own = self.own().map(|rule| &rule.text);
        let foreign = self.foreign.iter().filter(|rule| uses(rule, &set));
        own.chain(foreign).map(|rule| deletion(rule)).collect()
    }

    /// The commands that remove the rules outside the chain that use a set of this instance.
    pub fn outside(&self) -> impl Iterator<Item = String> {
        self.outside.iter().map(|rule| deletion(rule))
    }

    /// The packets that this instance's rules have matched, by source.
    pub fn counters(&self) -> impl Iterator<Item = (Source, u64)> {
        self.own().map(|rule| (rule.source, rule.packets))
    }

    /// Compares the table with what it should be.
    pub fn inspect(&self, family: Family, template: &RuleTemplate, hooks: &[Hook]) -> Inspection {
        let sources: BTreeSet<Source> =
            self.own().filter(|rule| template.matches(rule)).map(|rule| rule.source).collect();
        let unexpected = self.own().count() - sources.len();
        let chain = self.own.is_none().then_some(Fault::Chain(family));
        let preceded = self.is_preceded.then_some(Fault::Behind(family));
        let hooks = hooks.iter().filter_map(|hook| {
            let is = self.hook_fault(*hook)?;
            Some(Fault::Hook { family, hook: *hook, is })
        });
        Inspection {
            faults: chain.into_iter().chain(preceded).chain(hooks).collect(),
            sources,
            unexpected,
        }
    }

    /// The commands that make chain, rules of this instance and hooks as they should be.
    pub fn diff(
        &self,
        desired: &BTreeSet<Source>,
        template: &RuleTemplate,
        hooks: &[Hook],
    ) -> Vec<String> {
        let mut commands = Vec::new();
        if self.own.is_none() {
            commands.push(format!(":{CHAIN} - [0:0]"));
        }
        let mut kept = BTreeSet::new();
        for rule in self.own() {
            // Rules that are wrong, duplicate, or have to move to the head.
            if self.is_preceded
                || !template.matches(rule)
                || !desired.contains(&rule.source)
                || !kept.insert(rule.source)
            {
                commands.push(deletion(&rule.text));
            }
        }
        let add = if self.has_foreign_rules() { "-I" } else { "-A" };
        let missing = desired.difference(&kept);
        commands.extend(missing.map(|source| format!("{add} {CHAIN} {}", template.rule(*source))));
        // The hooks come last: packets must find the chain complete.
        for hook in Hook::ALL {
            let is_wanted = hooks.contains(&hook);
            // Another instance may be configured to have the hook.
            if if is_wanted { self.hook_fault(hook).is_none() } else { self.is_shared } {
                continue;
            }
            commands.extend(self.positions(hook).map(|_| deletion(&jump(hook))));
            if is_wanted {
                commands.push(format!("-I {} 1 -j {CHAIN}", hook.as_str()));
            }
        }
        commands
    }

    /// The commands that remove this instance's rules and, after the last rule, hooks and chain.
    pub fn removal(&self) -> Vec<String> {
        if self.own.is_none() {
            return Vec::new();
        }
        let mut commands: Vec<String> = self.own().map(|rule| deletion(&rule.text)).collect();
        if !self.is_shared {
            commands.extend(self.jumps.iter().map(|(text, _)| deletion(text)));
            commands.push(format!("-X {CHAIN}"));
        }
        commands
    }

    fn own(&self) -> impl Iterator<Item = &OwnRule> {
        self.own.iter().flatten()
    }

    fn hook_fault(&self, hook: Hook) -> Option<HookFault> {
        let mut positions = self.positions(hook);
        match (positions.next(), positions.next()) {
            (None, _) => Some(HookFault::Gone),
            (Some(1), None) => None,
            _ => Some(HookFault::NotFirst),
        }
    }

    /// The positions of a hook in its built-in chain.
    fn positions(&self, hook: Hook) -> impl Iterator<Item = usize> {
        let jumps = self.jumps.iter().filter(move |(text, _)| *text == jump(hook));
        jumps.map(|(_, position)| *position)
    }
}

/// What all rules of this instance have in common: everything but the source.
#[derive(Clone, Debug)]
pub struct RuleTemplate {
    options: String,
    /// The options as the program prints them, once they have been seen.
    printed: Option<String>,
}

impl RuleTemplate {
    pub fn new(options: String) -> Self {
        Self { options, printed: None }
    }

    /// A rule without its chain, as the program takes it.
    pub fn rule(&self, source: Source) -> String {
        source
            .map_or_else(|| self.options.clone(), |source| format!("-s {source} {}", self.options))
    }

    /// Learns how the program prints rules that were just made. Versions of iptables differ in the order
    /// of words, which is no fault.
    pub fn learn(&mut self, made: &Ruleset) {
        if self.printed.is_none() {
            self.printed = made.own().next().map(|rule| rule.options.clone());
        }
    }

    pub fn is_learned(&self) -> bool {
        self.printed.is_some()
    }

    fn matches(&self, rule: &OwnRule) -> bool {
        self.printed.as_ref().unwrap_or(&self.options) == &rule.options
    }
}

/// The rule that sends all packets of a built-in chain to the chain.
fn jump(hook: Hook) -> String {
    format!("-A {} -j {CHAIN}", hook.as_str())
}

/// The command that deletes a rule. It names the rule and not its position, because other programs may
/// insert and delete rules at any moment.
pub fn deletion(rule: &str) -> String {
    rule.replacen("-A ", "-D ", 1)
}

/// Splits `[packets:bytes] -A …` into the packets and the rule.
fn split_counters(line: &str) -> Option<(u64, &str)> {
    let (counters, text) = line.strip_prefix('[')?.split_once("] ")?;
    let packets = counters.split(':').next()?.parse().ok()?;
    text.starts_with("-A ").then_some((packets, text))
}

fn own_rule(text: &str, packets: u64, comment: &str) -> Option<OwnRule> {
    if !words(text).any(|word| word == comment) {
        return None;
    }
    let options: Vec<&str> = words(text).skip(2).collect();
    let source = match options[..] {
        ["-s", source, ..] => source.parse().ok(),
        _ => None,
    };
    let options = options.get(if source.is_some() { 2.. } else { 0.. }).unwrap_or_default();
    Some(OwnRule { source, options: options.join(" "), packets, text: text.to_owned() })
}

/// The words of a printed rule, without the quotes around some of them.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split_whitespace().map(|word| word.trim_matches('"'))
}

/// Whether a rule uses a set whose name is this one and the number of a family.
fn uses(text: &str, set: &str) -> bool {
    words(text).any(|word| matches!(word.strip_prefix(set), Some("4" | "6")))
}

fn jumps_to_chain(text: &str) -> bool {
    words(text).zip(words(text).skip(1)).any(|pair| pair == ("-j", CHAIN) || pair == ("-g", CHAIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: &str =
        "-m set --match-set tcptracker-eth0-v4 src -m comment --comment tcptracker@eth0 -j DROP";
    const HOOKS: [Hook; 2] = [Hook::Input, Hook::Forward];

    /// The output of iptables-save with two instances and rules of other programs.
    const SAVED: &str = r#"# Generated by iptables-save v1.8.9
*filter
:INPUT ACCEPT [10:600]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:tcptracker - [0:0]
:tcptracker2 - [0:0]
[9:540] -A INPUT -j tcptracker
[0:0] -A INPUT -p udp -m udp --dport 9 -j ACCEPT
[0:0] -A INPUT -m comment --comment tcptracker -j tcptracker2
[0:0] -A FORWARD -j tcptracker
[7:420] -A tcptracker -m set --match-set tcptracker-eth0-v4 src -m comment --comment "tcptracker@eth0" -j DROP
[0:0] -A tcptracker -m set --match-set tcptracker-eth01-v4 src -m comment --comment "tcptracker@eth01" -j DROP
COMMIT
"#;

    fn read(saved: &str) -> Ruleset {
        Ruleset::parse(saved, "tcptracker@eth0")
    }

    fn template() -> RuleTemplate {
        RuleTemplate::new(OPTIONS.to_owned())
    }

    fn diff(saved: &str) -> Vec<String> {
        read(saved).diff(&BTreeSet::from([None]), &template(), &HOOKS)
    }

    fn faults(saved: &str) -> Vec<Fault> {
        read(saved).inspect(Family::V4, &template(), &HOOKS).faults
    }

    /// The rule of this instance.
    fn own_line() -> &'static str {
        SAVED.lines().find(|line| line.contains("\"tcptracker@eth0\"")).unwrap()
    }

    #[test]
    fn correct_table_needs_no_change() {
        assert_eq!(faults(SAVED), []);
        let ruleset = read(SAVED);
        assert_eq!(ruleset.counters().collect::<Vec<_>>(), [(None, 7)]);
        assert!(ruleset.is_shared, "with the other instance");
        assert_eq!(diff(SAVED), Vec::<String>::new());
    }

    #[test]
    fn missing_parts_are_found_and_installed_with_the_hooks_last() {
        let gone = Fault::Hook { family: Family::V4, hook: Hook::Input, is: HookFault::Gone };
        assert_eq!(faults("")[..2], [Fault::Chain(Family::V4), gone]);
        assert_eq!(
            diff(""),
            [
                ":tcptracker - [0:0]",
                &format!("-A tcptracker {OPTIONS}"),
                "-I INPUT 1 -j tcptracker",
                "-I FORWARD 1 -j tcptracker"
            ]
        );
    }

    #[test]
    fn late_or_duplicate_hook_becomes_the_first_and_only_one() {
        let late = SAVED.replace(
            "[9:540] -A INPUT -j tcptracker",
            "[0:0] -A INPUT -j ACCEPT\n[9:540] -A INPUT -j tcptracker",
        );
        let not_first =
            Fault::Hook { family: Family::V4, hook: Hook::Input, is: HookFault::NotFirst };
        assert_eq!(faults(&late), std::slice::from_ref(&not_first));
        assert_eq!(diff(&late), ["-D INPUT -j tcptracker", "-I INPUT 1 -j tcptracker"]);

        let twice = SAVED
            .replace("[0:0] -A FORWARD -j", "[0:0] -A FORWARD -j tcptracker\n[0:0] -A FORWARD -j");
        assert_eq!(diff(&twice).len(), 3, "{:?}", diff(&twice));
    }

    #[test]
    fn changed_rule_is_replaced_and_duplicate_rule_is_deleted() {
        let changed = SAVED.replacen("-j DROP", "-j ACCEPT", 1);
        let commands = diff(&changed);
        assert_eq!(commands.len(), 2, "{commands:?}");
        assert!(commands[0].starts_with("-D tcptracker ") && commands[0].ends_with("-j ACCEPT"));
        assert_eq!(commands[1], format!("-A tcptracker {OPTIONS}"));

        let line = own_line();
        let twice = SAVED.replace(line, &format!("{line}\n{line}"));
        assert_eq!(diff(&twice).len(), 1);
        let found = read(&twice).inspect(Family::V4, &template(), &HOOKS);
        assert_eq!((found.sources.len(), found.unexpected), (1, 1));
    }

    #[test]
    fn own_rule_moves_in_front_of_a_foreign_rule() {
        let line = own_line();
        let foreign = "[0:0] -A tcptracker -s 192.0.2.7/32 -j RETURN";
        let preceded = SAVED.replace(line, &format!("{foreign}\n{line}"));
        assert_eq!(faults(&preceded), [Fault::Behind(Family::V4)]);
        let commands = diff(&preceded);
        assert_eq!(commands.len(), 2, "{commands:?}");
        assert!(commands[0].starts_with("-D tcptracker -m set"), "{commands:?}");
        assert_eq!(commands[1], format!("-I tcptracker {OPTIONS}"));

        // A foreign rule that follows, or that precedes only another instance's rule, does no harm.
        let followed = SAVED.replace(line, &format!("{line}\n{foreign}"));
        assert_eq!(faults(&followed), []);
        assert_eq!(diff(&followed), Vec::<String>::new());
    }

    #[test]
    fn foreign_rules_in_the_chain_are_removed_and_those_outside_are_named() {
        let set = "-m set --match-set tcptracker-eth0-v4 src";
        let foreign = format!("[0:0] -A tcptracker {set} -j ACCEPT");
        let outside = format!("[0:0] -A INPUT {set} -j LOG");
        let other = "[0:0] -A INPUT -m set --match-set tcptracker-eth0-v45 src -j LOG";
        let line = own_line();
        let saved = SAVED.replace(line, &format!("{foreign}\n{line}\n{outside}\n{other}"));
        let ruleset = read(&saved);
        assert_eq!(ruleset.clearing(), [format!("-D tcptracker {set} -j ACCEPT")]);
        assert_eq!(ruleset.outside().collect::<Vec<_>>(), [format!("-D INPUT {set} -j LOG")]);
        let release = ruleset.release("tcptracker@eth0");
        assert_eq!(release.len(), 2, "its own rule and the foreign one: {release:?}");
        assert_eq!(read(SAVED).clearing(), Vec::<String>::new(), "another instance's rule stays");
    }

    #[test]
    fn last_instance_removes_hooks_and_chain() {
        assert_eq!(read(SAVED).removal().len(), 1, "the other instance's rule stays");
        let other = SAVED.lines().find(|line| line.contains("eth01")).unwrap();
        let alone = SAVED.replace(&format!("{other}\n"), "");
        let commands = read(&alone).removal();
        assert_eq!(
            commands[1..],
            ["-D INPUT -j tcptracker", "-D FORWARD -j tcptracker", "-X tcptracker"]
        );
        assert_eq!(read("").removal(), Vec::<String>::new());
    }

    #[test]
    fn hook_that_is_no_longer_configured_is_removed_unless_the_chain_is_shared() {
        let diff = |saved| read(saved).diff(&BTreeSet::from([None]), &template(), &[Hook::Input]);
        assert_eq!(diff(SAVED), Vec::<String>::new());
        let other = SAVED.lines().find(|line| line.contains("eth01")).unwrap();
        let alone = SAVED.replace(&format!("{other}\n"), "");
        assert_eq!(diff(&alone), ["-D FORWARD -j tcptracker"]);
    }

    #[test]
    fn rules_of_single_addresses_are_told_apart_by_source() {
        let saved = SAVED.replace("-A tcptracker -m set", "-A tcptracker -s 192.0.2.7/32 -m set");
        let ruleset = read(&saved);
        let found = ruleset.inspect(Family::V4, &template(), &HOOKS);
        assert_eq!(found.sources, BTreeSet::from([Some("192.0.2.7/32".parse().unwrap())]));
        assert_eq!(found.unexpected, 0);
        let desired = BTreeSet::from([Some("192.0.2.8/32".parse().unwrap())]);
        let commands = ruleset.diff(&desired, &template(), &HOOKS);
        assert_eq!(commands[1], format!("-A tcptracker -s 192.0.2.8/32 {OPTIONS}"));
        assert!(commands[0].starts_with("-D tcptracker -s 192.0.2.7/32"));
    }

    #[test]
    fn template_learns_how_the_program_prints_rules() {
        let other = SAVED.replace(
            "-m set --match-set tcptracker-eth0-v4 src",
            "--match-set tcptracker-eth0-v4 src",
        );
        let made = read(&other);
        let mut template = template();
        assert_eq!(made.inspect(Family::V4, &template, &HOOKS).unexpected, 1);
        template.learn(&made);
        assert_eq!(made.inspect(Family::V4, &template, &HOOKS).unexpected, 0);
    }
}
