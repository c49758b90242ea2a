//! Hooks, chain and rules of one instance in table `filter`, for one address family.
//!
//! Owns when the table is read and how it is changed: the chain `tcptracker`, the jumps to it from
//! built-in chains (hooks), and in it the rules with this instance's comment. Must not touch the rules
//! of other instances. Every operation is idempotent.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tracing::{debug, trace};

use crate::block::backend::FirewallError;
use crate::block::backend::activity::Activity;
use crate::block::backend::counter_totals::{CounterKey, DropCounter};
use crate::block::backend::nft_fallback;
use crate::block::backend::nftables::Nftables;
use crate::block::backend::program::{Program, RulesError};
use crate::block::backend::ruleset::{CHAIN, Inspection, RuleTemplate, Ruleset, Source};
use crate::config::FirewallConfig;
use crate::config::values::{Established, Hook, Target};
use crate::system::lock::Lock;
use crate::types::{Family, IfName, Moment};

/// Exists if the kernel supports IPv6. (`/proc/net` is hidden by `ProcSubset=pid`.)
const IPV6_PRESENT: &str = "/proc/self/net/if_inet6";

/// The longest wait for another instance that is changing rules.
const PATIENCE: Duration = Duration::from_secs(5);

/// ip_tables has no generation counter, so its table has to be read, which takes two processes: as
/// rarely as still allows a repair within a second.
const LEGACY_INTERVAL: Duration = Duration::from_millis(700);

/// Another program may change the table after it was read; then the change fails as a whole.
const ATTEMPTS: u32 = 3;

/// The most commands that a person has to type; a whole chain is emptied with one.
const MOST_TO_TYPE: usize = 4;

/// The rules of one instance and family.
pub struct Rules {
    program: Program,
    /// `Some` if nf_tables holds the rules.
    nftables: Option<Nftables>,
    template: RuleTemplate,
    hooks: Vec<Hook>,
    comment: String,
    /// The generation of the table, and when, at its last inspection.
    inspected: Option<(u32, Moment)>,
    /// When the table was last read, iptables could not show it.
    is_mixed: bool,
    /// When the table was last read, the chain held rules of other programs, which new rules must precede.
    comes_first: bool,
    counter: DropCounter,
    /// What removes everything of this instance, and what uses its sets elsewhere, as of the last reading.
    removal: Vec<String>,
    outside: Vec<String>,
    activity: Arc<Activity>,
}

/// The families that this host supports. Each is at position `family as usize`.
pub fn families() -> impl Iterator<Item = Family> {
    let is_supported =
        |family: &Family| *family == Family::V4 || std::path::Path::new(IPV6_PRESENT).exists();
    Family::ALL.into_iter().filter(is_supported)
}

impl Rules {
    /// Finds the program. Changes nothing. `matches` is what the rules match besides source and scope.
    pub fn find(
        interface: &IfName,
        family: Family,
        config: &FirewallConfig,
        established: Established,
        matches: &str,
        activity: &Arc<Activity>,
    ) -> Result<Self, FirewallError> {
        let program = Program::find(family, activity)?;
        let connect = || program.is_nft().then(|| Nftables::connect(family)).transpose();
        let nftables = connect()?;
        let comment = format!("tcptracker@{interface}");
        let counter = DropCounter::new(connect()?, comment.clone());
        let options = options(matches, &comment, established, config.target, family);
        Ok(Self {
            program,
            nftables,
            template: RuleTemplate::new(options),
            hooks: config.hooks.clone(),
            comment,
            inspected: None,
            is_mixed: false,
            comes_first: false,
            counter,
            removal: Vec::new(),
            outside: Vec::new(),
            activity: Arc::clone(activity),
        })
    }

    pub fn family(&self) -> Family {
        self.program.family()
    }

    /// Compares the table with what it should be.
    pub fn inspect(&mut self) -> Result<Inspection, FirewallError> {
        Ok(self.read()?.inspect(self.family(), &self.template, &self.hooks))
    }

