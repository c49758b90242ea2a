//! Backend `ipset`: a kernel set per family, and one rule that matches it.
//!
//! Owns the names of the sets and the order in which sets and rules come and go: a rule needs its
//! set, a set cannot go before its rule.

use std::time::Duration;

use ipnet::IpNet;

use super::ipset::{Element, Ipset, IpsetError, LONGEST_TIMEOUT};
use super::rules::Rules;
use super::{Backend, Family, FirewallError};
use crate::config::FirewallConfig;
use crate::config::values::Established;
use crate::interface::InterfaceName;

/// The kernel's sets and the rules that use them.
pub struct KernelSets {
    ipset: Ipset,
    rules: Rules,
    interface: InterfaceName,
}

impl KernelSets {
    /// Connects to the kernel; changes nothing yet.
    pub fn connect(
        interface: &InterfaceName,
        config: &FirewallConfig,
        established: Established,
    ) -> Result<Self, FirewallError> {
        let ipset = Ipset::connect()?;
        let rules = Rules::find(interface, config, established)?;
        Ok(Self { ipset, rules, interface: interface.clone() })
    }

    fn set(&self, family: Family) -> String {
        set_name(&self.interface, family)
    }
}

/// The set of an instance for a family. At most 29 of the 31 bytes a set's name may have.
pub(super) fn set_name(interface: &InterfaceName, family: Family) -> String {
    let version = match family {
        Family::V4 => "v4",
        Family::V6 => "v6",
    };
    format!("tcptracker-{interface}-{version}")
}

impl Backend for KernelSets {
    fn name(&self) -> &'static str {
        "ipset"
    }

    fn install(&mut self) -> Result<Vec<Element>, FirewallError> {
        let mut found = Vec::new();
        for family in self.rules.families() {
            let set = self.set(family);
            match self.ipset.create(&set, family) {
                // Another version of the service made it otherwise: make it anew.
                Err(IpsetError::Foreign(_)) => {
                    self.rules.leave(family)?;
                    self.ipset.destroy(&set)?;
                    self.ipset.create(&set, family)?;
                }
                result => result?,
            }
            found.extend(self.ipset.elements(&set, family)?);
            self.rules.enter(family, &set)?;
        }
        Ok(found)
    }

    fn block(&mut self, network: IpNet, duration: Duration) -> Result<(), FirewallError> {
        let family = Family::of(network);
        if !self.rules.families().contains(&family) {
            return Err(FirewallError::NoIpv6);
        }
        Ok(self.ipset.add(&self.set(family), network, duration)?)
    }

    fn unblock(&mut self, network: IpNet) -> Result<(), FirewallError> {
        match self.ipset.delete(&self.set(Family::of(network)), network) {
            // Without its set nobody is blocked.
            Ok(_) | Err(IpsetError::Missing(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn enforced(&mut self, family: Family) -> Result<u32, FirewallError> {
        if self.rules.families().contains(&family) {
            Ok(self.ipset.count(&self.set(family), family)?)
        } else {
            Ok(0)
        }
    }

    fn longest(&self) -> Duration {
        LONGEST_TIMEOUT
    }

    fn remove(&mut self) -> Result<(), FirewallError> {
        // What cannot be taken down does not keep the rest up.
        let mut outcome = Ok(());
        for family in self.rules.families() {
            let left = self.rules.leave(family).map_err(FirewallError::from);
            let set = self.set(family);
            let gone = left.and_then(|()| Ok(self.ipset.destroy(&set)?));
            outcome = outcome.and(gone);
        }
        outcome
    }
}
