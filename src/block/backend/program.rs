//! The programs of iptables: finding them, running them, and reading what they print.
//!
//! Owns the only processes that the service starts. `iptables-save` reads table `filter`;
//! `iptables-restore` makes several changes, all or none; the crate `iptables` makes single ones, and can
//! neither limit nor end its programs, so that only the rules thread may call it. Must not know any chain or
//! rule.

use std::error::Error;
use std::io::ErrorKind;
use std::process::Command;
use std::sync::Arc;

use iptables::IPTables;
use iptables::error::IptablesError;

use crate::block::backend::activity::{Activity, LIMIT};
use crate::system::process::output_by;
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
    #[error(
        "`{0}` did not end within {limit} s and was killed; find out what it waits for",
        limit = LIMIT.as_secs()
    )]
    TimedOut(String),
    #[error("`{0}` has not ended for more than {limit} s", limit = LIMIT.as_secs())]
    Hangs(String),
}

impl RulesError {
    /// Whether the next attempt may succeed without a change by an administrator.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Failed { .. } | Self::TimedOut(_) | Self::Hangs(_))
    }
}

/// iptables of one family and variant.
#[derive(Clone, Debug)]
pub struct Program {
    name: &'static str,
    family: Family,
    is_nft: bool,
    activity: Arc<Activity>,
}

impl Program {
    /// Finds the variant that this host uses. Changes nothing.
    pub fn find(family: Family, activity: &Arc<Activity>) -> Result<Self, RulesError> {
        let name = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        let found = Self::named(name, family, activity)?;
        // update-alternatives may point `iptables` to the other variant while there are rules, and only
        // the variant that made them can delete them. A host with one variant may have the plain name only.
        Ok(Self::named(variant(family, found.is_nft), family, activity).unwrap_or(found))
    }

    /// Whether this host has the programs that make rules.
    pub fn is_installed() -> bool {
        // An ordinary user, who asks `doctor`, does not have the directories of system programs in PATH.
        let mut path = std::env::var_os("PATH").unwrap_or_default();
        if !rustix::process::geteuid().is_root() {
            path.push(":/usr/sbin:/sbin");
        }
        ["iptables", "iptables-restore"]
            .into_iter()
            .all(|name| std::env::split_paths(&path).any(|directory| directory.join(name).exists()))
    }

    /// The other variant of the same family, if it is installed, too.
    pub fn other_variant(&self) -> Option<Self> {
        Self::named(variant(self.family, !self.is_nft), self.family, &self.activity).ok()
    }

    fn named(
        name: &'static str,
        family: Family,
        activity: &Arc<Activity>,
    ) -> Result<Self, RulesError> {
        let version = run(activity, name, &["--version"], "")?;
        let is_nft = version.contains("nf_tables");
        Ok(Self { name, family, is_nft, activity: Arc::clone(activity) })
    }

    pub fn family(&self) -> Family {
        self.family
    }

    /// The plain command, for a person to type.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether nf_tables holds the rules, which has a generation counter; ip_tables has none.
    pub fn is_nft(&self) -> bool {
        self.is_nft
    }

    /// Returns the table as `iptables-save` prints it with counters. `None` if nft(8) has added rules to
    /// it that iptables cannot express: then iptables shows none.
    pub fn save(&self) -> Result<Option<String>, RulesError> {
        let saved = self.run("-save", &["-c", "-t", TABLE], "")?;
        let is_shown = !self.is_nft || !saved.contains(CANNOT_SHOW);
        Ok(is_shown.then_some(saved))
    }

    /// Returns a chain as `iptables -S` prints it with counters, whatever the other chains hold.
    pub fn list_chain(&self, chain: &str) -> Result<String, RulesError> {
        self.run("", &["-w", WAIT, "-t", TABLE, "-v", "-S", chain], "")
    }

    /// Carries out these commands of `iptables-restore`, all or none, and keeps all other rules.
    pub fn restore(&self, commands: &[String]) -> Result<(), RulesError> {
        let script = format!("*{TABLE}\n{}\nCOMMIT\n", commands.join("\n"));
        self.run("-restore", &["-w", WAIT, "--noflush"], &script).map(drop)
    }

    /// Adds a rule at the head or the end of a chain.
    pub fn add(&self, chain: &str, rule: &str, at_head: bool) -> Result<(), RulesError> {
        self.change_rule(rule, |iptables, rule| {
            if at_head {
                iptables.insert(TABLE, chain, rule, 1)
            } else {
                iptables.append(TABLE, chain, rule)
            }
        })
    }

    /// Deletes a rule, which must be in the chain.
    pub fn delete(&self, chain: &str, rule: &str) -> Result<(), RulesError> {
        self.change_rule(rule, |iptables, rule| iptables.delete(TABLE, chain, rule))
    }

    fn change_rule(
        &self,
        rule: &str,
        change: impl Fn(&IPTables, &str) -> Result<(), Box<dyn Error>>,
    ) -> Result<(), RulesError> {
        let iptables =
            IPTables { cmd: self.name, has_check: true, has_wait: false, is_numeric: false };
        // The crate's own `--wait` has no limit.
        let rule = format!("{rule} -w {WAIT}");
        let command = format!("{} {rule}", self.name);
        let running = self.activity.begin(&command);
        let changed = change(&iptables, &rule);
        running.end(false);
        changed.map_err(|error| {
            let output = match error.downcast_ref::<IptablesError>() {
                Some(error) => error.msg.clone(),
                None => error.to_string(),
            };
            failure(command, &output)
        })
    }

    fn run(&self, suffix: &str, arguments: &[&str], input: &str) -> Result<String, RulesError> {
        run(&self.activity, &format!("{}{suffix}", self.name), arguments, input)
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

/// Runs a program and returns what it prints. Kills it if it takes too long.
#[expect(clippy::disallowed_methods, reason = "this file starts the processes of the firewall")]
fn run(
    activity: &Activity,
    program: &str,
    arguments: &[&str],
    input: &str,
) -> Result<String, RulesError> {
    let command = format!("{program} {}", arguments.join(" "));
    let mut process = Command::new(program);
    // The service manager listens to the service, not to its children.
    process.args(arguments).env_remove("NOTIFY_SOCKET");
    let running = activity.begin(&command);
    let output = output_by(&mut process, input, &|| running.deadline());
    running.end(output.as_ref().is_err_and(|error| error.kind() == ErrorKind::TimedOut));
    let output = output.map_err(|error| match error.kind() {
        ErrorKind::NotFound => RulesError::NotInstalled(program.to_owned()),
        ErrorKind::TimedOut => RulesError::TimedOut(command.clone()),
        _ => failure(command.clone(), &error.to_string()),
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(failure(command, &String::from_utf8_lossy(&output.stderr)))
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
