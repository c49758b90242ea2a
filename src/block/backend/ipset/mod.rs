//! Back end `ipset`: a kernel set per family, and one rule that matches it.
//!
//! Owns the names of the sets and the order of changes: a rule needs its set, and a set cannot be
//! removed before its rule. `members.rs` compares what a set holds with what it should hold.

pub mod members;
pub mod netlink;

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::IpNet;

use crate::block::backend::ipset::members::Schedule;
use crate::block::backend::ipset::netlink::{
    AT_ONCE, CAPACITY, Element, IpsetError, KernelSet, LONGEST_TIMEOUT,
};
use crate::block::backend::rules::{Rules, families};
use crate::block::backend::{Backend, FirewallError};
use crate::block::reconcile::{DesiredState, Fault};
use crate::config::FirewallConfig;
use crate::config::values::Established;
use crate::types::{Family, IfName};

/// The sets and rules of an instance.
pub struct IpsetBackend {
    /// One for each of [`families`].
    sides: Vec<Side>,
}

/// The set and the rule of one family.
struct Side {
    set: KernelSet,
    rules: Rules,
    schedule: Schedule,
    /// What was wrong with the rules when they were last inspected.
    rule_faults: Vec<Fault>,
    /// How many networks are blocked in fact.
    enforced: u32,
    /// At the last check there were networks to block.
    was_used: bool,
}

impl IpsetBackend {
    /// Connects to the kernel. Changes nothing.
    pub fn connect(
        interface: &IfName,
        config: &FirewallConfig,
        established: Established,
    ) -> Result<Self, FirewallError> {
        let mut sides = Vec::new();
        for family in families() {
            let name = set_name(interface, family);
            let matches = format!("-m set --match-set {name} src ");
            sides.push(Side {
                set: KernelSet::connect(name, family)?,
                rules: Rules::find(interface, family, config, established, &matches)?,
                schedule: Schedule::default(),
                rule_faults: Vec::new(),
                enforced: 0,
                was_used: true,
            });
        }
        Ok(Self { sides })
    }

    fn side(&mut self, network: IpNet) -> Option<&mut Side> {
        self.sides.get_mut(Family::of(network) as usize)
    }
}

/// The name of an instance's set. At most 29 of the 31 bytes that a name may have.
pub fn set_name(interface: &IfName, family: Family) -> String {
    let version = match family {
        Family::V4 => "v4",
        Family::V6 => "v6",
    };
    format!("tcptracker-{interface}-{version}")
}

impl Side {
    fn ensure_set(&mut self) -> Result<(), FirewallError> {
        match self.set.create() {
            // Another version of tcptracker or another program has made it with other options.
            Err(IpsetError::Foreign(_)) => {
                self.rules.remove()?;
                self.set.destroy()?;
                Ok(self.set.create()?)
            }
            result => Ok(result?),
        }
    }

    fn ensure_rule(&mut self) -> Result<(), FirewallError> {
        self.rules.ensure(&BTreeSet::from([None]))
    }

    /// Returns the elements that a crashed instance has left, or `None` if there is no set.
    fn left_over(&mut self) -> Result<Option<Vec<Element>>, FirewallError> {
        let mut elements = Vec::new();
        match self.set.for_each(|element| elements.push(element)) {
            Err(IpsetError::Missing(_)) => return Ok(None),
            result => result?,
        }
        let found = self.rules.inspect()?;
        if found.sources.is_empty() && found.unexpected == 0 {
            // The rule for this set is in the other variant of iptables. If it cannot be removed, it does
            // no harm before the stop, which reports why the set cannot be removed.
            let _ = self.rules.remove_from_other_variant();
        }
        Ok(Some(elements))
    }

    fn remove(&mut self) -> Result<(), FirewallError> {
        self.rules.remove()?;
        Ok(self.set.destroy()?)
    }

