//! The rules of one instance, of both families: what the rules thread looks after.
//!
//! Owns which rules there should be: one per family that matches the instance's set, or one per blocked
//! address. A rule needs its set, which the firewall thread owns. A set of another type cannot be replaced
//! while a rule uses it, so that its rules go first and come back when the set is right.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::block::backend::activity::Activity;
use crate::block::backend::counter_totals::DropCounter;
use crate::block::backend::ipset::netlink::{Element, IpsetError, KernelSet};
use crate::block::backend::ipset::set_name;
use crate::block::backend::rules::{Rules, families};
use crate::block::backend::ruleset::{Inspection, Source};
use crate::block::backend::{FirewallError, Refused};
use crate::block::reconcile::Fault;
use crate::config::FirewallConfig;
use crate::config::values::Established;
use crate::types::{Family, IfName, Moment};

/// The rules for single addresses that a family may have. A packet that matches none of them takes 12 ns for
/// each (`make bench`): 1,000 rules take as long as its way through the rest of the kernel.
pub const CAPACITY: u32 = 1000;

/// How long a rule of a crashed instance stays if the database does not know it.
const LEFT_OVER: Duration = Duration::from_secs(3600);

/// What the rules of an instance have to be.
#[derive(Clone, Debug)]
pub struct RulePlan {
    pub interface: IfName,
    pub firewall: FirewallConfig,
    pub established: Established,
    /// One rule per family matches a set. Otherwise there is a rule per address.
    pub has_sets: bool,
}

/// The rules of an instance. Every operation is idempotent, and may run programs.
pub trait RuleBook {
    /// Removes what other programs, and instances in the other variant of iptables, have left in the chain.
    fn clear_chain(&mut self) -> Result<(), FirewallError>;

    /// Finds what is wrong. Called twice a second, so most calls make only a cheap check.
    fn check(&mut self, now: Moment) -> Result<Vec<Fault>, FirewallError>;

    /// Corrects everything that is wrong.
    fn repair(&mut self) -> Result<(), FirewallError>;

    /// Removes the rules and, after the last instance's, hooks and chain.
    fn remove(&mut self) -> Result<(), FirewallError>;

    /// Whether every rule of a family was in force at the last check.
    fn is_intact(&self, family: Family) -> bool;

    /// The rules for single addresses, by family, as of the last check.
    fn held(&self, family: Family) -> u32;

    /// The counters of the rules, by family.
    fn counters(&self) -> Vec<DropCounter>;

    /// The commands that a person may type to remove what is left.
    fn to_type(&self) -> Vec<String>;

    /// The commands that remove rules of other programs that use a set of this instance.
    fn outside(&self) -> Vec<String>;

    /// Takes over the rules for single addresses that are there.
    fn adopt(&mut self) -> Result<Option<Vec<Element>>, FirewallError>;

    /// Whether there is a rule for a network.
    fn has_rule(&self, network: IpNet) -> bool;

    /// Adds a rule for each network, and returns those that have none.
    fn add(&mut self, networks: &[IpNet]) -> Refused;

    /// Deletes the rule for each network, and returns those that still have one.
    fn delete(&mut self, networks: &[IpNet]) -> Refused;

    /// Changes which networks should have a rule. The next repair carries it out.
    fn set_networks(&mut self, networks: &BTreeSet<IpNet>);

    /// The packets that the rule for a network has matched.
    fn matched_by(&mut self, network: IpNet) -> Result<u64, FirewallError>;
}

/// The rules in the kernel.
pub struct InstanceRules {
    /// One for each of [`families`].
    sides: Vec<Side>,
}

/// The rules of a family.
struct Side {
    rules: Rules,
    /// The set that the rule matches. None: there is a rule per address.
    set: Option<KernelSet>,
    desired: BTreeSet<Source>,
    /// The last inspection, and in its sources all changes made since.
    found: Inspection,
}

