//! Hook, chain and rules in table `filter`, for both families.
//!
//! Owns when the table is looked at and how it is changed: the chain `tcptracker`, the jumps to it from
//! the built-in chains (hooks), and in it this instance's own rules, known by their comment. Other
//! instances' rules are never touched. Every operation is idempotent: what is already so is success.

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::IpNet;

use crate::block::backend::FirewallError;
use crate::block::backend::counter_totals::CounterTotals;
use crate::block::backend::nft_fallback;
use crate::block::backend::nftables::Nftables;
use crate::block::backend::program::{Program, RulesError};
use crate::block::backend::ruleset::{RuleTemplate, Ruleset, Source};
use crate::block::reconcile::Fault;
use crate::config::FirewallConfig;
use crate::config::values::{Established, Hook, Target};
use crate::system::lock::Lock;
use crate::types::clock::Moment;
use crate::types::ifname::IfName;
use crate::types::network::Family;

/// Where the kernel says that it speaks IPv6. (`/proc/net` is not there under `ProcSubset=pid`.)
const IPV6_PRESENT: &str = "/proc/self/net/if_inet6";

/// How long it is waited for another instance that changes rules.
const PATIENCE: Duration = Duration::from_secs(5);

/// ip_tables does not number its changes: all there is to do is to look, which takes two processes.
/// As seldom as something may be noticed and mended within a second.
const LEGACY_PACE: Duration = Duration::from_millis(700);

/// Another program may change the table between the look and the change, which then fails as a whole.
const ATTEMPTS: u32 = 3;

/// The rules of one instance.
pub struct Rules {
    sides: Vec<Side>,
    hooks: Vec<Hook>,
    comment: String,
    /// Where rules are kept by nf_tables.
    nftables: Option<Nftables>,
}

/// The rules of one family.
struct Side {
    program: Program,
    form: RuleTemplate,
    seen: Seen,
    /// Others have put rules into the table that iptables cannot show, as of the last look.
    is_mixed: bool,
    /// There are rules in our chain that are no instance's, as of the last look.
    has_strangers: bool,
    tally: CounterTotals<RuleKey>,
    /// Packets are counted since the start: what a killed instance's rules have counted is not ours.
    tally_begun: bool,
}

/// Up to which change of the table it was looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    Never,
    Generation(u32),
    At(Moment),
}

/// What a rule's counter is known by.
#[derive(Debug, PartialEq, Eq, Hash)]
enum RuleKey {
    /// nf_tables numbers its rules and uses no number twice.
    Handle(u64),
    /// ip_tables does not; there is one rule for each source.
    Source(Source),
}

/// Table `filter` as it is.
#[derive(Default)]
pub struct Look {
    /// What of chain and hooks is not as it should be.
    pub faults: Vec<Fault>,
    /// The sources of this instance's rules that are as they should be, each as often as it is there.
    pub fitting: Vec<Source>,
    /// How many of this instance's rules are otherwise.
    pub misfits: usize,
}

impl Rules {
    /// Finds iptables and ip6tables; changes nothing. The rules' form for a family, but for target and
    /// comment, is `matching`.
    pub fn find(
        interface: &IfName,
        config: &FirewallConfig,
        established: Established,
        matching: impl Fn(Family) -> String,
    ) -> Result<Self, FirewallError> {
        let comment = format!("tcptracker@{interface}");
        let mut sides = Vec::new();
        for family in Family::ALL {
            if family == Family::V6 && !std::path::Path::new(IPV6_PRESENT).exists() {
                continue;
            }
            let form = form(&matching(family), &comment, established, config.target, family);
            sides.push(Side {
                program: Program::find(family)?,
                form: RuleTemplate::new(form),
                seen: Seen::Never,
                is_mixed: false,
                has_strangers: false,
                tally: CounterTotals::starting_at([]),
                tally_begun: false,
            });
        }
        let nftables = if sides.iter().any(|side| side.program.is_nft) {
            Some(Nftables::connect()?)
        } else {
            None
        };
        Ok(Self { sides, hooks: config.hooks.clone(), comment, nftables })
    }

    /// The families this host speaks.
    pub fn families(&self) -> Vec<Family> {
        self.sides.iter().map(|side| side.program.family).collect()
    }

