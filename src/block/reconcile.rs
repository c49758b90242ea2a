//! Reconciliation: what other programs remove or change of the firewall is noticed, repaired within a
//! second, and reported.
//!
//! Owns the words for what can be wrong and the pause between repairs: another program that undoes each
//! repair at once must not keep the processor busy, nor fill the journal. Looking and repairing are the back end's and the
//! rules'.

use std::fmt;
use std::ops::Bound;
use std::time::Duration;

use ipnet::IpNet;

use crate::block::backend::FirewallError;
use crate::block::last_minute::LastMinute;
use crate::block::ledger::Ledger;
use crate::config::values::Hook;
use crate::types::{Family, Moment};

/// Repairs within a minute that are made without a pause: an administrator may reload a firewall as often.
const AT_ONCE: usize = 5;

/// So many repairs within a minute mean that another program undoes them.
const FIGHT: usize = 8;

/// The pause after each further repair: whatever another program does, repairs come within a second.
const PAUSE: Duration = Duration::from_secs(1);

/// How often a repair is reported while another program undoes repairs.
const REPORT: Duration = Duration::from_secs(10);

/// What is wrong with a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookFault {
    /// The built-in chain does not jump to tcptracker's chain.
    Gone,
    /// It does, but after another rule, or more than once.
    NotFirst,
}

/// A difference between the kernel and the desired state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The jump from a built-in chain to tcptracker's chain.
    Hook { family: Family, hook: Hook, is: HookFault },
    /// tcptracker's chain is missing.
    Chain(Family),
    /// This instance's rule is missing or changed.
    Rule(Family),
    /// Another program's rule comes before this instance's.
    Behind(Family),
    /// The set is missing or of another type.
    Set(Family),
    Members {
        family: Family,
        /// Blocked networks that are not in the set.
        missing: usize,
        /// Networks in the set that are not blocked.
        stray: usize,
    },
}

impl Fault {
    pub const fn family(&self) -> Family {
        match self {
            Self::Chain(family)
            | Self::Rule(family)
            | Self::Behind(family)
            | Self::Set(family)
            | Self::Hook { family, .. }
            | Self::Members { family, .. } => *family,
        }
    }

    /// Whether packets of all blocked sources of the family may pass.
    pub const fn breaks_all(&self) -> bool {
        !matches!(self, Self::Members { .. })
    }

    /// What the fault means for the blocks, the worst first.
    const fn effect(&self) -> &'static str {
        match self {
            Self::Hook { is: HookFault::Gone, .. }
            | Self::Chain(_)
            | Self::Rule(_)
            | Self::Set(_) => EFFECTS[0],
            Self::Members { missing: 1.., .. } => EFFECTS[1],
            Self::Hook { is: HookFault::NotFirst, .. } | Self::Behind(_) => EFFECTS[2],
            Self::Members { .. } => EFFECTS[3],
        }
    }
}

/// What faults mean for the blocks, the worst first.
const EFFECTS: [&str; 4] = [
    "blocks are not enforced",
    "some blocks are not enforced",
    "blocks may not be enforced",
    "the kernel drops packets of sources that are not blocked",
];

/// Why blocks are not, or may not be, enforced: the worst effect of these faults, and the faults.
fn reason(faults: &[Fault]) -> String {
    let has = |effect: &&str| faults.iter().any(|fault| fault.effect() == *effect);
    let worst = EFFECTS.into_iter().find(has).unwrap_or(EFFECTS[0]);
    format!("{worst}: {}", list_of(faults))
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = self.family().as_str();
        match self {
            Self::Hook { hook, is: HookFault::Gone, .. } => {
                write!(f, "hook {} ({family}) was missing", hook.as_str())
            }
            Self::Hook { hook, is: HookFault::NotFirst, .. } => {
                write!(f, "hook {} ({family}) was not the first rule", hook.as_str())
            }
            Self::Chain(_) => write!(f, "chain tcptracker ({family}) was missing"),
            Self::Rule(_) => write!(f, "rule ({family}) was missing or changed"),
            Self::Behind(_) => write!(f, "rule ({family}) was not first"),
            Self::Set(_) => write!(f, "set ({family}) was missing or of another type"),
            Self::Members { missing, stray, .. } => {
                let (first, second) = match (missing, stray) {
                    (0, stray) => ((stray, "unexpected"), None),
                    (missing, 0) => ((missing, "missing"), None),
                    (missing, stray) => ((missing, "missing"), Some((stray, "unexpected"))),
                };
                let were = |count: &usize| if *count == 1 { "was" } else { "were" };
                let (count, what) = first;
                let members = if *count == 1 { "member" } else { "members" };
                write!(f, "{count} set {members} ({family}) {} {what}", were(count))?;
                second.map_or(Ok(()), |(count, what)| write!(f, ", {count} {} {what}", were(count)))
            }
        }
    }
}

/// Faults in one line.
pub fn list_of(faults: &[Fault]) -> String {
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// What the kernel has to hold now: the ledger, as a back end needs it.
#[derive(Clone, Copy)]
pub struct DesiredState<'a> {
    ledger: &'a Ledger,
    now: Moment,
}

impl<'a> DesiredState<'a> {
    pub fn of(ledger: &'a Ledger, now: Moment) -> Self {
        Self { ledger, now }
    }

    pub fn now(&self) -> Moment {
        self.now
    }

    /// How many networks of a family.
    pub fn count(&self, family: Family) -> usize {
        self.ledger.count(family) as usize
    }

