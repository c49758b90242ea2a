//! Backend `none`: observing, the firewall is left alone.
//!
//! Touches the kernel once, at the start: an instance that was killed may have left its rule and
//! sets, and an observer must not go on enforcing them.

use std::time::Duration;

use ipnet::IpNet;

use crate::block::backend::ipset::netlink::Element;
use crate::block::backend::{Backend, FirewallError};
use crate::block::reconcile::{DesiredState, Fault};
use crate::types::network::Family;

/// Blocks nothing.
pub struct NullBackend {
    /// What may have been left by an instance that blocked.
    left_over: Option<Box<dyn Backend + Send>>,
}

impl NullBackend {
    /// An observer that cleans up what it finds of `left_over` first.
    pub fn new(left_over: Option<Box<dyn Backend + Send>>) -> Self {
        Self { left_over }
    }
}

impl Backend for NullBackend {
    fn name(&self) -> &'static str {
        "none"
    }

    fn install(&mut self) -> Result<Option<Vec<Element>>, FirewallError> {
        if let Some(mut left_over) = self.left_over.take() {
            left_over.remove()?;
        }
        Ok(None)
    }

    fn block(&mut self, _: IpNet, _: Duration) -> Result<(), FirewallError> {
        Err(FirewallError::Observing)
    }

    fn unblock(&mut self, _: IpNet) -> Result<(), FirewallError> {
        Ok(())
    }

    fn check(&mut self, _: &DesiredState<'_>) -> Result<Vec<Fault>, FirewallError> {
        Ok(Vec::new())
    }

    fn repair(&mut self, _: &DesiredState<'_>) -> Result<(), FirewallError> {
        Ok(())
    }

    fn enforced(&self, _: Family) -> u32 {
        0
    }

    fn dropped(&self, _: Family) -> u64 {
        0
    }

    fn dropped_from(&mut self, _: IpNet) -> Result<u64, FirewallError> {
        Ok(0)
    }

    fn capacity(&self) -> u32 {
        u32::MAX
    }

    fn longest(&self) -> Duration {
        Duration::MAX
    }

    fn remove(&mut self) -> Result<(), FirewallError> {
        Ok(())
    }
}
