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

use super::Family;
use super::healing::{Fault, Wanted};
use super::ipset::{AT_ONCE, Element, Ipset, IpsetError};

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
pub(super) struct Look {
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
pub(super) fn check(
    ipset: &mut Ipset,
    name: &str,
    look: &mut Look,
    family: Family,
    wanted: &Wanted<'_>,
) -> Result<(u32, Option<Fault>), IpsetError> {
    match look_at(ipset, name, look, family, wanted) {
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
    wanted: &Wanted<'_>,
) -> Result<Option<Fault>, IpsetError> {
    let count = wanted.count(family);
    look.since_counted += 1;
    look.since_compared += 1;
    let is_due = |since: usize, size: usize| since * size >= count.max(look.held as usize);
    let (count_due, compare_due) =
        (is_due(look.since_counted, COUNTED), is_due(look.since_compared, COMPARED));
    let compare_due = compare_due || !look.compared_once;
    let suspect = !compare_due && !sample_is_there(ipset, name, look, family, wanted)?;
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
    compare(ipset, name, family, wanted, |_, verdict| match verdict {
        Verdict::Held => held += 1,
        Verdict::TooShort => {}
        Verdict::Stray => stray += 1,
    })?;
    look.held = u32::try_from(held).unwrap_or(u32::MAX);
    let missing = count - held;
    let differs = missing > 0 || stray > 0;
    Ok(differs.then_some(Fault::Members { family, missing, stray }))
}

fn sample_is_there(
    ipset: &mut Ipset,
    name: &str,
    look: &mut Look,
    family: Family,
    wanted: &Wanted<'_>,
) -> Result<bool, IpsetError> {
    let from = look.sampled.map_or(Bound::Unbounded, Bound::Excluded);
    let sample: Vec<IpNet> =
        wanted.members_from(family, from).map(|(network, _)| network).take(SAMPLE).collect();
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
enum Verdict {
    /// Wanted, and there for long enough.
    Held,
    /// Wanted for longer: as good as not there.
    TooShort,
    /// Not wanted.
    Stray,
}

/// Shows each member of a set, and what it is.
fn compare(
    ipset: &mut Ipset,
    name: &str,
    family: Family,
    wanted: &Wanted<'_>,
    mut each: impl FnMut(IpNet, Verdict),
) -> Result<(), IpsetError> {
    ipset.each_element(name, family, |Element { network, remaining, .. }| {
        let verdict = match wanted.least(&network) {
            Some(least) if remaining + TOLERANCE >= least => Verdict::Held,
            Some(_) => Verdict::TooShort,
            None => Verdict::Stray,
        };
        each(network, verdict);
    })
}

/// Adds what is missing, and removes what is not wanted.
pub(super) fn mend(
    ipset: &mut Ipset,
    name: &str,
    family: Family,
    wanted: &Wanted<'_>,
) -> Result<(), IpsetError> {
    let (mut held, mut stray) = (HashSet::new(), Vec::new());
    compare(ipset, name, family, wanted, |network, verdict| match verdict {
        Verdict::Held => drop(held.insert(network)),
        Verdict::TooShort => {}
        Verdict::Stray => stray.push(network),
    })?;
    for network in stray {
        ipset.delete(name, network)?;
    }
    let missing: Vec<_> =
        wanted.members(family).filter(|(network, _)| !held.contains(network)).collect();
    missing.chunks(AT_ONCE).try_for_each(|some| ipset.add_all(name, some))
}
