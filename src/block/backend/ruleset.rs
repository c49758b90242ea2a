//! Table `filter` as it is, held against what is wanted: what differs, and the commands that change it.
//!
//! Pure: reads the text of `iptables-save` and writes that of `iptables-restore`. Owns the chain
//! `tcptracker` and the jumps to it (hooks); of the rules in the chain only those with this instance's
//! comment.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::block::reconcile::{Fault, HookFault};
use crate::config::values::Hook;
use crate::types::network::Family;

/// The chain all instances share.
pub const CHAIN: &str = "tcptracker";

/// What tells one of an instance's rules from its others: the source it asks for, where it asks for one.
pub type Source = Option<IpNet>;

/// One of this instance's rules, as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnRule {
    /// The source it asks for.
    pub source: Source,
    /// The rest of it, without quotes.
    pub form: String,
    /// Packets that matched.
    pub packets: u64,
    /// All of it, as it was printed.
    text: String,
}

/// The parts of the table that are ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// This instance's rules in the chain; none where there is no such chain.
    pub own: Option<Vec<OwnRule>>,
    /// There are other rules in the chain: another instance's, or somebody's.
    pub shared: bool,
    /// There are rules in the chain that are no instance's.
    pub has_strangers: bool,
    /// One of them stands in front of one of this instance's rules, and may let in who is blocked.
    is_behind: bool,
    /// The rules that jump to the chain and do nothing else: from which chain, from which place in it.
    jumps: Vec<(String, usize)>,
    /// The other rules that jump to it, as they were printed.
    conditional_jumps: Vec<String>,
}

impl Ruleset {
    /// Reads what `iptables-save -c -t filter` printed; `comment` is in each of this instance's rules.
    pub fn parse(saved: &str, comment: &str) -> Self {
        let mut listing = Self::default();
        // The chain whose rules are being read, and how many have been.
        let (mut current, mut count) = ("", 0);
        for line in saved.lines() {
            if line.strip_prefix(':').is_some_and(|chain| words(chain).next() == Some(CHAIN)) {
                listing.own = Some(Vec::new());
            }
            let Some((packets, text)) = counted(line) else { continue };
            let chain = words(text).nth(1).unwrap_or_default();
            if chain != current {
                (current, count) = (chain, 0);
            }
            count += 1;
            if chain == CHAIN {
                if let Some(rule) = own_rule(text, packets, comment) {
                    listing.is_behind |= listing.has_strangers;
                    listing.own.get_or_insert_default().push(rule);
                } else {
                    listing.shared = true;
                    listing.has_strangers |= !is_an_instances(text);
                }
            } else if words(text).skip(2).eq(["-j", CHAIN]) {
                listing.jumps.push((chain.to_owned(), count));
            } else if jumps_to_ours(text) {
                listing.conditional_jumps.push(text.to_owned());
            }
        }
        listing
    }

    /// What of chain and hooks is not as it should be.
    pub fn faults(&self, family: Family, hooks: &[Hook]) -> Vec<Fault> {
        let chain = self.own.is_none().then_some(Fault::Chain(family));
        let behind = self.is_behind.then_some(Fault::Behind(family));
        let hooks = hooks.iter().filter_map(|hook| {
            let is = self.hook_fault(*hook)?;
            Some(Fault::Hook { family, hook: *hook, is })
        });
        chain.into_iter().chain(behind).chain(hooks).collect()
    }

    fn hook_fault(&self, hook: Hook) -> Option<HookFault> {
        match *self.places(hook) {
            [] => Some(HookFault::Gone),
            [1] => None,
            _ => Some(HookFault::NotFirst),
        }
    }

    /// From where in a built-in chain it is jumped from to ours.
    fn places(&self, hook: Hook) -> Vec<usize> {
        let jumps = self.jumps.iter().filter(|(chain, _)| chain == hook.as_str());
        jumps.map(|(_, place)| *place).collect()
    }

    /// The commands that put up chain, this instance's rules and hooks.
    pub fn to_put_up(
        &self,
        desired: &BTreeSet<Source>,
        form: &RuleTemplate,
        hooks: &[Hook],
    ) -> Vec<String> {
        let mut commands = Vec::new();
        if self.own.is_none() {
            commands.push(format!(":{CHAIN} - [0:0]"));
        }
        let mut there = BTreeSet::new();
        for rule in self.own.iter().flatten() {
            // What is wrong, what is there twice, and what has to be in front.
            if self.is_behind
                || !form.fits(rule)
                || !desired.contains(&rule.source)
                || !there.insert(rule.source)
            {
                commands.push(delete(&rule.text));
            }
        }
        let missing = desired.difference(&there);
        commands.extend(missing.map(|source| form.add(*source, self.has_strangers)));
        // Packets come only when all stands.
        for hook in hooks.iter().filter(|hook| self.hook_fault(**hook).is_some()) {
            let jumps = self.places(*hook);
            commands.extend(jumps.iter().map(|_| format!("-D {} -j {CHAIN}", hook.as_str())));
            commands.push(format!("-I {} 1 -j {CHAIN}", hook.as_str()));
        }
        // Configured before and no longer. Where there are others in the chain it may be theirs.
        for hook in Hook::ALL.iter().filter(|hook| !self.shared && !hooks.contains(hook)) {
            let jumps = self.places(*hook);
            commands.extend(jumps.iter().map(|_| format!("-D {} -j {CHAIN}", hook.as_str())));
        }
        commands
    }