impl RulePlan {
    /// Finds the programs and connects to the kernel. Changes nothing.
    pub fn connect(&self, activity: &Arc<Activity>) -> Result<InstanceRules, FirewallError> {
        let Self { interface, firewall, established, has_sets } = self;
        let mut sides = Vec::new();
        for family in families() {
            let name = set_name(interface, family);
            let matches =
                if *has_sets { format!("-m set --match-set {name} src ") } else { String::new() };
            let rules = Rules::find(interface, family, firewall, *established, &matches, activity)?;
            let set = has_sets.then(|| KernelSet::connect(name, family)).transpose()?;
            let desired = has_sets.then_some(None).into_iter().collect();
            sides.push(Side { rules, set, desired, found: Inspection::default() });
        }
        Ok(InstanceRules { sides })
    }
}

impl InstanceRules {
    fn side(&mut self, network: IpNet) -> Option<&mut Side> {
        self.sides.get_mut(Family::of(network) as usize)
    }
}

impl Side {
    fn family(&self) -> Family {
        self.rules.family()
    }

    /// Whether the rule may be made: its set is as it should be.
    fn is_ready(&mut self) -> Result<bool, FirewallError> {
        match self.set.as_mut().map(KernelSet::count) {
            None | Some(Ok(_)) => Ok(true),
            Some(Err(IpsetError::Missing(_))) => Ok(false),
            Some(Err(IpsetError::Foreign(_))) => {
                // The set can be replaced only when no rule uses it.
                self.rules.release_sets()?;
                Ok(false)
            }
            Some(Err(error)) => Err(error.into()),
        }
    }

    fn check(&mut self, now: Moment) -> Result<Vec<Fault>, FirewallError> {
        self.is_ready()?;
        if let Some(found) = self.rules.inspect_if_changed(now)? {
            self.found = found;
        }
        let (family, found) = (self.family(), &self.found);
        let mut faults = found.faults.clone();
        if !faults.contains(&Fault::Chain(family)) {
            let missing = self.desired.difference(&found.sources).count();
            let stray = found.sources.difference(&self.desired).count() + found.unexpected;
            if missing + stray > 0 {
                faults.push(match &self.set {
                    Some(_) => Fault::Rule(family),
                    None => Fault::Members { family, missing, stray },
                });
            }
        }
        Ok(faults)
    }

    fn repair(&mut self) -> Result<(), FirewallError> {
        if !self.is_ready()? {
            return Ok(());
        }
        self.rules.ensure(&self.desired)?;
        self.found.sources.clone_from(&self.desired);
        Ok(())
    }

    /// Makes the chain hold the rules for these sources and no others.
    fn replace(&mut self, sources: BTreeSet<Source>) -> Result<(), FirewallError> {
        self.rules.ensure(&sources)?;
        self.found.sources.clone_from(&sources);
        self.desired = sources;
        Ok(())
    }

    fn add(&mut self, network: IpNet) -> Result<(), FirewallError> {
        let source = Some(network);
        if self.desired.contains(&source) {
            return Ok(());
        }
        if self.desired.len() >= CAPACITY as usize {
            return Err(FirewallError::Full(CAPACITY));
        }
        self.rules.add(network)?;
        self.found.sources.insert(source);
        self.desired.insert(source);
        Ok(())
    }

    fn delete(&mut self, network: IpNet) -> Result<(), FirewallError> {
        let source = Some(network);
        if !self.desired.contains(&source) {
            return Ok(());
        }
        if self.rules.delete(network).is_err() {
            // Another program has changed the chain, so it is made as a whole.
            let mut left = self.desired.clone();
            left.remove(&source);
            return self.replace(left);
        }
        self.found.sources.remove(&source);
        self.desired.remove(&source);
        Ok(())
    }
}

impl RuleBook for InstanceRules {
    fn clear_chain(&mut self) -> Result<(), FirewallError> {
        for side in &mut self.sides {
            side.rules.clear_chain()?;
            let found = side.rules.inspect()?;
            if found.sources.is_empty() && found.unexpected == 0 {
                // A crashed instance's rule may be in the other variant of iptables. If it cannot be removed,
                // it does no harm before the stop, which reports why the set cannot be removed.
                let _ = side.rules.remove_from_other_variant();
            }
            side.found = found;
        }
        Ok(())
    }

    fn check(&mut self, now: Moment) -> Result<Vec<Fault>, FirewallError> {
        let mut faults = Vec::new();
        for side in &mut self.sides {
            faults.extend(side.check(now)?);
        }
        Ok(faults)
    }