    /// Looks at the table.
    pub fn look(&mut self, family: Family) -> Result<Look, FirewallError> {
        let listing = self.list(family)?;
        let hooks = self.hooks.clone();
        let Some((side, _)) = self.side(family) else { return Ok(Look::default()) };
        let own = listing.own.iter().flatten();
        let fitting: Vec<Source> =
            own.filter(|rule| side.form.fits(rule)).map(|rule| rule.source).collect();
        let misfits = listing.own.iter().flatten().count() - fitting.len();
        Ok(Look { faults: listing.faults(family, &hooks), fitting, misfits })
    }

    /// Looks at the table if it may have changed since the last time.
    pub fn look_if_changed(
        &mut self,
        family: Family,
        now: Moment,
    ) -> Result<Option<Look>, FirewallError> {
        let Some((side, nftables)) = self.side(family) else { return Ok(None) };
        // Asked before the look: what changes meanwhile is seen at the next one.
        let seen = match nftables {
            Some(nftables) => Seen::Generation(nftables.generation()?),
            None => Seen::At(now),
        };
        let unchanged = match (side.seen, seen) {
            (Seen::At(before), Seen::At(now)) => now.since(before) < LEGACY_PACE,
            (before, now) => before == now,
        };
        if unchanged {
            return Ok(None);
        }
        let look = self.look(family)?;
        if let Some((side, _)) = self.side(family) {
            side.seen = seen;
        }
        Ok(Some(look))
    }

    /// Puts up chain, these rules and hooks, whatever of them is not there, and removes what else there
    /// is of this instance's.
    pub fn put_up(
        &mut self,
        family: Family,
        desired: &BTreeSet<Source>,
    ) -> Result<(), FirewallError> {
        let _alone = alone();
        let hooks = self.hooks.clone();
        self.change(family, |listing, form| listing.to_put_up(desired, form, &hooks))?;
        self.learn(family)
    }

    /// Takes down this instance's rules and, if they were the last, hooks and chain.
    pub fn take_down(&mut self, family: Family) -> Result<(), FirewallError> {
        let _alone = alone();
        self.change(family, |listing, _| listing.to_take_down())
    }

    /// Takes down what an instance that did not stop in order has left with the other kind of iptables,
    /// to which [`Self::list`] is blind: its administrator has changed from one to the other since.
    pub fn take_down_other_kind(&mut self, family: Family) -> Result<(), FirewallError> {
        let Some((side, _)) = self.side(family) else { return Ok(()) };
        let Some(other) = side.program.other_kind() else { return Ok(()) };
        let _alone = alone();
        let saved = other.save()?.unwrap_or_default();
        let commands = Ruleset::parse(&saved, &self.comment).to_take_down();
        if commands.is_empty() { Ok(()) } else { Ok(other.restore(&commands)?) }
    }

    /// Adds rules to the chain, all or none.
    pub fn add(&mut self, family: Family, sources: &[Source]) -> Result<(), FirewallError> {
        let Some((side, _)) = self.side(family) else { return Ok(()) };
        let in_front = side.has_strangers;
        let commands: Vec<String> =
            sources.iter().map(|source| side.form.add(*source, in_front)).collect();
        side.program.restore(&commands)?;
        if side.form.is_unseen() { self.learn(family) } else { Ok(()) }
    }

    /// Removes rules from the chain that are in it.
    pub fn delete(
        &mut self,
        family: Family,
        sources: impl IntoIterator<Item = Source>,
    ) -> Result<(), FirewallError> {
        // With a rule goes its counter.
        self.count(family)?;
        let Some((side, _)) = self.side(family) else { return Ok(()) };
        let commands: Vec<String> =
            sources.into_iter().map(|source| side.form.delete(source)).collect();
        Ok(side.program.restore(&commands)?)
    }

    /// Reads the counters where that takes no process; elsewhere every look reads them.
    pub fn count(&mut self, family: Family) -> Result<(), FirewallError> {
        let comment = self.comment.clone();
        let Some((side, Some(nftables))) = self.side(family) else { return Ok(()) };
        let counters = nftables.counters(family, &comment)?;
        side.read(counters.into_iter().map(|(handle, packets)| (RuleKey::Handle(handle), packets)));
        Ok(())
    }

    /// Packets the rule for a source has matched; none where there is no such rule.
    pub fn matched_by(&mut self, source: IpNet) -> Result<Option<u64>, FirewallError> {
        let listing = self.list(Family::of(source))?;
        let mut own = listing.own.iter().flatten();
        Ok(own.find(|rule| rule.source == Some(source)).map(|rule| rule.packets))
    }