    /// The commands that take down this instance's rules and, if they were the last, hooks and chain.
    pub fn to_take_down(&self) -> Vec<String> {
        let Some(own) = &self.own else { return Vec::new() };
        let mut commands: Vec<String> = own.iter().map(|rule| delete(&rule.text)).collect();
        if !self.shared {
            commands.extend(self.jumps.iter().map(|(chain, _)| format!("-D {chain} -j {CHAIN}")));
            commands.extend(self.conditional_jumps.iter().map(|text| delete(text)));
            commands.push(format!("-X {CHAIN}"));
        }
        commands
    }
}

/// What this instance's rules have in common: all but the source they ask for.
#[derive(Clone, Debug)]
pub struct RuleTemplate {
    written: String,
    /// As the program prints what was written, once it has been seen.
    printed: Option<String>,
}

impl RuleTemplate {
    /// A form, as it is given to the program.
    pub fn new(written: String) -> Self {
        Self { written, printed: None }
    }

    /// Whether a rule has this form.
    pub fn fits(&self, rule: &OwnRule) -> bool {
        self.printed.as_ref().unwrap_or(&self.written) == &rule.form
    }

    /// Looks how the program prints rules just made: another version of it may put words in another
    /// order, and that is no fault.
    pub fn learn(&mut self, made: &Ruleset) {
        if self.printed.is_none() {
            self.printed = made.own.iter().flatten().next().map(|rule| rule.form.clone());
        }
    }

    /// Whether it is still to be learned.
    pub fn is_unseen(&self) -> bool {
        self.printed.is_none()
    }

    /// The command that makes a rule, in front of all others or behind them.
    pub fn add(&self, source: Source, in_front: bool) -> String {
        let command = if in_front { "-I" } else { "-A" };
        match source {
            Some(source) => format!("{command} {CHAIN} -s {source} {}", self.written),
            None => format!("{command} {CHAIN} {}", self.written),
        }
    }

    /// The command that deletes one.
    pub fn delete(&self, source: Source) -> String {
        delete(&self.add(source, false))
    }
}

/// By what a rule says, not by its position: others may insert and delete at any moment.
pub fn delete(rule: &str) -> String {
    rule.replacen("-A ", "-D ", 1)
}

/// A rule's packet counter and its text: `[packets:bytes] -A …`.
fn counted(line: &str) -> Option<(u64, &str)> {
    let (counters, text) = line.strip_prefix('[')?.split_once("] ")?;
    let packets = counters.split(':').next()?.parse().ok()?;
    text.starts_with("-A ").then_some((packets, text))
}

/// Whether a rule has the comment of an instance, this one or another.
fn is_an_instances(text: &str) -> bool {
    words(text).any(|word| word.starts_with("tcptracker@"))
}

fn own_rule(text: &str, packets: u64, comment: &str) -> Option<OwnRule> {
    if !words(text).any(|word| word == comment) {
        return None;
    }
    let mut rest: Vec<&str> = words(text).skip(2).collect();
    let source = match rest[..] {
        ["-s", source, ..] => source.parse().ok(),
        _ => None,
    };
    if source.is_some() {
        rest.drain(..2);
    }
    Some(OwnRule { source, form: rest.join(" "), packets, text: text.to_owned() })
}

/// The words of a printed rule, without the quotes put around some.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split_whitespace().map(|word| word.trim_matches('"'))
}