    fn check(&mut self, desired: &DesiredState<'_>) -> Result<Vec<Fault>, FirewallError> {
        let family = self.set.family();
        if let Some(found) = self.rules.inspect_if_changed(desired.now())? {
            self.rule_faults = found.faults;
            let has_rule = found.unexpected == 0 && found.sources == BTreeSet::from([None]);
            if !has_rule && !self.rule_faults.contains(&Fault::Chain(family)) {
                self.rule_faults.push(Fault::Rule(family));
            }
        }
        // Without blocks nothing is dropped, but the packets of the last block still have to be counted.
        let is_used = desired.count(family) > 0;
        if std::mem::replace(&mut self.was_used, is_used) || is_used {
            self.rules.update_totals()?;
        }
        let (held, fault) = members::check(&mut self.set, &mut self.schedule, desired)?;
        let is_broken = self.rule_faults.iter().any(Fault::breaks_all);
        self.enforced = if is_broken { 0 } else { held };
        Ok(self.rule_faults.iter().cloned().chain(fault).collect())
    }
}

impl Backend for IpsetBackend {
    fn name(&self) -> &'static str {
        "ipset"
    }

    fn install(&mut self) -> Result<Option<Vec<Element>>, FirewallError> {
        let mut found: Option<Vec<Element>> = None;
        for side in &mut self.sides {
            if let Some(elements) = side.left_over()? {
                found.get_or_insert_default().extend(elements);
            }
            side.ensure_set()?;
            side.ensure_rule()?;
        }
        Ok(found)
    }

    fn block(&mut self, network: IpNet, duration: Duration) -> Result<(), FirewallError> {
        let side = self.side(network).ok_or(FirewallError::NoIpv6)?;
        Ok(side.set.add(network, duration)?)
    }

    fn block_all(&mut self, networks: &[(IpNet, Duration)]) -> Vec<(IpNet, FirewallError)> {
        let mut refused = Vec::new();
        for family in Family::ALL {
            let is_of_family = |(network, _): &&(IpNet, Duration)| Family::of(*network) == family;
            let of_family: Vec<_> = networks.iter().filter(is_of_family).copied().collect();
            for some in of_family.chunks(AT_ONCE) {
                let side = self.side(some[0].0);
                if side.is_none_or(|side| side.set.add_all(some).is_err()) {
                    // One by one, to see which of them the kernel refuses.
                    let block = |(network, duration): &(IpNet, Duration)| {
                        self.block(*network, *duration).err().map(|error| (*network, error))
                    };
                    refused.extend(some.iter().filter_map(block));
                }
            }
        }
        refused
    }

    fn unblock(&mut self, network: IpNet) -> Result<(), FirewallError> {
        let Some(side) = self.side(network) else { return Ok(()) };
        match side.set.delete(network) {
            // Without its set nothing is blocked.
            Ok(_) | Err(IpsetError::Missing(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn check(&mut self, desired: &DesiredState<'_>) -> Result<Vec<Fault>, FirewallError> {
        let mut faults = Vec::new();
        for side in &mut self.sides {
            faults.extend(side.check(desired)?);
        }
        Ok(faults)
    }

    fn repair(&mut self, desired: &DesiredState<'_>) -> Result<(), FirewallError> {
        for side in &mut self.sides {
            side.ensure_set()?;
            members::repair(&mut side.set, desired)?;
            side.schedule = Schedule::default();
            // The rule and the hooks come last: packets must find the set complete.
            side.ensure_rule()?;
        }
        Ok(())
    }

    fn enforced(&self, family: Family) -> u32 {
        self.sides.get(family as usize).map_or(0, |side| side.enforced)
    }

    fn dropped(&self, family: Family) -> u64 {
        self.sides.get(family as usize).map_or(0, |side| side.rules.matched())
    }

    fn dropped_from(&mut self, network: IpNet) -> Result<u64, FirewallError> {
        let Some(side) = self.side(network) else { return Ok(0) };
        let mut packets = 0;
        // The kernel cannot list a single element.
        side.set.for_each(|element| {
            if element.network == network {
                packets = element.packets;
            }
        })?;
        Ok(packets)
    }

    fn capacity(&self) -> u32 {
        CAPACITY
    }

    fn longest(&self) -> Duration {
        LONGEST_TIMEOUT
    }

    fn remove(&mut self) -> Result<(), FirewallError> {
        // A family that cannot be removed must not keep the other one.
        let mut outcome = Ok(());
        for side in &mut self.sides {
            outcome = outcome.and(side.remove());
        }
        outcome
    }
}