    /// Packets the rules have matched since the start, as far as counted.
    pub fn matched(&self, family: Family) -> u64 {
        let side = self.sides.iter().find(|side| side.program.family == family);
        side.map_or(0, |side| side.tally.total())
    }

    fn learn(&mut self, family: Family) -> Result<(), FirewallError> {
        let listing = self.list(family)?;
        if let Some((side, _)) = self.side(family) {
            side.form.learn(&listing);
        }
        Ok(())
    }

    fn list(&mut self, family: Family) -> Result<Ruleset, FirewallError> {
        let comment = self.comment.clone();
        let Some((side, nftables)) = self.side(family) else { return Ok(Ruleset::default()) };
        let saved = side.program.save()?;
        side.is_mixed = saved.is_none();
        let saved = match (saved, nftables) {
            (Some(saved), _) => saved,
            (None, Some(nftables)) => nft_fallback::show(side.program, nftables)?,
            // Only what nf_tables keeps can be mixed.
            (None, None) => String::new(),
        };
        let listing = Ruleset::parse(&saved, &comment);
        side.has_strangers = listing.has_strangers;
        if !side.program.is_nft {
            let own = listing.own.iter().flatten();
            side.read(own.map(|rule| (RuleKey::Source(rule.source), rule.packets)));
        }
        Ok(listing)
    }

    /// Looks at the table and carries out what follows from it.
    fn change(
        &mut self,
        family: Family,
        commands: impl Fn(&Ruleset, &RuleTemplate) -> Vec<String>,
    ) -> Result<(), FirewallError> {
        let mut attempt = 1;
        loop {
            let listing = self.list(family)?;
            let Some((side, nftables)) = self.side(family) else { return Ok(()) };
            let commands = commands(&listing, &side.form);
            if commands.is_empty() {
                return Ok(());
            }
            side.seen = Seen::Never;
            let carried_out = match nftables.filter(|_| side.is_mixed) {
                Some(nftables) => nft_fallback::handle(side.program, nftables, &commands),
                None => side.program.restore(&commands).map_err(FirewallError::from),
            };
            match carried_out {
                Err(FirewallError::Rules(RulesError::Failed { .. })) if attempt < ATTEMPTS => {
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    /// A family's side, with nf_tables where its rules are kept there.
    fn side(&mut self, family: Family) -> Option<(&mut Side, Option<&mut Nftables>)> {
        let side = self.sides.iter_mut().find(|side| side.program.family == family)?;
        let nftables = self.nftables.as_mut().filter(|_| side.program.is_nft);
        Some((side, nftables))
    }
}

impl Side {
    fn read(&mut self, readings: impl Iterator<Item = (RuleKey, u64)>) {
        if std::mem::replace(&mut self.tally_begun, true) {
            self.tally.read(readings);
        } else {
            self.tally = CounterTotals::starting_at(readings);
        }
    }
}

/// What every rule says, but for the source it asks for.
fn form(
    matching: &str,
    comment: &str,
    established: Established,
    target: Target,
    family: Family,
) -> String {
    // A segment with neither ACK nor RST is the first of a connection, or a stealth probe (SYN, FIN,
    // NULL, XMAS); every later one has ACK or RST. This needs no connection tracking, which a flood
    // could fill and which some hosts do without.
    let scope = match established {
        Established::Keep => "-p tcp -m tcp --tcp-flags RST,ACK NONE ",
        Established::Cut => "",
    };
    let target = match (target, established, family) {
        (Target::Drop, _, _) => "DROP",
        // As a closed port answers. Only TCP can be answered so.
        (Target::Reject, Established::Keep, _) => "REJECT --reject-with tcp-reset",
        (Target::Reject, Established::Cut, Family::V4) => {
            "REJECT --reject-with icmp-port-unreachable"
        }
        (Target::Reject, Established::Cut, Family::V6) => {
            "REJECT --reject-with icmp6-port-unreachable"
        }
    };
    format!("{scope}{matching}-m comment --comment {comment} -j {target}")
}

/// Held while rules come and go in several steps, so that one instance does not take down what another
/// puts up. Without it the steps are right unless two instances come or go at the same moment.
fn alone() -> Option<Lock> {
    Lock::await_free("tcptracker-rules", PATIENCE).ok()
}