    fn repair(&mut self) -> Result<(), FirewallError> {
        self.sides.iter_mut().try_for_each(Side::repair)
    }

    fn remove(&mut self) -> Result<(), FirewallError> {
        // A family whose rules cannot be removed must not keep those of the other one.
        self.sides.iter_mut().map(|side| side.rules.remove()).fold(Ok(()), Result::and)
    }

    fn is_intact(&self, family: Family) -> bool {
        let Some(side) = self.sides.get(family as usize) else { return false };
        let has_rules =
            side.set.is_none() || side.found.unexpected == 0 && side.found.sources == side.desired;
        has_rules && !side.found.faults.iter().any(Fault::breaks_all)
    }

    fn held(&self, family: Family) -> u32 {
        let held = self.sides.get(family as usize).map_or(0, |side| side.found.sources.len());
        u32::try_from(held).unwrap_or(u32::MAX)
    }

    fn counters(&self) -> Vec<DropCounter> {
        self.sides.iter().map(|side| side.rules.counter()).collect()
    }

    fn to_type(&self) -> Vec<String> {
        self.sides.iter().flat_map(|side| side.rules.to_type()).collect()
    }

    fn outside(&self) -> Vec<String> {
        self.sides.iter().flat_map(|side| side.rules.outside()).collect()
    }

    fn adopt(&mut self) -> Result<Option<Vec<Element>>, FirewallError> {
        let mut found: Option<Vec<Element>> = None;
        for side in &mut self.sides {
            side.found = side.rules.inspect()?;
            let has_rules = !side.found.sources.is_empty() || side.found.unexpected > 0;
            // The rules of a crashed instance stay until the service knows which of them to keep.
            side.replace(side.found.sources.clone())?;
            if has_rules {
                let element =
                    |&network: &IpNet| Element { network, remaining: LEFT_OVER, packets: 0 };
                let networks = side.found.sources.iter().flatten();
                found.get_or_insert_default().extend(networks.map(element));
            }
        }
        Ok(found)
    }

    fn has_rule(&self, network: IpNet) -> bool {
        let side = self.sides.get(Family::of(network) as usize);
        side.is_some_and(|side| side.desired.contains(&Some(network)))
    }

    fn add(&mut self, networks: &[IpNet]) -> Refused {
        if networks.len() > 1 {
            // In one step; then one by one, which shows what has failed.
            for side in &mut self.sides {
                let mut sources = side.desired.clone();
                let of_family = networks.iter().filter(|n| Family::of(**n) == side.family());
                let room = (CAPACITY as usize).saturating_sub(sources.len());
                let new = of_family.filter(|n| !side.desired.contains(&Some(**n))).take(room);
                sources.extend(new.copied().map(Some));
                if sources != side.desired {
                    let _ = side.replace(sources);
                }
            }
        }
        let add = |network: &IpNet| {
            let side = self.side(*network).ok_or(FirewallError::NoIpv6);
            side.and_then(|side| side.add(*network)).err().map(|error| (*network, error))
        };
        networks.iter().filter_map(add).collect()
    }

    fn delete(&mut self, networks: &[IpNet]) -> Refused {
        if networks.len() > 1 {
            let ended: BTreeSet<Source> = networks.iter().copied().map(Some).collect();
            for side in &mut self.sides {
                let left = &side.desired - &ended;
                if left != side.desired {
                    let _ = side.replace(left);
                }
            }
        }
        let delete = |network: &IpNet| {
            let side = self.side(*network)?;
            side.delete(*network).err().map(|error| (*network, error))
        };
        networks.iter().filter_map(delete).collect()
    }

    fn set_networks(&mut self, networks: &BTreeSet<IpNet>) {
        for side in self.sides.iter_mut().filter(|side| side.set.is_none()) {
            let family = side.family();
            let of_family = networks.iter().filter(|network| Family::of(**network) == family);
            side.desired = of_family.copied().map(Some).collect();
        }
    }

    fn matched_by(&mut self, network: IpNet) -> Result<u64, FirewallError> {
        self.side(network).map_or(Ok(0), |side| side.rules.matched_by(network))
    }
}
