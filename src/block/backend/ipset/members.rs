//! The members of a kernel set, compared with what the set should hold.
//!
//! The kernel does not notify of changes to a set, so a set has to be looked at, and a look at a large set
//! is expensive: 20 ns per element to count them, 600 ns to compare them. Therefore each check asks for a
//! few members, which finds a set that was flushed, swapped or destroyed. Counting and comparing are
//! spread out, so that neither takes more than 1 % of a processor. Even so, a missing or unexpected member
//! is found within a second in sets of up to 100,000 members, an exchanged one in sets of up to 10,000.

use std::collections::HashSet;
use std::ops::Bound;
use std::time::Duration;

use ipnet::IpNet;
use tracing::debug;

use crate::block::backend::ipset::netlink::{AT_ONCE, Element, IpsetError, KernelSet};
use crate::block::reconcile::{DesiredState, Fault};
use crate::types::Moment;

/// The members that each check asks for, in turn.
const SAMPLE: usize = 4;

/// A set of this size is counted at each check, one of 10 times the size at each 10th.
const COUNTED: usize = 100_000;

/// A set of this size is compared at each check, one of 10 times the size at each 10th.
const COMPARED: usize = 5_000;

/// The kernel reports whole seconds and rounds them; one more second for the time between two readings.
const TOLERANCE: Duration = Duration::from_secs(2);

/// When a set is due to be counted and compared.
#[derive(Debug, Default)]
pub struct Schedule {
    /// The checks since the set was last counted, and compared.
    since_counted: usize,
    since_compared: usize,
    /// The members as of the last count.
    held: u32,
    was_compared: bool,
    /// The last member of the last sample.
    sampled: Option<IpNet>,
}

/// Returns how many members a set holds, as of the last count, and what is wrong with it.
pub fn check(
    set: &mut KernelSet,
    schedule: &mut Schedule,
    desired: &DesiredState<'_>,
) -> Result<(u32, Option<Fault>), IpsetError> {
    match find_fault(set, schedule, desired) {
        Ok(fault) => Ok((schedule.held, fault)),
        Err(error @ (IpsetError::Missing(_) | IpsetError::Foreign(_))) => {
            debug!(%error, "a kernel set has to be made again");
            *schedule = Schedule::default();
            Ok((0, Some(Fault::Set(set.family()))))
        }
        Err(error) => Err(error),
    }
}

fn find_fault(
    set: &mut KernelSet,
    schedule: &mut Schedule,
    desired: &DesiredState<'_>,
) -> Result<Option<Fault>, IpsetError> {
    let family = set.family();
    let count = desired.count(family);
    schedule.since_counted += 1;
    schedule.since_compared += 1;
    let larger = count.max(schedule.held as usize);
    let is_count_due = schedule.since_counted * COUNTED >= larger;
    let is_comparison_due = !schedule.was_compared || schedule.since_compared * COMPARED >= larger;
    let is_suspect = !is_comparison_due && !holds_sample(set, schedule, desired)?;
    if is_suspect || is_count_due || is_comparison_due {
        schedule.held = set.count()?;
        schedule.since_counted = 0;
    }
    let is_count_right = schedule.held as usize == count;
    if is_count_right && !is_suspect && !is_comparison_due {
        return Ok(None);
    }
    (schedule.since_compared, schedule.was_compared) = (0, true);
    if is_count_right && count == 0 {
        return Ok(None);
    }
    // A set holds no member twice.
    let (mut held, mut stray) = (0, 0);
    compare(set, desired, |_, verdict| match verdict {
        Verdict::Held => held += 1,
        Verdict::TooShort => {}
        Verdict::Stray => stray += 1,
    })?;
    schedule.held = u32::try_from(held).unwrap_or(u32::MAX);
    // Members that expired during the comparison may or may not be there.
    let missing = (count - held).saturating_sub(desired.over(family, Moment::now()));
    if missing == 0 && stray == 0 {
        return Ok(None);
    }
    debug!(family = family.as_str(), count, held, missing, stray, "a kernel set differs");
    Ok(Some(Fault::Members { family, missing, stray }))
}

