//! Backend `ipset`: a kernel set per family, and one rule that matches it.
//!
//! Owns the names of the sets and the order in which sets and rules come and go: a rule needs its
//! set, a set cannot go before its rule. What a set holds is looked at in `members.rs`.

pub mod members;
pub mod netlink;

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::IpNet;

use crate::block::backend::ipset::members::Look;
use crate::block::backend::ipset::netlink::{
    AT_ONCE, CAPACITY, Element, Ipset, IpsetError, LONGEST_TIMEOUT,
};
use crate::block::backend::rules::Rules;
use crate::block::backend::{Backend, FirewallError};
use crate::block::reconcile::{DesiredState, Fault};
use crate::config::FirewallConfig;
use crate::config::values::Established;
use crate::types::ifname::IfName;
use crate::types::network::Family;

/// The kernel's sets and the rules that use them.
pub struct IpsetBackend {
    ipset: Ipset,
    rules: Rules,
    sets: Vec<Set>,
}

/// The set of one family, and what was last seen of it and its rule.
struct Set {
    family: Family,
    name: String,
    look: Look,
    /// What is wrong with the rules; they are looked at only when they have changed.
    rule_faults: Vec<Fault>,
    /// Networks that are blocked in fact.
    enforced: u32,
    /// Somebody was to be blocked at the last look.
    was_used: bool,
}

impl IpsetBackend {
    /// Connects to the kernel; changes nothing yet.
    pub fn connect(
        interface: &IfName,
        config: &FirewallConfig,
        established: Established,
    ) -> Result<Self, FirewallError> {
        let ipset = Ipset::connect()?;
        let matching = |family| format!("-m set --match-set {} src ", set_name(interface, family));
        let rules = Rules::find(interface, config, established, matching)?;
        let set = |family| Set {
            family,
            name: set_name(interface, family),
            look: Look::default(),
            rule_faults: Vec::new(),
            enforced: 0,
            was_used: true,
        };
        let sets = rules.families().into_iter().map(set).collect();
        Ok(Self { ipset, rules, sets })
    }

    fn set(&self, family: Family) -> Option<&Set> {
        self.sets.iter().find(|set| set.family == family)
    }
}

/// The set of an instance for a family. At most 29 of the 31 bytes a set's name may have.
pub fn set_name(interface: &IfName, family: Family) -> String {
    let version = match family {
        Family::V4 => "v4",
        Family::V6 => "v6",
    };
    format!("tcptracker-{interface}-{version}")
}

impl Set {
    /// Makes the set where it is not; one of another kind is made anew.
    fn put_up(&self, ipset: &mut Ipset, rules: &mut Rules) -> Result<(), FirewallError> {
        match ipset.create(&self.name, self.family) {
            // Another version of the service made it otherwise, or somebody has.
            Err(IpsetError::Foreign(_)) => {
                rules.take_down(self.family)?;
                ipset.destroy(&self.name)?;
                Ok(ipset.create(&self.name, self.family)?)
            }
            result => Ok(result?),
        }
    }
}