    /// Inspects the table if it may have changed since the last call.
    pub fn inspect_if_changed(&mut self, now: Moment) -> Result<Option<Inspection>, FirewallError> {
        // The generation is read before the table, so that the next call finds a change in between.
        let generation = self.nftables.as_mut().map_or(Ok(0), Nftables::generation)?;
        let is_current = |(before, at)| {
            before == generation && (self.nftables.is_some() || now.since(at) < LEGACY_INTERVAL)
        };
        if self.inspected.is_some_and(is_current) {
            return Ok(None);
        }
        trace!(family = self.family().as_str(), "inspecting the firewall rules");
        let inspection = self.inspect()?;
        self.inspected = Some((generation, now));
        Ok(Some(inspection))
    }

    /// Removes the rules of other programs from the chain.
    pub fn clear_chain(&mut self) -> Result<(), FirewallError> {
        let _lock = self.lock();
        let is_occupied = Cell::new(false);
        let cleared = self.change(|ruleset, _| {
            is_occupied.set(ruleset.has_foreign_rules());
            ruleset.clearing()
        });
        cleared.map_err(|error| match error {
            FirewallError::Rules(error) if is_occupied.get() => FirewallError::Occupied {
                error: error.to_string(),
                command: format!("{} -F {CHAIN}", self.program.name()),
            },
            error => error,
        })
    }

    /// Removes every rule in the chain that uses a set of this instance.
    pub fn release_sets(&mut self) -> Result<(), FirewallError> {
        self.update_totals()?;
        let _lock = self.lock();
        self.change(|ruleset, rules| ruleset.release(&rules.comment))
    }

    /// The commands that a person may type to remove what is left of this instance, as of the last reading.
    pub fn to_type(&self) -> Vec<String> {
        let (in_chain, rest): (Vec<&String>, Vec<&String>) =
            self.removal.iter().partition(|command| command.starts_with(&format!("-D {CHAIN} ")));
        let name = self.program.name();
        let rest = rest.into_iter().map(|command| format!("{name} {command}"));
        if in_chain.len() > MOST_TO_TYPE {
            // Other instances repair their rules.
            return std::iter::once(format!("{name} -F {CHAIN}")).chain(rest).collect();
        }
        in_chain.iter().map(|command| format!("{name} {command}")).chain(rest).collect()
    }

    /// The commands that remove rules of other programs outside the chain that use this instance's sets.
    pub fn outside(&self) -> impl Iterator<Item = String> {
        self.outside.iter().map(|command| format!("{} {command}", self.program.name()))
    }

    pub fn counter(&self) -> DropCounter {
        self.counter.clone()
    }

    /// Makes hooks, chain and these rules exist, and removes all other rules of this instance.
    pub fn ensure(&mut self, desired: &BTreeSet<Source>) -> Result<(), FirewallError> {
        // A deleted rule takes its counter with it.
        self.update_totals()?;
        let _lock = self.lock();
        self.change(|ruleset, rules| ruleset.diff(desired, &rules.template, &rules.hooks))?;
        self.learn_template()
    }

    /// Removes this instance's rules and, after the last rule, hooks and chain.
    pub fn remove(&mut self) -> Result<(), FirewallError> {
        let _lock = self.lock();
        self.change(|ruleset, _| ruleset.removal())
    }

    /// Removes what a crashed instance has left in the other variant of iptables, whose rules this
    /// variant does not see: the administrator has switched between them.
    pub fn remove_from_other_variant(&self) -> Result<(), FirewallError> {
        let Some(other) = self.program.other_variant() else { return Ok(()) };
        let _lock = self.lock();
        let saved = other.save()?.unwrap_or_default();
        let commands = Ruleset::parse(&saved, &self.comment).removal();
        if commands.is_empty() { Ok(()) } else { Ok(other.restore(&commands)?) }
    }

    /// Adds the rule for a source, in front of rules of other programs.
    pub fn add(&mut self, source: IpNet) -> Result<(), FirewallError> {
        let rule = self.template.rule(Some(source));
        self.program.add(CHAIN, &rule, self.comes_first)?;
        self.learn_template()
    }

    /// Deletes the rule for a source, which must exist.
    pub fn delete(&mut self, source: IpNet) -> Result<(), FirewallError> {
        self.update_totals()?;
        Ok(self.program.delete(CHAIN, &self.template.rule(Some(source)))?)
    }