fn holds_sample(
    set: &mut KernelSet,
    schedule: &mut Schedule,
    desired: &DesiredState<'_>,
) -> Result<bool, IpsetError> {
    let from = schedule.sampled.map_or(Bound::Unbounded, Bound::Excluded);
    let members = desired.members_from(set.family(), from);
    let sample: Vec<IpNet> = members.map(|(network, _)| network).take(SAMPLE).collect();
    // After the last member the next sample starts from the first.
    schedule.sampled = sample.last().copied();
    for network in sample {
        if !set.holds(network)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The state of a member of a set.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Desired, and the kernel holds it for long enough.
    Held,
    /// Desired for longer than the kernel holds it: counts as missing.
    TooShort,
    /// Not desired.
    Stray,
}

/// Passes each member of a set and its state to `each`.
fn compare(
    set: &mut KernelSet,
    desired: &DesiredState<'_>,
    mut each: impl FnMut(IpNet, Verdict),
) -> Result<(), IpsetError> {
    set.for_each(|Element { network, remaining, .. }| {
        each(network, verdict(desired, &network, remaining, Moment::now));
    })
}

/// Judges a member that the kernel holds for `remaining` from the moment it was read. On a busy machine
/// that moment may be long after the check began, so it decides; it is read only if it matters.
pub fn verdict(
    desired: &DesiredState<'_>,
    network: &IpNet,
    remaining: Duration,
    read_at: impl Fn() -> Moment,
) -> Verdict {
    let lasts = |moment| Some(remaining + TOLERANCE >= desired.least(network, moment)?);
    match lasts(desired.now()) {
        None => Verdict::Stray,
        Some(true) => Verdict::Held,
        Some(false) if lasts(read_at()) == Some(true) => Verdict::Held,
        Some(false) => Verdict::TooShort,
    }
}

/// Adds missing members and removes unexpected ones.
pub fn repair(set: &mut KernelSet, desired: &DesiredState<'_>) -> Result<(), IpsetError> {
    let (mut held, mut stray) = (HashSet::new(), Vec::new());
    compare(set, desired, |network, verdict| match verdict {
        Verdict::Held => drop(held.insert(network)),
        Verdict::TooShort => {}
        Verdict::Stray => stray.push(network),
    })?;
    for network in stray {
        set.delete(network)?;
    }
    let members = desired.members(set.family());
    let missing: Vec<_> = members.filter(|(network, _)| !held.contains(network)).collect();
    missing.chunks(AT_ONCE).try_for_each(|some| set.add_all(some))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::ledger::Ledger;
    use crate::types::{Block, BlockReason, Family};

    const NETWORK: &str = "198.51.100.1/32";
    const BEGUN: u64 = 100;

    fn at(second: u64) -> Moment {
        Moment::from_nanos(second * 1_000_000_000)
    }

    /// One network, blocked for an hour from the beginning of the check.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(Duration::from_secs(86_400));
        let (since, until) = (at(BEGUN), Some(at(BEGUN + 3600)));
        let block = Block { since, until, offences: 0, reason: BlockReason::Found };
        ledger.insert(NETWORK.parse().unwrap(), since, block);
        ledger
    }

    #[test]
    fn slow_check_finds_no_member_that_expires_too_soon() {
        let ledger = ledger();
        let desired = DesiredState::of(&ledger, at(BEGUN));
        let of = |network: &str, remaining, read_at| {
            verdict(&desired, &network.parse().unwrap(), Duration::from_secs(remaining), || {
                at(read_at)
            })
        };
        assert_eq!(of(NETWORK, 3600, BEGUN), Verdict::Held);
        // After 10 s the kernel rightly holds it for 10 s less.
        assert_eq!(of(NETWORK, 3590, BEGUN + 10), Verdict::Held);
        assert_eq!(of(NETWORK, 3580, BEGUN + 10), Verdict::TooShort);
        assert_eq!(of(NETWORK, 3590, BEGUN), Verdict::TooShort);
        assert_eq!(of("198.51.100.2/32", 3600, BEGUN), Verdict::Stray);
    }

    #[test]
    fn member_that_expires_during_a_check_is_not_missing() {
        let ledger = ledger();
        let desired = DesiredState::of(&ledger, at(BEGUN));
        assert_eq!(desired.over(Family::V4, at(BEGUN + 3599)), 0);
        assert_eq!(desired.over(Family::V4, at(BEGUN + 3600)), 1);
        assert_eq!(desired.over(Family::V6, at(BEGUN + 3600)), 0);
    }
}
