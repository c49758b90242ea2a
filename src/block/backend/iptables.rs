//! Back end `iptables`: one rule per blocked network, for kernels without sets.
//!
//! Owns which networks have a rule. Single rules go through the crate `iptables`; many at once through
//! `iptables-restore`, because a process for each rule takes up to 16 ms and 1,000 rules have to be back
//! within a second. Every packet passes all rules, so their number is limited. Rules do not expire: the
//! service ends blocks, and the next start ends those of a crashed instance.

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::IpNet;

use crate::block::backend::ipset::netlink::{Element, KernelSet};
use crate::block::backend::ipset::set_name;
use crate::block::backend::rules::{Rules, families};
use crate::block::backend::ruleset::{Inspection, Source};
use crate::block::backend::{Backend, FirewallError};
use crate::block::reconcile::{DesiredState, Fault};
use crate::config::FirewallConfig;
use crate::config::values::Established;
use crate::types::{Family, IfName};

/// The rules that a family may have. A packet that matches none of them takes 12 ns for each
/// (`make bench`): 1,000 rules take as long as its way through the rest of the kernel.
pub const CAPACITY: u32 = 1000;

/// Rules do not expire, so any time will do: 100 years.
const LONGEST: Duration = Duration::from_secs(3_155_760_000);

/// How long a rule of a crashed instance stays if the database does not know it.
const LEFT_OVER: Duration = Duration::from_secs(3600);

/// The rules of an instance.
pub struct IptablesBackend {
    interface: IfName,
    /// One for each of [`families`].
    chains: Vec<Chain>,
}

/// The rules of a family.
struct Chain {
    rules: Rules,
    /// The last inspection, and in its sources all changes made since.
    found: Inspection,
}

impl Chain {
    fn holds(&self, network: IpNet) -> bool {
        self.found.sources.contains(&Some(network))
    }

    /// Makes the chain hold the rules for these sources and no others.
    fn replace(&mut self, sources: BTreeSet<Source>) -> Result<(), FirewallError> {
        self.rules.ensure(&sources)?;
        self.found.sources = sources;
        Ok(())
    }
}

impl IptablesBackend {
    /// Finds iptables. Changes nothing.
    pub fn find(
        interface: &IfName,
        config: &FirewallConfig,
        established: Established,
    ) -> Result<Self, FirewallError> {
        let mut chains = Vec::new();
        for family in families() {
            let rules = Rules::find(interface, family, config, established, "")?;
            chains.push(Chain { rules, found: Inspection::default() });
        }
        Ok(Self { interface: interface.clone(), chains })
    }

    /// Gives each chain these rules in one step. The caller goes through its networks one by one
    /// afterwards, which shows what has failed.
    fn replace_all(&mut self, sources: impl Fn(&Chain) -> BTreeSet<Source>) {
        for chain in &mut self.chains {
            let sources = sources(chain);
            if sources != chain.found.sources {
                let _ = chain.replace(sources);
            }
        }
    }

    fn chain(&mut self, network: IpNet) -> Option<&mut Chain> {
        self.chains.get_mut(Family::of(network) as usize)
    }
}

/// Removes the set that this instance has left if it used back end `ipset` before. Its rule is gone.
fn remove_set(interface: &IfName, family: Family) -> Result<(), FirewallError> {
    // A kernel without sets has none to remove.
    let set = KernelSet::connect(set_name(interface, family), family);
    set.map_or(Ok(()), |mut set| Ok(set.destroy()?))
}