    /// Reads the counters if that takes no process. Otherwise every read of the table includes them.
    pub fn update_totals(&mut self) -> Result<(), FirewallError> {
        Ok(self.counter.update()?)
    }

    /// The packets that the rule for a source has matched.
    pub fn matched_by(&mut self, source: IpNet) -> Result<u64, FirewallError> {
        let ruleset = self.read()?;
        let mut counters = ruleset.counters();
        Ok(counters.find(|(of, _)| *of == Some(source)).map_or(0, |(_, packets)| packets))
    }

    fn learn_template(&mut self) -> Result<(), FirewallError> {
        if !self.template.is_learned() {
            let made = self.read()?;
            self.template.learn(&made);
        }
        Ok(())
    }

    fn read(&mut self) -> Result<Ruleset, FirewallError> {
        let saved = self.program.save()?;
        self.is_mixed = saved.is_none();
        let saved = match (saved, &mut self.nftables) {
            (Some(saved), _) => saved,
            (None, Some(nftables)) => {
                debug!(
                    "iptables cannot show table filter, which nft has changed: asking nf_tables"
                );
                nft_fallback::save(&self.program, nftables)?
            }
            // Only nf_tables can hold rules that iptables cannot show.
            (None, None) => String::new(),
        };
        let ruleset = Ruleset::parse(&saved, &self.comment);
        self.comes_first = ruleset.has_foreign_rules();
        self.removal = ruleset.removal();
        self.outside = ruleset.outside().collect();
        if self.nftables.is_none() {
            let counters = ruleset.counters();
            self.counter
                .record(counters.map(|(source, packets)| (CounterKey::Source(source), packets)));
        }
        Ok(ruleset)
    }

    /// Reads the table and carries out the commands that follow from it.
    fn change(
        &mut self,
        commands: impl Fn(&Ruleset, &Self) -> Vec<String>,
    ) -> Result<(), FirewallError> {
        let mut attempt = 1;
        loop {
            let ruleset = self.read()?;
            let commands = commands(&ruleset, self);
            if commands.is_empty() {
                return Ok(());
            }
            debug!(family = self.family().as_str(), ?commands, "changing the firewall rules");
            self.inspected = None;
            let result = match self.nftables.as_mut().filter(|_| self.is_mixed) {
                Some(nftables) => nft_fallback::restore(&self.program, nftables, &commands),
                None => self.program.restore(&commands).map_err(FirewallError::from),
            };
            match result {
                Err(FirewallError::Rules(RulesError::Failed { .. })) if attempt < ATTEMPTS => {
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    /// Held during changes that take several steps, so that one instance does not remove what another one
    /// installs. Without it the changes are right unless two instances make them at the same moment.
    fn lock(&self) -> Option<Lock> {
        // A stop needs its time for the changes.
        let patience = PATIENCE.min(self.activity.remaining(Moment::now()) / 4);
        Lock::await_free("tcptracker-rules", patience).ok()
    }
}

/// The options of every rule, except the source that it matches.
fn options(
    matches: &str,
    comment: &str,
    established: Established,
    target: Target,
    family: Family,
) -> String {
    // A segment with neither ACK nor RST is the first of a connection or a stealth probe (SYN, FIN,
    // NULL, XMAS); all later segments have ACK or RST. This needs no connection tracking, whose table a
    // flood can fill and which some hosts do not use.
    let scope = match established {
        Established::Keep => "-p tcp -m tcp --tcp-flags RST,ACK NONE ",
        Established::Cut => "",
    };
    let target = match (target, established, family) {
        (Target::Drop, _, _) => "DROP",
        // The answer of a closed port. It is valid for TCP only.
        (Target::Reject, Established::Keep, _) => "REJECT --reject-with tcp-reset",
        (Target::Reject, Established::Cut, Family::V4) => {
            "REJECT --reject-with icmp-port-unreachable"
        }
        (Target::Reject, Established::Cut, Family::V6) => {
            "REJECT --reject-with icmp6-port-unreachable"
        }
    };
    format!("{scope}{matches}-m comment --comment {comment} -j {target}")
}
