//! Backend `none`: observing, the firewall is left alone.
//!
//! Touches the kernel once, at the start: an instance that was killed may have left its rule and
//! sets, and an observer must not go on enforcing them.

use std::time::Duration;

use ipnet::IpNet;

use super::{Backend, Element, Family, FirewallError};

/// Blocks nothing.
pub struct Observer<B> {
    /// What may have been left by an instance that blocked.
    left_over: Option<B>,
}

impl<B> Observer<B> {
    /// An observer that cleans up what it finds of `left_over` first.
    pub fn new(left_over: Option<B>) -> Self {
        Self { left_over }
    }
}

impl<B: Backend> Backend for Observer<B> {
    fn name(&self) -> &'static str {
        "none"
    }

    fn install(&mut self) -> Result<Vec<Element>, FirewallError> {
        if let Some(mut left_over) = self.left_over.take() {
            left_over.remove()?;
        }
        Ok(Vec::new())
    }

    fn block(&mut self, _: IpNet, _: Duration) -> Result<(), FirewallError> {
        Err(FirewallError::Observing)
    }

    fn unblock(&mut self, _: IpNet) -> Result<(), FirewallError> {
        Ok(())
    }

    fn enforced(&mut self, _: Family) -> Result<u32, FirewallError> {
        Ok(0)
    }

    fn longest(&self) -> Duration {
        Duration::MAX
    }

    fn remove(&mut self) -> Result<(), FirewallError> {
        Ok(())
    }
}
