//! A back end in memory that behaves like a kernel, for tests: hooks, chain, rule, set, members, refusals.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ipnet::IpNet;

use crate::block::backend::counter_totals::DropCounter;
use crate::block::backend::ipset::netlink::{Element, IpsetError};
use crate::block::backend::rulebook::RuleBook;
use crate::block::backend::{Backend, FirewallError, Refused};
use crate::block::reconcile::HookFault;
use crate::block::reconcile::{DesiredState, Fault};
use crate::config::values::Hook;
use crate::types::{Family, Moment};

/// The fake kernel, shared with the test that looks at it.
#[derive(Clone, Default)]
pub struct FakeKernel(Arc<Mutex<Inner>>);

#[derive(Default)]
pub struct Inner {
    /// The elements of the sets; `None` before the sets are installed.
    pub elements: Option<BTreeMap<IpNet, Duration>>,
    /// The targets of the rules in INPUT, in order.
    pub input: Vec<&'static str>,
    /// The rules of the chain `tcptracker`; `None` if there is no chain.
    pub chain: Option<Vec<&'static str>>,
    /// The number of elements that the sets may hold, if it is limited.
    pub capacity: Option<usize>,
    /// Every change fails.
    pub out_of_order: bool,
    /// The number of repairs of rules.
    pub mends: usize,
    /// As of the last check.
    held: [u32; 2],
}

impl FakeKernel {
    pub fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    pub fn holds(&self, network: &str) -> Option<Duration> {
        self.inner().elements.as_ref()?.get(&network.parse().unwrap()).copied()
    }

    /// Whether a packet of a source would be dropped, which needs hook, rule and element.
    pub fn drops(&self, network: &str) -> bool {
        self.has_rules() && self.holds(network).is_some()
    }

    /// Whether hook and rule are in force.
    fn has_rules(&self) -> bool {
        let inner = self.inner();
        let is_hooked = inner.input.first() == Some(&"tcptracker");
        is_hooked && inner.chain.as_ref().is_some_and(|rules| rules.contains(&"eth0"))
    }
}

impl Inner {
    fn is_in_order(&self) -> Result<(), FirewallError> {
        if self.out_of_order { Err(IpsetError::NotPermitted.into()) } else { Ok(()) }
    }

    fn ensure_rules(&mut self) -> Result<(), FirewallError> {
        self.is_in_order()?;
        // A rule needs its set.
        if self.elements.is_none() {
            return Ok(());
        }
        let chain = self.chain.get_or_insert_default();
        chain.retain(|rule| *rule != "eth0");
        chain.push("eth0");
        self.input.retain(|target| *target != "tcptracker");
        self.input.insert(0, "tcptracker");
        Ok(())
    }

    fn room_for(&self, network: &IpNet) -> bool {
        let held = self.elements.iter().flatten();
        let count = held.filter(|(other, _)| *other != network).count();
        self.capacity.is_none_or(|capacity| count < capacity)
    }
}

fn missing() -> FirewallError {
    IpsetError::Missing("fake".to_owned()).into()
}

impl Backend for FakeKernel {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn install(&mut self) -> Result<Option<Vec<Element>>, FirewallError> {
        let mut inner = self.inner();
        let element = |(&network, &remaining): (&IpNet, &Duration)| Element {
            network,
            remaining,
            packets: 0,
        };
        let found = inner.elements.as_ref().map(|found| found.iter().map(element).collect());
        inner.is_in_order()?;
        inner.elements.get_or_insert_default();
        Ok(found)
    }

    fn block(&mut self, network: IpNet, duration: Duration) -> Result<(), FirewallError> {
        let mut inner = self.inner();
        if !inner.room_for(&network) {
            return Err(IpsetError::Full("fake".to_owned()).into());
        }
        if inner.out_of_order {
            return Err(IpsetError::NotPermitted.into());
        }
        inner.elements.as_mut().ok_or_else(missing)?.insert(network, duration);
        Ok(())
    }

    fn unblock(&mut self, network: IpNet) -> Result<(), FirewallError> {
        let mut inner = self.inner();
        if inner.out_of_order {
            return Err(IpsetError::NotPermitted.into());
        }
        // Without its set nothing is blocked.
        inner.elements.as_mut().map(|elements| elements.remove(&network));
        Ok(())
    }

