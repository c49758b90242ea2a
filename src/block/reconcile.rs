//! Healing: what others remove or change of the kernel's side of the blocks is noticed, told, and put
//! right within a second.
//!
//! Owns the words for what can be wrong, and the pace: a program that undoes every mend at once must
//! not be answered as fast for ever. Looking and mending themselves are the backend's.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Bound;
use std::time::Duration;

use ipnet::IpNet;

use crate::block::backend::{Backend, FirewallError};
use crate::block::ledger::Ledger;
use crate::config::values::Hook;
use crate::handles::events::EventSink;
use crate::handles::health::{Component, Health};
use crate::types::clock::Moment;
use crate::types::event::Event;
use crate::types::network::Family;

/// Mends in a minute that are made at once: an administrator may well reload a firewall so often.
const AT_ONCE: usize = 5;

const MINUTE: Duration = Duration::from_secs(60);

/// What is wrong with a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookFault {
    /// The built-in chain does not jump to ours.
    Gone,
    /// It does, but behind another rule, or more than once.
    NotFirst,
}

/// Something in the kernel that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The jump from a built-in chain to ours.
    Hook {
        /// Of this family.
        family: Family,
        /// From this chain.
        hook: Hook,
        /// What is wrong with it.
        is: HookFault,
    },
    /// Our chain is gone.
    Chain(Family),
    /// This instance's rule is gone or another.
    Rule(Family),
    /// Another's rule stands in front of this instance's.
    Behind(Family),
    /// The set is gone or of another kind.
    Set(Family),
    /// Blocked networks are missing, or some are there that nobody has blocked.
    Members {
        /// Of this family.
        family: Family,
        /// How many of the blocked are not there.
        missing: usize,
        /// How many are there and not blocked.
        stray: usize,
    },
}

impl Fault {
    /// The family it is about.
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

    /// Whether it keeps everything of its family from being dropped.
    pub const fn breaks_all(&self) -> bool {
        !matches!(self, Self::Members { .. })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = self.family().as_str();
        match self {
            Self::Hook { hook, is: HookFault::Gone, .. } => {
                write!(f, "hook {} ({family}) gone", hook.as_str())
            }
            Self::Hook { hook, is: HookFault::NotFirst, .. } => {
                write!(f, "hook {} ({family}) not the first rule", hook.as_str())
            }
            Self::Chain(_) => write!(f, "chain tcptracker ({family}) gone"),
            Self::Rule(_) => write!(f, "rule ({family}) gone or changed"),
            Self::Behind(_) => write!(f, "rule ({family}) behind another's"),
            Self::Set(_) => write!(f, "set ({family}) gone or of another kind"),
            Self::Members { missing, stray: 0, .. } => {
                write!(f, "{missing} blocked ({family}) missing")
            }
            Self::Members { missing: 0, stray, .. } => {
                write!(f, "{stray} not blocked ({family}) there")
            }
            Self::Members { missing, stray, .. } => {
                write!(f, "{missing} blocked ({family}) missing and {stray} not blocked there")
            }
        }
    }
}

fn listed(faults: &[Fault]) -> String {
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// What the kernel ought to hold now: the ledger, as a backend needs it.
#[derive(Clone, Copy)]
pub struct DesiredState<'a> {
    ledger: &'a Ledger,
    now: Moment,
}

impl<'a> DesiredState<'a> {
    /// What a ledger wants.
    pub fn of(ledger: &'a Ledger, now: Moment) -> Self {
        Self { ledger, now }
    }

    /// The present.
    pub fn now(&self) -> Moment {
        self.now
    }

    /// How many networks of a family.
    pub fn count(&self, family: Family) -> usize {
        self.ledger.count(family) as usize
    }

    /// The networks of a family, and for how long the kernel is to be told to hold each.
    pub fn members(&self, family: Family) -> impl Iterator<Item = (IpNet, Duration)> + use<'a> {
        self.members_from(family, Bound::Unbounded)
    }

    /// The same from somewhere on.
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

    /// For how long at least the kernel has to hold a network from this moment on: until it would be told again.
    /// None where it is not to be held at all.
    pub fn least(&self, network: &IpNet, moment: Moment) -> Option<Duration> {
        self.ledger.due(network).map(|due| due.since(moment))
    }

    /// How many networks of a family need not be held any more at this moment, which comes after the present.
    pub fn over(&self, family: Family, moment: Moment) -> usize {
        self.ledger.over(family, moment)
    }
}

/// How soon after the last mends the next one may be.
#[derive(Debug, Default)]
struct Backoff {
    /// The mends of the last minute.
    recent: VecDeque<Moment>,
}

