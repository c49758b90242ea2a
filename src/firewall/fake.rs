//! An in-memory kernel with a kernel's semantics, for tests of the actor: elements, refusals, order.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ipnet::IpNet;

use super::{Backend, Element, Family, FirewallError, IpsetError};

/// What the fake kernel holds; shared with the test that looks at it.
#[derive(Clone, Default)]
pub(super) struct FakeKernel(Arc<Mutex<Inner>>);

#[derive(Default)]
pub(super) struct Inner {
    /// The sets' elements; none before they are installed.
    pub elements: Option<BTreeMap<IpNet, Duration>>,
    /// Refuses every block from now on.
    pub full: bool,
}

impl FakeKernel {
    pub(super) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    pub(super) fn holds(&self, network: &str) -> Option<Duration> {
        self.inner().elements.as_ref()?.get(&network.parse().unwrap()).copied()
    }
}

fn missing() -> FirewallError {
    IpsetError::Missing("fake".to_owned()).into()
}

impl Backend for FakeKernel {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn install(&mut self) -> Result<Vec<Element>, FirewallError> {
        let mut inner = self.inner();
        let elements = inner.elements.get_or_insert_default();
        Ok(elements
            .iter()
            .map(|(&network, &remaining)| Element { network, remaining, packets: 0 })
            .collect())
    }

    fn block(&mut self, network: IpNet, duration: Duration) -> Result<(), FirewallError> {
        let mut inner = self.inner();
        if inner.full {
            return Err(IpsetError::Full("fake".to_owned()).into());
        }
        inner.elements.as_mut().ok_or_else(missing)?.insert(network, duration);
        Ok(())
    }

    fn unblock(&mut self, network: IpNet) -> Result<(), FirewallError> {
        self.inner().elements.as_mut().ok_or_else(missing)?.remove(&network);
        Ok(())
    }

    fn enforced(&mut self, family: Family) -> Result<u32, FirewallError> {
        let inner = self.inner();
        let elements = inner.elements.as_ref().ok_or_else(missing)?;
        let count = elements.keys().filter(|network| Family::of(**network) == family).count();
        Ok(u32::try_from(count).unwrap())
    }

    fn longest(&self) -> Duration {
        Duration::from_secs(2_000_000)
    }

    fn remove(&mut self) -> Result<(), FirewallError> {
        self.inner().elements = None;
        Ok(())
    }
}