    fn check(&mut self, desired: &DesiredState<'_>) -> Result<Vec<Fault>, FirewallError> {
        let mut inner = self.inner();
        let Some(elements) = inner.elements.clone() else {
            inner.held = [0; 2];
            return Ok(vec![Fault::Set(Family::V4)]);
        };
        let mut faults = Vec::new();
        for family in Family::ALL {
            let desired: BTreeSet<IpNet> = desired
                .members_from(family, Bound::Unbounded)
                .map(|(network, _)| network)
                .collect();
            let held: BTreeSet<IpNet> =
                elements.keys().copied().filter(|n| Family::of(*n) == family).collect();
            let missing = desired.difference(&held).count();
            let stray = held.difference(&desired).count();
            if missing > 0 || stray > 0 {
                faults.push(Fault::Members { family, missing, stray });
            }
            inner.held[family as usize] = u32::try_from(held.len()).unwrap();
        }
        Ok(faults)
    }

    fn repair(&mut self, desired: &DesiredState<'_>) -> Result<(), FirewallError> {
        let mut inner = self.inner();
        inner.is_in_order()?;
        let members = Family::ALL.into_iter().flat_map(|family| desired.members(family));
        inner.elements = Some(members.collect());
        Ok(())
    }

    fn held(&self, family: Family) -> u32 {
        self.inner().held[family as usize]
    }

    fn dropped_from(&mut self, _: IpNet) -> Result<u64, FirewallError> {
        Ok(7)
    }

    fn capacity(&self) -> u32 {
        self.inner().capacity.map_or(u32::MAX, |capacity| u32::try_from(capacity).unwrap())
    }

    fn longest(&self) -> Duration {
        Duration::from_secs(2_000_000)
    }

    fn clear(&mut self) -> Result<(), FirewallError> {
        let mut inner = self.inner();
        inner.elements = inner.elements.take().map(|_| BTreeMap::new());
        Ok(())
    }

    fn remove(&mut self) -> Result<(), FirewallError> {
        let mut inner = self.inner();
        if inner.chain.as_ref().is_some_and(|rules| rules.contains(&"eth0")) {
            return Err(IpsetError::InUse("fake".to_owned()).into());
        }
        inner.elements = None;
        Ok(())
    }
}

impl RuleBook for FakeKernel {
    fn clear_chain(&mut self) -> Result<(), FirewallError> {
        Ok(())
    }

    fn check(&mut self, _: Moment) -> Result<Vec<Fault>, FirewallError> {
        let inner = self.inner();
        let hook = match inner.input.iter().position(|target| *target == "tcptracker") {
            Some(0) => None,
            Some(_) => Some(HookFault::NotFirst),
            None => Some(HookFault::Gone),
        };
        let family = Family::V4;
        let hook = hook.map(|is| Fault::Hook { family, hook: Hook::Input, is });
        let chain = match &inner.chain {
            None => Some(Fault::Chain(family)),
            Some(rules) if !rules.contains(&"eth0") => Some(Fault::Rule(family)),
            Some(_) => None,
        };
        Ok(hook.into_iter().chain(chain).collect())
    }

    fn repair(&mut self) -> Result<(), FirewallError> {
        let mut inner = self.inner();
        inner.ensure_rules()?;
        inner.mends += 1;
        Ok(())
    }

    fn remove(&mut self) -> Result<(), FirewallError> {
        let mut inner = self.inner();
        inner.is_in_order()?;
        inner.chain = None;
        inner.input.retain(|target| *target != "tcptracker");
        Ok(())
    }

    fn is_intact(&self, _: Family) -> bool {
        self.has_rules()
    }

    fn held(&self, _: Family) -> u32 {
        0
    }

    fn counters(&self) -> Vec<DropCounter> {
        Vec::new()
    }

    fn to_type(&self) -> Vec<String> {
        vec!["iptables -D tcptracker".to_owned()]
    }

    fn outside(&self) -> Vec<String> {
        Vec::new()
    }

    fn adopt(&mut self) -> Result<Option<Vec<Element>>, FirewallError> {
        Ok(None)
    }

    fn has_rule(&self, _: IpNet) -> bool {
        false
    }

    fn add(&mut self, _: &[IpNet]) -> Refused {
        Vec::new()
    }

    fn delete(&mut self, _: &[IpNet]) -> Refused {
        Vec::new()
    }

    fn set_networks(&mut self, _: &BTreeSet<IpNet>) {}

    fn matched_by(&mut self, _: IpNet) -> Result<u64, FirewallError> {
        Ok(7)
    }
}
