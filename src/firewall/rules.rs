//! Hook, chain and rule in table `filter`, for both families.
//!
//! Owns the chain `tcptracker`, the jumps to it from the built-in chains (hooks), and in it this
//! instance's own rule, known by the set it matches. Other instances' rules are never touched. Every
//! operation is idempotent: what is already so is success.

use std::error::Error;
use std::fs::File;
use std::process::Output;
use std::time::Duration;

use iptables::IPTables;
use rustix::fs::{FlockOperation, flock};

use super::Family;
use crate::config::FirewallConfig;
use crate::config::values::{Established, Hook, Target};
use crate::interface::InterfaceName;

const TABLE: &str = "filter";

/// The chain all instances share.
pub const CHAIN: &str = "tcptracker";

/// Where the kernel says that it speaks IPv6. (`/proc/net` is not there under `ProcSubset=pid`.)
const IPV6_PRESENT: &str = "/proc/self/net/if_inet6";

/// What stands for the network namespace whose rules these are.
const NAMESPACE: &str = "/proc/self/ns/net";

/// Why the rules are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// The program is not installed.
    #[error("{0} is not installed; install the package iptables")]
    NotInstalled(&'static str),
    /// The process lacks the privilege.
    #[error(
        "changing firewall rules needs the capability CAP_NET_ADMIN; run it as root or as the service"
    )]
    NotPermitted,
    /// The program said no.
    #[error("`{command}` failed: {said}")]
    Failed {
        /// As one would type it.
        command: String,
        /// What it printed.
        said: String,
    },
}

/// The rules of one instance.
pub struct Rules {
    tables: Vec<(Family, IPTables)>,
    hooks: Vec<Hook>,
    target: Target,
    established: Established,
    comment: String,
}

impl Rules {
    /// Finds iptables and ip6tables; changes nothing.
    pub fn find(
        interface: &InterfaceName,
        config: &FirewallConfig,
        established: Established,
    ) -> Result<Self, RulesError> {
        let mut tables = vec![(Family::V4, find_program(Family::V4)?)];
        if std::path::Path::new(IPV6_PRESENT).exists() {
            tables.push((Family::V6, find_program(Family::V6)?));
        }
        Ok(Self {
            tables,
            hooks: config.hooks.clone(),
            target: config.target,
            established,
            comment: format!("tcptracker@{interface}"),
        })
    }

    /// The families this host speaks.
    pub fn families(&self) -> Vec<Family> {
        self.tables.iter().map(|(family, _)| *family).collect()
    }

    /// Puts up chain, rule and hooks, in this order: packets come only when all stands.
    pub fn enter(&self, family: Family, set: &str) -> Result<(), RulesError> {
        let Some(table) = self.table(family) else { return Ok(()) };
        let _alone = RulesLock::take();
        if table.list(CHAIN)?.is_none() {
            table.run(&format!("-N {CHAIN}"))?;
        }
        let rule = self.rule(set);
        let is_own = |line: &str| tokens(line).any(|token| token == self.comment);
        if table.rules(CHAIN, is_own)?.len() != 1
            || !table.succeeds(&format!("-C {CHAIN} {rule}"))?
        {
            table.run(&format!("-A {CHAIN} {rule}"))?;
            // What an earlier start with other options has left goes when the new rule is there: the last.
            let mut own = table.rules(CHAIN, is_own)?;
            own.pop();
            table.delete(&own)?;
        }
        for hook in &self.hooks {
            table.put_hook_first(hook.as_str())?;
        }
        Ok(())
    }

    /// Takes down this instance's rule and, if it was the last, hooks and chain.
    pub fn leave(&self, family: Family) -> Result<(), RulesError> {
        let Some(table) = self.table(family) else { return Ok(()) };
        let _alone = RulesLock::take();
        let own = table.rules(CHAIN, |line| tokens(line).any(|token| token == self.comment))?;
        table.delete(&own)?;
        if table.list(CHAIN)?.is_none() || !table.rules(CHAIN, |_| true)?.is_empty() {
            return Ok(());
        }
        for chain in table.built_in_chains()? {
            let hooks = table.rules(&chain, jumps_to_ours)?;
            table.delete(&hooks)?;
        }
        table.run(&format!("-X {CHAIN}")).map(drop)
    }

    /// The rule that drops what comes from the set.
    fn rule(&self, set: &str) -> String {
        // A segment with neither ACK nor RST is the first of a connection, or a stealth probe (SYN,
        // FIN, NULL, XMAS); every later one has ACK or RST. This needs no connection tracking, which
        // a flood could fill and which some hosts do without.
        let scope = match self.established {
            Established::Keep => "-p tcp -m tcp --tcp-flags RST,ACK NONE ",
            Established::Cut => "",
        };
        format!(
            "{scope}-m set --match-set {set} src -m comment --comment {} -j {}",
            self.comment,
            self.target.as_str()
        )
    }

    fn table(&self, family: Family) -> Option<Table<'_>> {
        let (_, program) = self.tables.iter().find(|(found, _)| *found == family)?;
        Some(Table { family, program })
    }
}

/// Table `filter` of one family.
#[derive(Clone, Copy)]
struct Table<'a> {
    family: Family,
    program: &'a IPTables,
}