    /// The networks of a family, and how long the kernel has to hold each.
    pub fn members(&self, family: Family) -> impl Iterator<Item = (IpNet, Duration)> + use<'a> {
        self.members_from(family, Bound::Unbounded)
    }

    /// The networks of a family from this one on, and how long the kernel has to hold each.
    pub fn members_from(
        &self,
        family: Family,
        from: Bound<IpNet>,
    ) -> impl Iterator<Item = (IpNet, Duration)> + use<'a> {
        let Self { ledger, now } = *self;
        ledger.blocks_of(family, from).map(move |(network, block)| {
            let remaining = block.until.map(|until| until.since(now));
            (*network, ledger.kernel_time(remaining))
        })
    }

    /// The shortest time for which the kernel has to hold a network from this moment on: until it is told
    /// again. None if the network is not blocked.
    pub fn least(&self, network: &IpNet, moment: Moment) -> Option<Duration> {
        self.ledger.due(network).map(|due| due.since(moment))
    }

    /// How many networks of a family the kernel need not hold any more at this moment, which comes after
    /// `now`.
    pub fn over(&self, family: Family, moment: Moment) -> usize {
        self.ledger.expired(family, moment)
    }
}

/// Returns when the next repair may be made. There is no pause after the first few repairs within a minute.
fn next_repair(repairs: &mut LastMinute, now: Moment) -> Moment {
    let count = repairs.count(now);
    let Some(latest) = repairs.latest() else { return now };
    if count < AT_ONCE { latest } else { latest + PAUSE }
}

/// Decides when a difference between the kernel and the desired state is repaired, and what to say about it.
#[derive(Debug, Default)]
pub struct Reconciler {
    repairs: LastMinute,
    /// Why blocks are not enforced, or were not until a moment ago: another program that undid repairs may
    /// only be pausing.
    trouble: Option<String>,
    /// Another program undoes repairs.
    is_fight: bool,
    /// The last repair did not succeed.
    has_failed: bool,
    /// When a repair was last reported.
    reported: Option<Moment>,
}

impl Reconciler {
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Takes the faults that a check has found. Returns what has to be repaired now.
    pub fn due(&mut self, faults: Vec<Fault>, now: Moment) -> Vec<Fault> {
        if faults.is_empty() {
            self.settle(now);
            return faults;
        }
        let waits = now < next_repair(&mut self.repairs, now);
        // A failed repair explains more than the wait for the next one.
        if !self.has_failed && (waits || self.repairs.count(now) >= FIGHT) {
            self.is_fight = true;
            // There is no number here, which would change with each repair and make a new reason each time.
            self.trouble = Some(format!(
                "another program keeps undoing repairs of the firewall; repairing once a second; now {}",
                reason(&faults)
            ));
        } else if !waits {
            self.trouble.get_or_insert_with(|| reason(&faults));
        }
        if waits { Vec::new() } else { faults }
    }

    /// Takes what a check has found after a repair of these faults. Returns whether to report the repair:
    /// everything is as it should be, and another program does not undo each repair.
    pub fn repaired(
        &mut self,
        faults: &[Fault],
        left: &Result<Vec<Fault>, FirewallError>,
        now: Moment,
    ) -> bool {
        self.repairs.add(now);
        self.has_failed = left.is_err();
        self.trouble = match left {
            Ok(left) if left.is_empty() => {
                self.settle(now);
                let is_due = self.reported.is_none_or(|at| now.since(at) >= REPORT);
                if self.is_fight && !is_due {
                    return false;
                }
                self.reported = Some(now);
                return true;
            }
            Ok(left) => Some(reason(left)),
            Err(error) => Some(format!("{}; repair failed: {error}", reason(faults))),
        };
        false
    }

    /// Ends the trouble, unless a program that undid repairs may only be pausing.
    fn settle(&mut self, now: Moment) {
        self.is_fight &= self.repairs.count(now) >= AT_ONCE;
        if !self.is_fight {
            self.trouble = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repairs_in_a_fight_come_once_a_second() {
        let at = |millis: u64| Moment::from_nanos(millis * 1_000_000);
        let mut minute = LastMinute::default();
        let mut repairs = Vec::new();
        // For ten minutes, each repair is undone at once.
        for millis in (0..600_000).step_by(200) {
            if next_repair(&mut minute, at(millis)) <= at(millis) {
                minute.add(at(millis));
                repairs.push(millis);
            }
        }
        assert_eq!(repairs[..6], [0, 200, 400, 600, 800, 1800], "the first ones at once");
        let pauses = repairs[5..].windows(2).map(|pair| pair[1] - pair[0]);
        assert_eq!((pauses.clone().min(), pauses.max()), (Some(1000), Some(1000)));
        let later = repairs.last().unwrap() + 60_000;
        assert_eq!(next_repair(&mut minute, at(later)), at(later));
    }

    #[test]
    fn trouble_names_the_effect_of_the_worst_fault() {
        let family = Family::V4;
        let hook = |is| Fault::Hook { family, hook: Hook::Input, is };
        let members = |missing, stray| Fault::Members { family, missing, stray };
        for (faults, reason) in [
            (
                vec![hook(HookFault::NotFirst)],
                "blocks may not be enforced: hook INPUT (ipv4) was not the first rule",
            ),
            (
                vec![hook(HookFault::Gone), members(3, 2)],
                "blocks are not enforced: hook INPUT (ipv4) was missing, 3 set members (ipv4) were \
                 missing, 2 were unexpected",
            ),
            (
                vec![Fault::Behind(family), members(1, 0)],
                "some blocks are not enforced: rule (ipv4) was not first, 1 set member (ipv4) was \
                 missing",
            ),
            (
                vec![members(0, 1)],
                "the kernel drops packets of sources that are not blocked: 1 set member (ipv4) was \
                 unexpected",
            ),
        ] {
            assert_eq!(super::reason(&faults), reason);
        }
    }
}