impl Backend for IptablesBackend {
    fn name(&self) -> &'static str {
        "iptables"
    }

    fn install(&mut self) -> Result<Option<Vec<Element>>, FirewallError> {
        let mut found: Option<Vec<Element>> = None;
        for chain in &mut self.chains {
            chain.found = chain.rules.inspect()?;
            // The rules of a crashed instance stay until the service knows which of them to keep.
            chain.rules.ensure(&chain.found.sources)?;
            if !chain.found.sources.is_empty() || chain.found.unexpected > 0 {
                let element =
                    |&network: &IpNet| Element { network, remaining: LEFT_OVER, packets: 0 };
                let networks = chain.found.sources.iter().flatten();
                found.get_or_insert_default().extend(networks.map(element));
            }
            remove_set(&self.interface, chain.rules.family())?;
        }
        Ok(found)
    }

    fn block(&mut self, network: IpNet, _: Duration) -> Result<(), FirewallError> {
        let chain = self.chain(network).ok_or(FirewallError::NoIpv6)?;
        if chain.holds(network) {
            return Ok(());
        }
        if chain.found.sources.len() >= CAPACITY as usize {
            return Err(FirewallError::Full(CAPACITY));
        }
        chain.rules.add(network)?;
        chain.found.sources.insert(Some(network));
        Ok(())
    }

    fn block_all(&mut self, networks: &[(IpNet, Duration)]) -> Vec<(IpNet, FirewallError)> {
        self.replace_all(|chain| {
            let mut sources = chain.found.sources.clone();
            for (network, _) in networks {
                let is_of_family = Family::of(*network) == chain.rules.family();
                if is_of_family && sources.len() < CAPACITY as usize {
                    sources.insert(Some(*network));
                }
            }
            sources
        });
        let block = |(network, time): &(IpNet, Duration)| {
            self.block(*network, *time).err().map(|error| (*network, error))
        };
        networks.iter().filter_map(block).collect()
    }

    fn unblock(&mut self, network: IpNet) -> Result<(), FirewallError> {
        let Some(chain) = self.chain(network).filter(|chain| chain.holds(network)) else {
            return Ok(());
        };
        let mut left = chain.found.sources.clone();
        left.remove(&Some(network));
        if chain.rules.delete(network).is_err() {
            // Another program has changed the chain, so it is made as a whole.
            return chain.replace(left);
        }
        chain.found.sources = left;
        Ok(())
    }

    fn unblock_all(&mut self, networks: &[IpNet]) -> Vec<(IpNet, FirewallError)> {
        if networks.len() > 1 {
            let ended: BTreeSet<Source> = networks.iter().copied().map(Some).collect();
            self.replace_all(|chain| &chain.found.sources - &ended);
        }
        let unblock = |network: &IpNet| self.unblock(*network).err().map(|error| (*network, error));
        networks.iter().filter_map(unblock).collect()
    }

    fn check(&mut self, desired: &DesiredState<'_>) -> Result<Vec<Fault>, FirewallError> {
        let mut faults = Vec::new();
        for chain in &mut self.chains {
            let family = chain.rules.family();
            if let Some(found) = chain.rules.inspect_if_changed(desired.now())? {
                chain.found = found;
            }
            chain.rules.update_totals()?;
            faults.extend(chain.found.faults.iter().cloned());
            if !chain.found.faults.contains(&Fault::Chain(family)) {
                let held = desired.members(family).filter(|(n, _)| chain.holds(*n)).count();
                let missing = desired.count(family) - held;
                let stray = chain.found.sources.len() - held + chain.found.unexpected;
                let differs = missing > 0 || stray > 0;
                faults.extend(differs.then_some(Fault::Members { family, missing, stray }));
            }
        }
        Ok(faults)
    }

    fn repair(&mut self, desired: &DesiredState<'_>) -> Result<(), FirewallError> {
        for chain in &mut self.chains {
            let family = chain.rules.family();
            let networks = desired.members(family).map(|(network, _)| Some(network));
            chain.rules.ensure(&networks.collect())?;
            remove_set(&self.interface, family)?;
        }
        Ok(())
    }

    fn enforced(&self, family: Family) -> u32 {
        let chain = self.chains.get(family as usize);
        let chain = chain.filter(|chain| !chain.found.faults.iter().any(Fault::breaks_all));
        chain.map_or(0, |chain| u32::try_from(chain.found.sources.len()).unwrap_or(u32::MAX))
    }

    fn dropped(&self, family: Family) -> u64 {
        self.chains.get(family as usize).map_or(0, |chain| chain.rules.matched())
    }

    fn dropped_from(&mut self, network: IpNet) -> Result<u64, FirewallError> {
        self.chain(network).map_or(Ok(0), |chain| chain.rules.matched_by(network))
    }

    fn capacity(&self) -> u32 {
        CAPACITY
    }

    fn longest(&self) -> Duration {
        LONGEST
    }

    fn remove(&mut self) -> Result<(), FirewallError> {
        // A family whose rules cannot be removed must not keep those of the other one.
        let mut outcome = Ok(());
        for chain in &mut self.chains {
            let family = chain.rules.family();
            let removed = chain.rules.remove().and_then(|()| remove_set(&self.interface, family));
            outcome = outcome.and(removed);
        }
        outcome
    }
}
