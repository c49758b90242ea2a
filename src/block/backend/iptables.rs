//! Backend `iptables`: a rule per address, where the kernel has no sets.
//!
//! Owns which networks have a rule. Every packet walks the whole chain, so that their number is bounded;
//! and rules know no time: that a block ends is the service's business, and what a dead instance has
//! left ends with the next start.

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::IpNet;

use crate::block::backend::ipset::netlink::{Element, Ipset};
use crate::block::backend::ipset::set_name;
use crate::block::backend::rules::Rules;
use crate::block::backend::ruleset::Source;
use crate::block::backend::{Backend, FirewallError};
use crate::block::reconcile::{DesiredState, Fault};
use crate::config::FirewallConfig;
use crate::config::values::Established;
use crate::types::ifname::IfName;
use crate::types::network::Family;

/// Rules a family may have. A packet that matches none of them takes 12 ns for each (`make bench`): with
/// so many, as much as its way through the rest of the kernel.
pub const CAPACITY: u32 = 1000;

/// Rules know no end, so there is no limit to how far off it may be: a hundred years.
const LONGEST: Duration = Duration::from_secs(3_155_760_000);

/// How long a rule left by a dead instance stays where nobody remembers for how long it was meant.
const LEFT_OVER: Duration = Duration::from_secs(3600);

/// The rules of an instance.
pub struct IptablesBackend {
    interface: IfName,
    rules: Rules,
    chains: Vec<Chain>,
}

/// What was last seen of a family's rules.
struct Chain {
    family: Family,
    /// Networks that have a rule.
    held: BTreeSet<IpNet>,
    /// What is wrong with the rules; they are looked at only when they have changed.
    faults: Vec<Fault>,
    /// Rules that are not as they are made here, or there twice.
    misfits: usize,
}

impl IptablesBackend {
    /// Finds iptables; changes nothing yet.
    pub fn find(
        interface: &IfName,
        config: &FirewallConfig,
        established: Established,
    ) -> Result<Self, FirewallError> {
        let rules = Rules::find(interface, config, established, |_| String::new())?;
        let chain =
            |family| Chain { family, held: BTreeSet::new(), faults: Vec::new(), misfits: 0 };
        let chains = rules.families().into_iter().map(chain).collect();
        Ok(Self { interface: interface.clone(), rules, chains })
    }

    fn chain(&self, family: Family) -> Option<&Chain> {
        self.chains.iter().find(|chain| chain.family == family)
    }

    /// Removes the rules of these networks, all of one family.
    fn remove_rules(&mut self, family: Family, networks: &[IpNet]) -> Result<(), FirewallError> {
        let Some(chain) = self.chains.iter_mut().find(|chain| chain.family == family) else {
            return Ok(());
        };
        let gone: BTreeSet<IpNet> =
            networks.iter().copied().filter(|network| chain.held.contains(network)).collect();
        if gone.is_empty() {
            return Ok(());
        }
        let left: BTreeSet<IpNet> = chain.held.difference(&gone).copied().collect();
        if self.rules.delete(family, gone.into_iter().map(Some)).is_err() {
            // Another program has changed the chain: what ought to be in it is put up as a whole.
            self.rules.put_up(family, &sources(left.iter().copied()))?;
        }
        chain.held = left;
        Ok(())
    }
}

/// Removes the set of an instance with the other backend, whose rule is gone by now.
fn remove_set(interface: &IfName, family: Family) -> Result<(), FirewallError> {
    // Where the kernel has no sets there is none.
    Ipset::connect().map_or(Ok(()), |mut ipset| Ok(ipset.destroy(&set_name(interface, family))?))
}

fn sources(networks: impl Iterator<Item = IpNet>) -> BTreeSet<Source> {
    networks.map(Some).collect()
}

impl Chain {
    fn see(&mut self, look: super::rules::Look) {
        let rules = look.fitting.len();
        self.held = look.fitting.into_iter().flatten().collect();
        self.misfits = look.misfits + rules - self.held.len();
        self.faults = look.faults;
    }
}

