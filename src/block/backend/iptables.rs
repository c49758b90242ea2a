//! Back end `iptables`: one rule per blocked network, for kernels without sets.
//!
//! Each block needs a program, so that the rules thread makes it, and the caller waits. Every packet passes all
//! rules, so their number is limited. Rules do not expire: the service ends blocks, and the next start ends
//! those of a crashed instance.

use std::time::Duration;

use ipnet::IpNet;

use crate::block::backend::ipset::netlink::{Element, IpsetError, KernelSet};
use crate::block::backend::ipset::set_name;
use crate::block::backend::rulebook::CAPACITY;
use crate::block::backend::rules::families;
use crate::block::backend::rules_handle::{RulesCommand, RulesHandle};
use crate::block::backend::{Backend, FirewallError, Refused};
use crate::block::reconcile::{DesiredState, Fault};
use crate::types::{Family, IfName};

/// Rules do not expire, so any time will do: 100 years.
const LONGEST: Duration = Duration::from_secs(3_155_760_000);

/// The blocks of an instance as rules, which the rules thread keeps.
pub struct IptablesBackend {
    interface: IfName,
    rules: RulesHandle,
}

impl IptablesBackend {
    pub fn new(interface: &IfName, rules: RulesHandle) -> Self {
        Self { interface: interface.clone(), rules }
    }

    /// Changes the sets that this instance has left if it used back end `ipset` before.
    fn each_set(
        &self,
        change: impl Fn(&mut KernelSet) -> Result<(), IpsetError>,
    ) -> Result<(), FirewallError> {
        for family in families() {
            // A kernel without sets has none to change.
            if let Ok(mut set) = KernelSet::connect(set_name(&self.interface, family), family) {
                change(&mut set)?;
            }
        }
        Ok(())
    }
}

/// A failure to ask concerns each of these networks.
fn refused_all(networks: &[IpNet], answer: Result<Refused, FirewallError>) -> Refused {
    answer.unwrap_or_else(|error| {
        let text = error.to_string();
        let refused = |network: &IpNet| (*network, FirewallError::NoAnswer(text.clone()));
        networks.iter().map(refused).collect()
    })
}

impl Backend for IptablesBackend {
    fn name(&self) -> &'static str {
        "iptables"
    }

    fn install(&mut self) -> Result<Option<Vec<Element>>, FirewallError> {
        let found = self.rules.ask(RulesCommand::Adopt)??;
        self.each_set(KernelSet::destroy)?;
        Ok(found)
    }

    fn block(&mut self, network: IpNet, _: Duration) -> Result<(), FirewallError> {
        let mut refused = self.rules.ask(|reply| RulesCommand::Add(vec![network], reply))?;
        refused.pop().map_or(Ok(()), |(_, error)| Err(error))
    }

    fn block_all(&mut self, networks: &[(IpNet, Duration)]) -> Refused {
        let networks: Vec<IpNet> = networks.iter().map(|(network, _)| *network).collect();
        let answer = self.rules.ask(|reply| RulesCommand::Add(networks.clone(), reply));
        refused_all(&networks, answer)
    }

    fn unblock(&mut self, network: IpNet) -> Result<(), FirewallError> {
        let mut refused = self.rules.ask(|reply| RulesCommand::Delete(vec![network], reply))?;
        refused.pop().map_or(Ok(()), |(_, error)| Err(error))
    }

    fn unblock_all(&mut self, networks: &[IpNet]) -> Refused {
        if networks.is_empty() {
            return Vec::new();
        }
        let answer = self.rules.ask(|reply| RulesCommand::Delete(networks.to_vec(), reply));
        refused_all(networks, answer)
    }

    /// The rules thread itself finds and repairs what is wrong with its rules.
    fn check(&mut self, _: &DesiredState<'_>) -> Result<Vec<Fault>, FirewallError> {
        Ok(Vec::new())
    }

    fn repair(&mut self, desired: &DesiredState<'_>) -> Result<(), FirewallError> {
        let members = Family::ALL.into_iter().flat_map(|family| desired.members(family));
        let networks = members.map(|(network, _)| network).collect();
        self.rules.ask(|reply| RulesCommand::Replace(networks, reply))?
    }

    fn held(&self, family: Family) -> u32 {
        self.rules.held(family)
    }

    fn dropped_from(&mut self, network: IpNet) -> Result<u64, FirewallError> {
        self.rules.ask(|reply| RulesCommand::Matched(network, reply))?
    }

    fn needs_rules(&self) -> bool {
        true
    }

    fn capacity(&self) -> u32 {
        CAPACITY
    }

    fn longest(&self) -> Duration {
        LONGEST
    }

    /// Only the rules thread can remove the rules for single addresses.
    fn clear(&mut self) -> Result<(), FirewallError> {
        self.each_set(KernelSet::flush)
    }

    fn remove(&mut self) -> Result<(), FirewallError> {
        self.each_set(KernelSet::destroy)
    }
}