impl Backoff {
    /// When the next one may be. The more there were within a minute, the longer the pause: the first
    /// few at once, then a second, two, four, … which settles at some nine a minute.
    fn next(&mut self, now: Moment) -> Moment {
        while self.recent.front().is_some_and(|first| now.since(*first) >= MINUTE) {
            self.recent.pop_front();
        }
        let Some(last) = self.recent.back() else { return now };
        match self.recent.len().checked_sub(AT_ONCE) {
            None => *last,
            Some(more) => *last + Duration::from_secs(1 << more.min(5)),
        }
    }

    fn count(&mut self, now: Moment) {
        self.recent.push_back(now);
    }

    /// Whether there were so many that somebody must be undoing them.
    fn is_fight(&self) -> bool {
        self.recent.len() >= AT_ONCE
    }
}

/// Looks after the kernel's side.
#[derive(Debug, Default)]
pub struct Reconciler {
    backoff: Backoff,
    /// It was told that something is wrong.
    is_told: bool,
    /// Somebody undoes what is mended.
    is_fight: bool,
    /// The last mend did not succeed.
    has_failed: bool,
    /// Packets that backends before this one have dropped, by family.
    dropped_before: [u64; 2],
}

impl Reconciler {
    /// Another backend takes the place of this one, whose count goes on.
    pub fn take_over_count(&mut self, backend: &dyn Backend) {
        for (before, family) in self.dropped_before.iter_mut().zip(Family::ALL) {
            *before += backend.dropped(family);
        }
    }

    fn show_enforced(&self, backend: &dyn Backend, health: &Health) {
        for (before, family) in self.dropped_before.iter().zip(Family::ALL) {
            health.set_enforced(family, backend.enforced(family), before + backend.dropped(family));
        }
    }

    /// Looks whether all is in the kernel that ought to be, and mends what is not. Fails only where it
    /// could not even look.
    pub fn reconcile(
        &mut self,
        backend: &mut dyn Backend,
        desired: &DesiredState<'_>,
        health: &Health,
        events: &EventSink,
    ) -> Result<(), FirewallError> {
        let now = desired.now();
        let next = self.backoff.next(now);
        let faults = backend.check(desired)?;
        self.show_enforced(backend, health);
        if faults.is_empty() {
            self.all_is_well(health);
            return Ok(());
        }
        let found = listed(&faults);
        if now < next {
            // Why a mend failed was told already.
            if !self.has_failed {
                (self.is_fight, self.is_told) = (true, true);
                // Without a number, which would be another each time, and told each time.
                health.set_degraded(
                    Component::Enforcement,
                    format!(
                        "another program keeps changing what blocks are enforced with; mended again \
                         and again, at ever longer intervals; now {found}"
                    ),
                );
            }
            return Ok(());
        }
        // Seen by whoever looks while it is mended; what becomes of it is told below.
        if !std::mem::replace(&mut self.is_told, true) {
            health
                .set_degraded(Component::Enforcement, format!("blocks are not enforced: {found}"));
        }
        self.backoff.count(now);
        let left = backend.repair(desired).and_then(|()| backend.check(desired));
        self.has_failed = left.is_err();
        self.show_enforced(backend, health);
        match left {
            Ok(left) if left.is_empty() => {
                events.emit(Event::Repaired { found });
                self.all_is_well(health);
            }
            Ok(left) => {
                let left = listed(&left);
                health.set_degraded(
                    Component::Enforcement,
                    format!("blocks are not enforced: {left}"),
                );
            }
            Err(error) => {
                let text = format!("blocks are not enforced: {found}; mending failed: {error}");
                health.set_degraded(Component::Enforcement, text);
            }
        }
        Ok(())
    }

    fn all_is_well(&mut self, health: &Health) {
        // Who fights may only be resting.
        self.is_fight &= self.backoff.is_fight();
        if self.is_told && !self.is_fight {
            self.is_told = false;
            health.clear(Component::Enforcement);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fight_is_answered_ever_more_seldom_and_forgotten_after_a_minute() {
        let at = |millis: u64| Moment::from_nanos(millis * 1_000_000);
        let mut backoff = Backoff::default();
        let mut mends = Vec::new();
        // Something is undone as soon as it is mended, for ten minutes.
        for millis in (0..600_000).step_by(400) {
            if backoff.next(at(millis)) <= at(millis) {
                backoff.count(at(millis));
                mends.push(millis);
            }
        }
        assert_eq!(mends[..5], [0, 400, 800, 1200, 1600], "the first at once");
        assert!(mends.len() < 110, "{} mends in ten minutes", mends.len());
        let pauses = mends.windows(2).map(|pair| pair[1] - pair[0]);
        assert!(pauses.max().unwrap() <= 32_000, "and never given up");
        let later = mends.last().unwrap() + 60_000;
        assert_eq!(backoff.next(at(later)), at(later));
    }
}