impl Backend for IptablesBackend {
    fn name(&self) -> &'static str {
        "iptables"
    }

    fn install(&mut self) -> Result<Option<Vec<Element>>, FirewallError> {
        let mut found: Option<Vec<Element>> = None;
        for chain in &mut self.chains {
            let look = self.rules.look(chain.family)?;
            let is_left_over = !look.fitting.is_empty() || look.misfits > 0;
            chain.see(look);
            // What a dead instance has left goes on, until it is known who is to stay.
            self.rules.put_up(chain.family, &sources(chain.held.iter().copied()))?;
            if is_left_over {
                let element = |network: &IpNet| Element {
                    network: *network,
                    remaining: LEFT_OVER,
                    packets: 0,
                };
                found.get_or_insert_default().extend(chain.held.iter().map(element));
            }
            remove_set(&self.interface, chain.family)?;
        }
        Ok(found)
    }

    fn block(&mut self, network: IpNet, _: Duration) -> Result<(), FirewallError> {
        let family = Family::of(network);
        let chain = self.chains.iter_mut().find(|chain| chain.family == family);
        let chain = chain.ok_or(FirewallError::NoIpv6)?;
        if chain.held.contains(&network) {
            return Ok(());
        }
        if chain.held.len() >= CAPACITY as usize {
            return Err(FirewallError::Full(CAPACITY));
        }
        self.rules.add(family, &[Some(network)])?;
        chain.held.insert(network);
        Ok(())
    }

    fn block_all(&mut self, networks: &[(IpNet, Duration)]) -> Vec<(IpNet, FirewallError)> {
        let mut refused = Vec::new();
        for family in Family::ALL {
            let of_family =
                || networks.iter().map(|(n, _)| *n).filter(|n| Family::of(*n) == family);
            let Some(chain) = self.chains.iter_mut().find(|chain| chain.family == family) else {
                refused.extend(of_family().map(|network| (network, FirewallError::NoIpv6)));
                continue;
            };
            let mut new: Vec<IpNet> = of_family().filter(|n| !chain.held.contains(n)).collect();
            let full =
                new.split_off((CAPACITY as usize).saturating_sub(chain.held.len()).min(new.len()));
            refused
                .extend(full.into_iter().map(|network| (network, FirewallError::Full(CAPACITY))));
            if new.is_empty() {
                continue;
            }
            let rules: Vec<Source> = new.iter().copied().map(Some).collect();
            if self.rules.add(family, &rules).is_ok() {
                chain.held.extend(new);
            } else {
                // One by one, to see which it is.
                let one_by_one = new.into_iter().filter_map(|network| {
                    self.block(network, Duration::ZERO).err().map(|error| (network, error))
                });
                refused.extend(one_by_one);
            }
        }
        refused
    }

    fn unblock(&mut self, network: IpNet) -> Result<(), FirewallError> {
        self.remove_rules(Family::of(network), &[network])
    }

    fn unblock_all(&mut self, networks: &[IpNet]) -> Vec<(IpNet, FirewallError)> {
        let mut refused = Vec::new();
        for family in Family::ALL {
            let of_family: Vec<IpNet> =
                networks.iter().copied().filter(|network| Family::of(*network) == family).collect();
            if self.remove_rules(family, &of_family).is_err() {
                let one_by_one = of_family.into_iter().filter_map(|network| {
                    self.unblock(network).err().map(|error| (network, error))
                });
                refused.extend(one_by_one);
            }
        }
        refused
    }

    fn check(&mut self, desired: &DesiredState<'_>) -> Result<Vec<Fault>, FirewallError> {
        let mut faults = Vec::new();
        for chain in &mut self.chains {
            let family = chain.family;
            if let Some(look) = self.rules.look_if_changed(family, desired.now())? {
                chain.see(look);
            }
            self.rules.count(family)?;
            faults.extend(chain.faults.iter().cloned());
            if !chain.faults.contains(&Fault::Chain(family)) {
                let held = desired.members(family).filter(|(n, _)| chain.held.contains(n)).count();
                let missing = desired.count(family) - held;
                let stray = chain.held.len() - held + chain.misfits;
                let differs = missing > 0 || stray > 0;
                faults.extend(differs.then_some(Fault::Members { family, missing, stray }));
            }
        }
        Ok(faults)
    }

    fn repair(&mut self, desired: &DesiredState<'_>) -> Result<(), FirewallError> {
        for chain in &self.chains {
            let members = desired.members(chain.family).map(|(network, _)| network);
            self.rules.put_up(chain.family, &sources(members))?;
            remove_set(&self.interface, chain.family)?;
        }
        Ok(())
    }

    fn enforced(&self, family: Family) -> u32 {
        let Some(chain) = self.chain(family) else { return 0 };
        if chain.faults.iter().any(Fault::breaks_all) {
            return 0;
        }
        u32::try_from(chain.held.len()).unwrap_or(u32::MAX)
    }

    fn dropped(&self, family: Family) -> u64 {
        self.rules.matched(family)
    }

    fn dropped_from(&mut self, network: IpNet) -> Result<u64, FirewallError> {
        Ok(self.rules.matched_by(network)?.unwrap_or(0))
    }

    fn capacity(&self) -> u32 {
        CAPACITY
    }

    fn longest(&self) -> Duration {
        LONGEST
    }

    fn remove(&mut self) -> Result<(), FirewallError> {
        // What cannot be taken down does not keep the rest up.
        let mut outcome = Ok(());
        for chain in &self.chains {
            let left = self.rules.take_down(chain.family);
            outcome = outcome.and(left.and_then(|()| remove_set(&self.interface, chain.family)));
        }
        outcome
    }
}