impl Table<'_> {
    fn execute(self, command: &str) -> Result<Output, RulesError> {
        self.program
            .execute(TABLE, command)
            .map_err(|error| self.failed(command, &error.to_string()))
    }

    fn run(self, command: &str) -> Result<String, RulesError> {
        let output = self.execute(command)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(self.failed(command, String::from_utf8_lossy(&output.stderr).trim()))
    }

    fn succeeds(self, command: &str) -> Result<bool, RulesError> {
        Ok(self.execute(command)?.status.success())
    }

    /// The lines of a chain as `-S` prints them, or nothing where there is no such chain. (The
    /// program's own listing of a missing chain cannot be told from other failures.)
    fn list(self, chain: &str) -> Result<Option<Vec<String>>, RulesError> {
        let all = self.run("-S")?;
        let own = |line: &&str| tokens(line).nth(1) == Some(chain);
        let lines: Vec<String> = all.lines().filter(own).map(str::to_owned).collect();
        Ok((!lines.is_empty()).then_some(lines))
    }

    fn built_in_chains(self) -> Result<Vec<String>, RulesError> {
        let all = self.run("-S")?;
        let policies = all.lines().filter(|line| line.starts_with("-P "));
        Ok(policies.filter_map(|line| tokens(line).nth(1)).map(str::to_owned).collect())
    }

    /// The rules of a chain for which `which` holds, as `-S` prints them.
    fn rules(self, chain: &str, which: impl Fn(&str) -> bool) -> Result<Vec<String>, RulesError> {
        let lines = self.list(chain)?.unwrap_or_default();
        let rules = lines.into_iter().filter(|line| line.starts_with("-A "));
        Ok(rules.filter(|line| which(line)).collect())
    }

    /// Deletes rules by what they say. By their positions it could hit those of other programs, which
    /// may insert and delete at any moment.
    fn delete(self, rules: &[String]) -> Result<(), RulesError> {
        for rule in rules {
            self.run(&rule.replacen("-A ", "-D ", 1))?;
        }
        Ok(())
    }

    /// Makes the jump to our chain the first rule of a built-in chain, and the only jump in it.
    fn put_hook_first(self, hook: &str) -> Result<(), RulesError> {
        let all = self.rules(hook, |_| true)?;
        let jumps = self.rules(hook, jumps_to_ours)?;
        if jumps.len() == 1 && all.first() == jumps.first() {
            return Ok(());
        }
        self.delete(&jumps)?;
        self.run(&format!("-I {hook} 1 -j {CHAIN}")).map(drop)
    }

    fn failed(self, command: &str, said: &str) -> RulesError {
        if said.contains("Permission denied") || said.contains("Operation not permitted") {
            return RulesError::NotPermitted;
        }
        RulesError::Failed {
            command: format!("{} -t {TABLE} {command}", program_name(self.family)),
            said: said.to_owned(),
        }
    }
}

/// Held while rules come and go in several steps, so that one instance does not take down what another
/// puts up. It is a lock on the network namespace itself, and goes with the process.
struct RulesLock {
    _namespace: Option<File>,
}

impl RulesLock {
    /// Waits for the others. Not for ever: any user can hold a lock on his namespace, and the steps are
    /// right without it unless two instances come or go at the same moment.
    #[expect(
        clippy::disallowed_methods,
        reason = "a lock with a time limit has no event to wait for"
    )]
    fn take() -> Self {
        const PATIENCE: u32 = 250;
        const PAUSE: Duration = Duration::from_millis(20);
        let Ok(namespace) = File::open(NAMESPACE) else { return Self { _namespace: None } };
        for _ in 0..PATIENCE {
            match flock(&namespace, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
        Self { _namespace: Some(namespace) }
    }
}

fn find_program(family: Family) -> Result<IPTables, RulesError> {
    let name = program_name(family);
    iptables::new(family == Family::V6).map_err(|error: Box<dyn Error>| {
        match error.downcast_ref::<std::io::Error>() {
            Some(io) if io.kind() == std::io::ErrorKind::NotFound => RulesError::NotInstalled(name),
            _ => {
                RulesError::Failed { command: format!("{name} --version"), said: error.to_string() }
            }
        }
    })
}

const fn program_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

/// The words of a line of `iptables -S`, without the quotes it puts around some.
fn tokens(line: &str) -> impl Iterator<Item = &str> {
    line.split_whitespace().map(|token| token.trim_matches('"'))
}

fn jumps_to_ours(line: &str) -> bool {
    tokens(line).zip(tokens(line).skip(1)).any(|pair| pair == ("-j", CHAIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_jump_is_told_from_others() {
        assert!(jumps_to_ours("-A INPUT -j tcptracker"));
        assert!(!jumps_to_ours("-A INPUT -j tcptracker2"));
        assert!(!jumps_to_ours("-A INPUT -m comment --comment tcptracker -j ACCEPT"));
    }

    #[test]
    fn quoted_words_are_read_without_their_quotes() {
        let line = r#"-A tcptracker -m comment --comment "tcptracker@eth0" -j DROP"#;
        assert!(tokens(line).any(|token| token == "tcptracker@eth0"));
    }
}
