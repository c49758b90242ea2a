//! The programs of iptables: finding them, running them, and reading what they print.
//!
//! Owns the only processes that the service starts. `iptables-save` reads table `filter`;
//! `iptables-restore` makes several changes, all or none; the crate `iptables` makes single ones. Must
//! not know any chain or rule.

use std::error::Error;
use std::io::{ErrorKind, Write};
use std::process::{Command, Output, Stdio};

use iptables::IPTables;
use iptables::error::IptablesError;

use crate::system::scheduling;
use crate::types::Family;

const TABLE: &str = "filter";

/// Seconds to wait for another program that is changing rules: iptables-legacy has a global lock.
const WAIT: &str = "5";

/// What `iptables-save` prints, and succeeds, when it cannot show a table.
const CANNOT_SHOW: &str = "is incompatible, use 'nft' tool";

/// The reason why the rules cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    #[error("cannot run {0}: it is not installed; install the package iptables")]
    NotInstalled(String),
    #[error(
        "cannot change firewall rules: the capability CAP_NET_ADMIN is missing; run tcptracker as \
         root or start its service"
    )]
    NotPermitted,
    /// The service's user cannot create the lock file of iptables-legacy.
    #[error(
        "cannot open the lock of iptables-legacy, /run/xtables.lock: permission denied; create it \
         for user tcptracker: systemd-tmpfiles --create tcptracker.conf"
    )]
    LockDenied,
    #[error("`{command}` failed: {output}")]
    Failed { command: String, output: String },
}

/// iptables of one family and variant.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    name: &'static str,
    family: Family,
    is_nft: bool,
}

impl Program {
    /// Finds the variant that this host uses. Changes nothing.
    pub fn find(family: Family) -> Result<Self, RulesError> {
        let name = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        let found = Self::named(name, family)?;
        // update-alternatives may point `iptables` to the other variant while there are rules, and only
        // the variant that made them can delete them. A host with one variant may have the plain name only.
        Ok(Self::named(variant(family, found.is_nft), family).unwrap_or(found))
    }

    /// The other variant of the same family, if it is installed, too.
    pub fn other_variant(self) -> Option<Self> {
        Self::named(variant(self.family, !self.is_nft), self.family).ok()
    }

    fn named(name: &'static str, family: Family) -> Result<Self, RulesError> {
        let version = run(name, &["--version"], None)?;
        Ok(Self { name, family, is_nft: version.contains("nf_tables") })
    }

    pub fn family(self) -> Family {
        self.family
    }

    /// Whether nf_tables holds the rules, which has a generation counter; ip_tables has none.
    pub fn is_nft(self) -> bool {
        self.is_nft
    }

    /// Returns the table as `iptables-save` prints it with counters. `None` if nft(8) has added rules to
    /// it that iptables cannot express: then iptables shows none.
    pub fn save(self) -> Result<Option<String>, RulesError> {
        let saved = self.run("-save", &["-c", "-t", TABLE], None)?;
        let is_shown = !self.is_nft || !saved.contains(CANNOT_SHOW);
        Ok(is_shown.then_some(saved))
    }

    /// Returns a chain as `iptables -S` prints it with counters, whatever the other chains hold.
    pub fn list_chain(self, chain: &str) -> Result<String, RulesError> {
        self.run("", &["-w", WAIT, "-t", TABLE, "-v", "-S", chain], None)
    }

    /// Carries out these commands of `iptables-restore`, all or none, and keeps all other rules.
    pub fn restore(self, commands: &[String]) -> Result<(), RulesError> {
        let script = format!("*{TABLE}\n{}\nCOMMIT\n", commands.join("\n"));
        self.run("-restore", &["-w", WAIT, "--noflush"], Some(&script)).map(drop)
    }

    /// Adds a rule at the head or the end of a chain.
    pub fn add(self, chain: &str, rule: &str, at_head: bool) -> Result<(), RulesError> {
        self.change_rule(rule, |iptables, rule| {
            if at_head {
                iptables.insert(TABLE, chain, rule, 1)
            } else {
                iptables.append(TABLE, chain, rule)
            }
        })
    }

    /// Deletes a rule, which must be in the chain.
    pub fn delete(self, chain: &str, rule: &str) -> Result<(), RulesError> {
        self.change_rule(rule, |iptables, rule| iptables.delete(TABLE, chain, rule))
    }

    fn change_rule(
        self,
        rule: &str,
        change: impl Fn(&IPTables, &str) -> Result<(), Box<dyn Error>>,
    ) -> Result<(), RulesError> {
        let iptables =
            IPTables { cmd: self.name, has_check: true, has_wait: false, is_numeric: false };
        scheduling::step_aside();
        // The crate's own `--wait` has no limit.
        let rule = format!("{rule} -w {WAIT}");
        change(&iptables, &rule).map_err(|error| {
            let output = match error.downcast_ref::<IptablesError>() {
                Some(error) => error.msg.clone(),
                None => error.to_string(),
            };
            failure(format!("{} {rule}", self.name), &output)
        })
    }

    fn run(
        self,
        suffix: &str,
        arguments: &[&str],
        input: Option<&str>,
    ) -> Result<String, RulesError> {
        run(&format!("{}{suffix}", self.name), arguments, input)
    }
}

const fn variant(family: Family, is_nft: bool) -> &'static str {
    match (family, is_nft) {
        (Family::V4, true) => "iptables-nft",
        (Family::V4, false) => "iptables-legacy",
        (Family::V6, true) => "ip6tables-nft",
        (Family::V6, false) => "ip6tables-legacy",
    }
}

/// Runs a program and returns what it prints.
#[expect(clippy::disallowed_methods, reason = "this file starts the processes of the firewall")]
fn run(program: &str, arguments: &[&str], input: Option<&str>) -> Result<String, RulesError> {
    let command = || format!("{program} {}", arguments.join(" "));
    let output =
        start(Command::new(program).args(arguments), input).map_err(|error| {
            match error.kind() {
                ErrorKind::NotFound => RulesError::NotInstalled(program.to_owned()),
                _ => failure(command(), &error.to_string()),
            }
        })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(failure(command(), &String::from_utf8_lossy(&output.stderr)))
}

fn failure(command: String, output: &str) -> RulesError {
    if output.contains("can't open lock file") {
        return RulesError::LockDenied;
    }
    if output.contains("Permission denied") || output.contains("Operation not permitted") {
        return RulesError::NotPermitted;
    }
    RulesError::Failed { command, output: output.trim().to_owned() }
}

fn start(command: &mut Command, input: Option<&str>) -> std::io::Result<Output> {
    // The service manager listens to the service, not to its children.
    command.env_remove("NOTIFY_SOCKET");
    scheduling::step_aside();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        // A child that ends before it has read everything reports why.
        let _ = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output()
}
