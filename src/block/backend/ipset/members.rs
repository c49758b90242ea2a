//! What a kernel set holds, held against what it ought to hold.
//!
//! The kernel tells nobody when a set is changed, so that it has to be looked at; and the larger it is,
//! the more a look costs: 20 ns an element to have them counted, 600 ns to have them compared. Therefore
//! a few members are asked for at each look, whatever the size, which finds a set that was flushed,
//! swapped or destroyed; counting and comparing are spread out so that neither ever takes more than a
//! hundredth of a processor. What is missing or there too much is found within a second all the same, by
//! counting up to 100,000, and what was exchanged up to 10,000.

use std::collections::HashSet;
use std::ops::Bound;
use std::time::Duration;

use ipnet::IpNet;

use crate::block::backend::ipset::netlink::{AT_ONCE, Element, Ipset, IpsetError};
use crate::block::reconcile::{DesiredState, Fault};
use crate::types::clock::Moment;
use crate::types::network::Family;

/// Members asked for at each look, in turn.
const SAMPLE: usize = 4;

/// A set of so many is counted at each look; one of ten times as many at each tenth.
const COUNTED: usize = 100_000;

/// A set of so many is compared member by member at each look, likewise.
const COMPARED: usize = 5_000;

/// The kernel shows whole seconds, and rounds; a second more for the time between the two readings.
const TOLERANCE: Duration = Duration::from_secs(2);

/// How far the looks at a set have come.
#[derive(Debug, Default)]
pub struct Look {
    /// Looks since it was last counted, and compared.
    since_counted: usize,
    since_compared: usize,
    /// What was counted.
    held: u32,
    compared_once: bool,
    /// The last member asked for.
    sampled: Option<IpNet>,
}

/// Looks at a set: how many members it holds, as of the last count, and what is wrong with it.
pub fn check(
    ipset: &mut Ipset,
    name: &str,
    look: &mut Look,
    family: Family,
    desired: &DesiredState<'_>,
) -> Result<(u32, Option<Fault>), IpsetError> {
    match look_at(ipset, name, look, family, desired) {
        Ok(fault) => Ok((look.held, fault)),
        Err(IpsetError::Missing(_) | IpsetError::Foreign(_)) => {
            *look = Look::default();
            Ok((0, Some(Fault::Set(family))))
        }
        Err(error) => Err(error),
    }
}

fn look_at(
    ipset: &mut Ipset,
    name: &str,
    look: &mut Look,
    family: Family,
    desired: &DesiredState<'_>,
) -> Result<Option<Fault>, IpsetError> {
    let count = desired.count(family);
    look.since_counted += 1;
    look.since_compared += 1;
    let is_due = |since: usize, size: usize| since * size >= count.max(look.held as usize);
    let (count_due, compare_due) =
        (is_due(look.since_counted, COUNTED), is_due(look.since_compared, COMPARED));
    let compare_due = compare_due || !look.compared_once;
    let suspect = !compare_due && !sample_is_there(ipset, name, look, family, desired)?;
    if suspect || count_due || compare_due {
        look.held = ipset.count(name, family)?;
        look.since_counted = 0;
    }
    let is_as_many = look.held as usize == count;
    if is_as_many && !suspect && !compare_due {
        return Ok(None);
    }
    (look.since_compared, look.compared_once) = (0, true);
    if is_as_many && count == 0 {
        // Where there is nothing there is nothing to compare.
        return Ok(None);
    }
    // A set has no member twice.
    let (mut held, mut stray) = (0, 0);
    compare(ipset, name, family, desired, |_, verdict| match verdict {
        Verdict::Held => held += 1,
        Verdict::TooShort => {}
        Verdict::Stray => stray += 1,
    })?;
    look.held = u32::try_from(held).unwrap_or(u32::MAX);
    // Whose time was up while the look went on may be there or not.
    let missing = (count - held).saturating_sub(desired.over(family, Moment::now()));
    let differs = missing > 0 || stray > 0;
    Ok(differs.then_some(Fault::Members { family, missing, stray }))
}

