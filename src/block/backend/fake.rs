//! A back end in memory that behaves like a kernel, for tests: hooks, chain, rule, set, members, refusals.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ipnet::IpNet;

use crate::block::backend::ipset::netlink::{Element, IpsetError};
use crate::block::backend::{Backend, FirewallError};
use crate::block::reconcile::HookFault;
use crate::block::reconcile::{DesiredState, Fault};
use crate::config::values::Hook;
use crate::types::Family;

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
    /// The number of repairs.
    pub mends: usize,
    /// As of the last check.
    enforced: [u32; 2],
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
        let inner = self.inner();
        let is_hooked = inner.input.first() == Some(&"tcptracker");
        let has_rule = inner.chain.as_ref().is_some_and(|rules| rules.contains(&"eth0"));
        drop(inner);
        is_hooked && has_rule && self.holds(network).is_some()
    }
}

impl Inner {
    fn ensure(&mut self) -> Result<(), FirewallError> {
        if self.out_of_order {
            return Err(IpsetError::NotPermitted.into());
        }
        self.elements.get_or_insert_default();
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
        inner.ensure()?;
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
        let mut faults = Vec::new();
        let hook = match inner.input.iter().position(|target| *target == "tcptracker") {
            Some(0) => None,
            Some(_) => Some(HookFault::NotFirst),
            None => Some(HookFault::Gone),
        };
        let family = Family::V4;
        faults.extend(hook.map(|is| Fault::Hook { family, hook: Hook::Input, is }));
        match &inner.chain {
            None => faults.push(Fault::Chain(family)),
            Some(rules) if !rules.contains(&"eth0") => faults.push(Fault::Rule(family)),
            Some(_) => {}
        }
        let broken = faults.iter().any(Fault::breaks_all);
        let Some(elements) = inner.elements.clone() else {
            faults.push(Fault::Set(family));
            inner.enforced = [0; 2];
            return Ok(faults);
        };
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
            let count = u32::try_from(held.len()).unwrap();
            inner.enforced[family as usize] = if broken { 0 } else { count };
        }
        Ok(faults)
    }

    fn repair(&mut self, desired: &DesiredState<'_>) -> Result<(), FirewallError> {
        let mut inner = self.inner();
        inner.ensure()?;
        inner.mends += 1;
        let members = Family::ALL.into_iter().flat_map(|family| desired.members(family));
        inner.elements = Some(members.collect());
        Ok(())
    }

    fn enforced(&self, family: Family) -> u32 {
        self.inner().enforced[family as usize]
    }

    fn dropped(&self, _: Family) -> u64 {
        0
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

    fn remove(&mut self) -> Result<(), FirewallError> {
        *self.inner() = Inner::default();
        Ok(())
    }
}