impl Backend for IpsetBackend {
    fn name(&self) -> &'static str {
        "ipset"
    }

    fn install(&mut self) -> Result<Option<Vec<Element>>, FirewallError> {
        let mut found: Option<Vec<Element>> = None;
        for set in &self.sets {
            let mut elements = Vec::new();
            match self.ipset.each_element(&set.name, set.family, |element| elements.push(element)) {
                Ok(()) => {
                    found.get_or_insert_default().append(&mut elements);
                    let look = self.rules.look(set.family)?;
                    if look.fitting.is_empty() && look.misfits == 0 {
                        // The set without its rule. Should that be there and not go, it does no harm
                        // before the stop, which tells why the set cannot go.
                        let _ = self.rules.take_down_other_kind(set.family);
                    }
                }
                Err(IpsetError::Missing(_)) => {}
                Err(error) => return Err(error.into()),
            }
            set.put_up(&mut self.ipset, &mut self.rules)?;
            self.rules.put_up(set.family, &BTreeSet::from([None]))?;
        }
        Ok(found)
    }

    fn block(&mut self, network: IpNet, duration: Duration) -> Result<(), FirewallError> {
        let family = Family::of(network);
        let set = self.sets.iter().find(|set| set.family == family);
        let set = set.ok_or(FirewallError::NoIpv6)?;
        Ok(self.ipset.add(&set.name, network, duration)?)
    }

    fn block_all(&mut self, networks: &[(IpNet, Duration)]) -> Vec<(IpNet, FirewallError)> {
        let mut refused = Vec::new();
        for set in &self.sets {
            let is_of_family =
                |(network, _): &&(IpNet, Duration)| Family::of(*network) == set.family;
            let of_family: Vec<_> = networks.iter().filter(is_of_family).copied().collect();
            for some in of_family.chunks(AT_ONCE) {
                if self.ipset.add_all(&set.name, some).is_err() {
                    // One after the other, to see which of them it is.
                    for (network, duration) in some {
                        if let Err(error) = self.ipset.add(&set.name, *network, *duration) {
                            refused.push((*network, error.into()));
                        }
                    }
                }
            }
        }
        let is_spoken = |family: Family| self.sets.iter().any(|set| set.family == family);
        let unspoken = networks.iter().filter(|(network, _)| !is_spoken(Family::of(*network)));
        refused.extend(unspoken.map(|(network, _)| (*network, FirewallError::NoIpv6)));
        refused
    }

    fn unblock(&mut self, network: IpNet) -> Result<(), FirewallError> {
        let set = self.sets.iter().find(|set| set.family == Family::of(network));
        let Some(set) = set else { return Ok(()) };
        match self.ipset.delete(&set.name, network) {
            // Without its set nobody is blocked.
            Ok(_) | Err(IpsetError::Missing(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn check(&mut self, desired: &DesiredState<'_>) -> Result<Vec<Fault>, FirewallError> {
        let mut faults = Vec::new();
        for set in &mut self.sets {
            let family = set.family;
            if let Some(look) = self.rules.look_if_changed(family, desired.now())? {
                set.rule_faults = look.faults;
                let chain_gone = set.rule_faults.contains(&Fault::Chain(family));
                if !chain_gone && (look.fitting.len() != 1 || look.misfits != 0) {
                    set.rule_faults.push(Fault::Rule(family));
                }
            }
            // Without blocks nothing is dropped; with the last one its packets are still to be read.
            let is_used = desired.count(family) > 0;
            if std::mem::replace(&mut set.was_used, is_used) || is_used {
                self.rules.count(family)?;
            }
            let (held, fault) =
                members::check(&mut self.ipset, &set.name, &mut set.look, family, desired)?;
            let broken = set.rule_faults.iter().any(Fault::breaks_all);
            set.enforced = if broken { 0 } else { held };
            faults.extend(set.rule_faults.iter().cloned());
            faults.extend(fault);
        }
        Ok(faults)
    }

    fn repair(&mut self, desired: &DesiredState<'_>) -> Result<(), FirewallError> {
        for set in &mut self.sets {
            set.put_up(&mut self.ipset, &mut self.rules)?;
            members::repair(&mut self.ipset, &set.name, set.family, desired)?;
            set.look = Look::default();
            // Packets come only when all stands.
            self.rules.put_up(set.family, &BTreeSet::from([None]))?;
        }
        Ok(())
    }

    fn enforced(&self, family: Family) -> u32 {
        self.set(family).map_or(0, |set| set.enforced)
    }

    fn dropped(&self, family: Family) -> u64 {
        self.rules.matched(family)
    }

    fn dropped_from(&mut self, network: IpNet) -> Result<u64, FirewallError> {
        let family = Family::of(network);
        let Some(set) = self.sets.iter().find(|set| set.family == family) else { return Ok(0) };
        let mut packets = 0;
        // There is no way to ask for one alone.
        self.ipset.each_element(&set.name, family, |element| {
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
        // What cannot be taken down does not keep the rest up.
        let mut outcome = Ok(());
        for set in &self.sets {
            let left = self.rules.take_down(set.family);
            let gone = left.and_then(|()| Ok(self.ipset.destroy(&set.name)?));
            outcome = outcome.and(gone);
        }
        outcome
    }
}