fn sample_is_there(
    ipset: &mut Ipset,
    name: &str,
    look: &mut Look,
    family: Family,
    desired: &DesiredState<'_>,
) -> Result<bool, IpsetError> {
    let from = look.sampled.map_or(Bound::Unbounded, Bound::Excluded);
    let sample: Vec<IpNet> =
        desired.members_from(family, from).map(|(network, _)| network).take(SAMPLE).collect();
    // At the end it begins anew.
    look.sampled = sample.last().copied();
    for network in sample {
        if !ipset.holds(name, network)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What a member of a set is.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// DesiredState, and there for long enough.
    Held,
    /// DesiredState for longer: as good as not there.
    TooShort,
    /// Not wanted.
    Stray,
}

/// Shows each member of a set, and what it is.
fn compare(
    ipset: &mut Ipset,
    name: &str,
    family: Family,
    desired: &DesiredState<'_>,
    mut each: impl FnMut(IpNet, Verdict),
) -> Result<(), IpsetError> {
    ipset.each_element(name, family, |Element { network, remaining, .. }| {
        each(network, verdict(desired, &network, remaining, Moment::now));
    })
}

/// What a member is that the kernel holds for so long still, told about this moment: the look may have begun long
/// before, on a busy machine. The moment is asked for only where it decides.
fn verdict(
    desired: &DesiredState<'_>,
    network: &IpNet,
    remaining: Duration,
    told: impl Fn() -> Moment,
) -> Verdict {
    let lasts = |moment| {
        let least = desired.least(network, moment)?;
        Some(remaining + TOLERANCE >= least)
    };
    match lasts(desired.now()) {
        None => Verdict::Stray,
        Some(true) => Verdict::Held,
        Some(false) if lasts(told()) == Some(true) => Verdict::Held,
        Some(false) => Verdict::TooShort,
    }
}

/// Adds what is missing, and removes what is not wanted.
pub fn repair(
    ipset: &mut Ipset,
    name: &str,
    family: Family,
    desired: &DesiredState<'_>,
) -> Result<(), IpsetError> {
    let (mut held, mut stray) = (HashSet::new(), Vec::new());
    compare(ipset, name, family, desired, |network, verdict| match verdict {
        Verdict::Held => drop(held.insert(network)),
        Verdict::TooShort => {}
        Verdict::Stray => stray.push(network),
    })?;
    for network in stray {
        ipset.delete(name, network)?;
    }
    let missing: Vec<_> =
        desired.members(family).filter(|(network, _)| !held.contains(network)).collect();
    missing.chunks(AT_ONCE).try_for_each(|some| ipset.add_all(name, some))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::ledger::Ledger;
    use crate::types::block::{Block, BlockReason};

    const NETWORK: &str = "198.51.100.1/32";
    const BEGUN: u64 = 100;

    fn at(second: u64) -> Moment {
        Moment::from_nanos(second * 1_000_000_000)
    }

    /// One network, blocked for an hour from when the look begins.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(Duration::from_secs(86_400));
        let (since, until) = (at(BEGUN), Some(at(BEGUN + 3600)));
        let block = Block { since, until, offences: 0, reason: BlockReason::Found };
        ledger.insert(NETWORK.parse().unwrap(), since, block);
        ledger
    }

    #[test]
    fn a_look_that_takes_long_finds_nothing_too_short() {
        let ledger = ledger();
        let desired = DesiredState::of(&ledger, at(BEGUN));
        let of = |network: &str, remaining, told| {
            verdict(&desired, &network.parse().unwrap(), Duration::from_secs(remaining), || {
                at(told)
            })
        };
        assert_eq!(of(NETWORK, 3600, BEGUN), Verdict::Held);
        // Ten seconds later ten less are left, as it ought to be.
        assert_eq!(of(NETWORK, 3590, BEGUN + 10), Verdict::Held);
        assert_eq!(of(NETWORK, 3580, BEGUN + 10), Verdict::TooShort);
        assert_eq!(of(NETWORK, 3590, BEGUN), Verdict::TooShort);
        assert_eq!(of("198.51.100.2/32", 3600, BEGUN), Verdict::Stray);
    }

    #[test]
    fn whose_time_is_up_meanwhile_is_not_missing() {
        let ledger = ledger();
        let desired = DesiredState::of(&ledger, at(BEGUN));
        assert_eq!(desired.over(Family::V4, at(BEGUN + 3599)), 0);
        assert_eq!(desired.over(Family::V4, at(BEGUN + 3600)), 1);
        assert_eq!(desired.over(Family::V6, at(BEGUN + 3600)), 0);
    }
}
