//! The programs of iptables: found, run, and what they say understood.
//!
//! Owns starting them, the only processes the service starts: iptables itself to know what there is,
//! `iptables-save` to see table `filter`, and `iptables-restore` to change it, all changes at once or none.
//! Knows no chain or rule.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use crate::types::network::Family;

/// The table all of it is about.
const TABLE: &str = "filter";

/// Seconds to wait for another program that is changing rules (iptables-legacy has a lock).
const PATIENCE: &str = "5";

/// What `iptables-save` says, with success, of a table it shows nothing of.
const MIXED: &str = "is incompatible, use 'nft' tool";

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
    /// It is iptables-legacy, whose lock the service's user may not have.
    #[error(
        "the lock of iptables, /run/xtables.lock, cannot be opened; for user tcptracker: \
         systemd-tmpfiles --create tcptracker.conf"
    )]
    LockDenied,
    /// The program said no.
    #[error("`{command}` failed: {said}")]
    Failed {
        /// As one would type it.
        command: String,
        /// What it printed.
        said: String,
    },
}

/// iptables of one family.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// The family.
    pub family: Family,
    /// Its rules are kept by nf_tables, which numbers every change; not by the older ip_tables.
    pub is_nft: bool,
}

impl Program {
    /// Finds it; changes nothing.
    pub fn find(family: Family) -> Result<Self, RulesError> {
        let name = name_of(family);
        let version = run(name, &["--version"], None)?.ok_or(RulesError::NotInstalled(name))?;
        Ok(Self { family, is_nft: is_nft(&version) })
    }

    /// The other kind's of the same family, where it is installed beside this one.
    pub fn other_kind(self) -> Option<Self> {
        let other = Self { is_nft: !self.is_nft, ..self };
        // Where there is one kind only, that one answers.
        let version = other.run("", &["--version"], None).ok()?;
        (is_nft(&version) == other.is_nft).then_some(other)
    }

    /// The table, as `iptables-save` prints it with counters; none where it has rules that only nf_tables
    /// knows, made by nft(8), for whose sake iptables shows none at all.
    pub fn save(self) -> Result<Option<String>, RulesError> {
        let saved = self.run("-save", &["-c", "-t", TABLE], None)?;
        let is_mixed = self.is_nft && saved.contains(MIXED);
        Ok((!is_mixed).then_some(saved))
    }

    /// A chain, as `iptables -S` prints it with counters. Works whatever is in others.
    pub fn chain(self, chain: &str) -> Result<String, RulesError> {
        self.run("", &["-w", PATIENCE, "-t", TABLE, "-v", "-S", chain], None)
    }

    /// Carries out these commands of `iptables-restore`, all or none, and leaves the rest as it is.
    pub fn restore(self, commands: &[String]) -> Result<(), RulesError> {
        let script = format!("*{TABLE}\n{}\nCOMMIT\n", commands.join("\n"));
        self.run("-restore", &["-w", PATIENCE, "--noflush"], Some(&script)).map(drop)
    }

    /// Starts it under the name of its kind: which one `iptables` is may be changed while there are rules
    /// of ours (update-alternatives), and whoever made them has to take them away.
    fn run(
        self,
        suffix: &str,
        arguments: &[&str],
        input: Option<&str>,
    ) -> Result<String, RulesError> {
        let name = name_of(self.family);
        let kind = if self.is_nft { "nft" } else { "legacy" };
        let said = match run(&format!("{name}-{kind}{suffix}"), arguments, input)? {
            Some(said) => Some(said),
            // Where there is one kind only.
            None => run(&format!("{name}{suffix}"), arguments, input)?,
        };
        said.ok_or(RulesError::NotInstalled(name))
    }
}

/// What a program prints; none where there is no such program.
#[expect(clippy::disallowed_methods, reason = "this file starts the processes of the firewall")]
fn run(
    program: &str,
    arguments: &[&str],
    input: Option<&str>,
) -> Result<Option<String>, RulesError> {
    let failed = |said: &str| RulesError::Failed {
        command: format!("{program} {}", arguments.join(" ")),
        said: said.trim().to_owned(),
    };
    let output = match start(Command::new(program).args(arguments), input) {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(&error.to_string())),
    };
    if output.status.success() {
        return Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("can't open lock file") {
        return Err(RulesError::LockDenied);
    }
    if said.contains("Permission denied") || said.contains("Operation not permitted") {
        return Err(RulesError::NotPermitted);
    }
    Err(failed(&said))
}

fn name_of(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

/// Whether what `iptables --version` prints is the kind whose rules nf_tables keeps.
fn is_nft(version: &str) -> bool {
    version.contains("nf_tables")
}

fn start(command: &mut Command, input: Option<&str>) -> std::io::Result<Output> {
    // It is none of the service manager's business what becomes of a child.
    command.env_remove("NOTIFY_SOCKET");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        // Who ends before having read everything has said why.
        let _ = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output()
}