fn jumps_to_ours(text: &str) -> bool {
    words(text).zip(words(text).skip(1)).any(|pair| pair == ("-j", CHAIN) || pair == ("-g", CHAIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: &str =
        "-m set --match-set tcptracker-eth0-v4 src -m comment --comment tcptracker@eth0 -j DROP";
    const HOOKS: [Hook; 2] = [Hook::Input, Hook::Forward];

    /// As iptables-save prints it: two instances, and rules of others.
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

    fn to_put_up(saved: &str) -> Vec<String> {
        let form = RuleTemplate::new(FORM.to_owned());
        read(saved).to_put_up(&BTreeSet::from([None]), &form, &HOOKS)
    }

    #[test]
    fn what_is_as_it_should_be_stays_untouched() {
        let listing = read(SAVED);
        assert_eq!(listing.faults(Family::V4, &HOOKS), []);
        let own = listing.own.as_ref().unwrap();
        assert_eq!((own.len(), own[0].packets), (1, 7));
        assert!(listing.shared, "the other instance's");
        assert_eq!(to_put_up(SAVED), Vec::<String>::new());
    }

    #[test]
    fn what_is_gone_is_found_and_put_up_the_hooks_last() {
        let gone = Fault::Hook { family: Family::V4, hook: Hook::Input, is: HookFault::Gone };
        let faults = read("").faults(Family::V4, &HOOKS);
        assert_eq!(faults[..2], [Fault::Chain(Family::V4), gone]);
        assert_eq!(
            to_put_up(""),
            [
                ":tcptracker - [0:0]",
                &format!("-A tcptracker {FORM}"),
                "-I INPUT 1 -j tcptracker",
                "-I FORWARD 1 -j tcptracker"
            ]
        );
    }

    #[test]
    fn a_hook_behind_another_rule_or_there_twice_becomes_the_first_and_only_one() {
        let behind = SAVED.replace(
            "[9:540] -A INPUT -j tcptracker",
            "[0:0] -A INPUT -j ACCEPT\n[9:540] -A INPUT -j tcptracker",
        );
        let not_first =
            Fault::Hook { family: Family::V4, hook: Hook::Input, is: HookFault::NotFirst };
        assert_eq!(read(&behind).faults(Family::V4, &HOOKS), std::slice::from_ref(&not_first));
        let back = ["-D INPUT -j tcptracker", "-I INPUT 1 -j tcptracker"];
        assert_eq!(to_put_up(&behind), back);

        let twice = SAVED
            .replace("[0:0] -A FORWARD -j", "[0:0] -A FORWARD -j tcptracker\n[0:0] -A FORWARD -j");
        assert_eq!(to_put_up(&twice).len(), 3, "{:?}", to_put_up(&twice));
    }

    #[test]
    fn a_rule_of_ours_that_is_another_is_replaced_and_one_there_twice_goes() {
        let changed = SAVED.replacen("-j DROP", "-j ACCEPT", 1);
        let commands = to_put_up(&changed);
        assert_eq!(commands.len(), 2, "{commands:?}");
        assert!(commands[0].starts_with("-D tcptracker ") && commands[0].ends_with("-j ACCEPT"));
        assert_eq!(commands[1], format!("-A tcptracker {FORM}"));

        let line = SAVED.lines().find(|line| line.contains("\"tcptracker@eth0\"")).unwrap();
        let twice = SAVED.replace(line, &format!("{line}\n{line}"));
        assert_eq!(to_put_up(&twice).len(), 1);
    }

    #[test]
    fn a_strangers_rule_in_front_of_ours_gets_behind_it() {
        let line = SAVED.lines().find(|line| line.contains("\"tcptracker@eth0\"")).unwrap();
        let strange = "[0:0] -A tcptracker -s 192.0.2.7/32 -j RETURN";
        let in_front = SAVED.replace(line, &format!("{strange}\n{line}"));
        assert_eq!(read(&in_front).faults(Family::V4, &HOOKS), [Fault::Behind(Family::V4)]);
        let commands = to_put_up(&in_front);
        assert_eq!(commands.len(), 2, "{commands:?}");
        assert!(commands[0].starts_with("-D tcptracker -m set"), "{commands:?}");
        assert_eq!(commands[1], format!("-I tcptracker {FORM}"));

        // Behind it, or in front of another instance's, it is none of this one's business.
        let behind = SAVED.replace(line, &format!("{line}\n{strange}"));
        assert_eq!(read(&behind).faults(Family::V4, &HOOKS), []);
        assert_eq!(to_put_up(&behind), Vec::<String>::new());
    }

    #[test]
    fn the_last_to_leave_takes_hooks_and_chain_along() {
        assert_eq!(read(SAVED).to_take_down().len(), 1, "the other instance stays");
        let line = SAVED.lines().find(|line| line.contains("eth01")).unwrap();
        let alone = SAVED.replace(&format!("{line}\n"), "");
        let commands = read(&alone).to_take_down();
        assert_eq!(
            commands[1..],
            ["-D INPUT -j tcptracker", "-D FORWARD -j tcptracker", "-X tcptracker"]
        );
        assert_eq!(read("").to_take_down(), Vec::<String>::new());
    }

    #[test]
    fn rules_of_single_addresses_are_told_apart_by_source() {
        let saved = SAVED.replace("-A tcptracker -m set", "-A tcptracker -s 192.0.2.7/32 -m set");
        let listing = read(&saved);
        let form = RuleTemplate::new(FORM.to_owned());
        let own = &listing.own.as_ref().unwrap()[0];
        assert!(form.fits(own));
        assert_eq!(own.source, Some("192.0.2.7/32".parse().unwrap()));
        let desired = BTreeSet::from([Some("192.0.2.8/32".parse().unwrap())]);
        let commands = listing.to_put_up(&desired, &form, &HOOKS);
        assert_eq!(commands[1], format!("-A tcptracker -s 192.0.2.8/32 {FORM}"));
        assert!(commands[0].starts_with("-D tcptracker -s 192.0.2.7/32"));
    }

    #[test]
    fn another_spelling_of_the_program_is_learned() {
        let other = SAVED.replace(
            "-m set --match-set tcptracker-eth0-v4 src",
            "--match-set tcptracker-eth0-v4 src",
        );
        let mut form = RuleTemplate::new(FORM.to_owned());
        let made = read(&other);
        assert!(!form.fits(&made.own.as_ref().unwrap()[0]));
        form.learn(&made);
        assert!(form.fits(&made.own.as_ref().unwrap()[0]));
    }
}
