//! The choice of the back end: the configured one, or the best that this kernel supports.

use tracing::debug;

use crate::block::backend::ipset::IpsetBackend;
use crate::block::backend::ipset::netlink::IpsetError;
use crate::block::backend::iptables::IptablesBackend;
use crate::block::backend::rulebook::{CAPACITY, RulePlan};
use crate::block::backend::rules_handle::RulesHandle;
use crate::block::backend::{Backend, FirewallError};
use crate::config;
use crate::config::Config;
use crate::types::{BackendNote, IfName};

/// A chosen back end.
pub struct Selected {
    pub backend: Box<dyn Backend + Send>,
    /// The rules that it needs.
    pub plan: RulePlan,
    /// What an operator should know about the choice.
    pub note: Option<BackendNote>,
}

/// Chooses and connects the back end. Starts no program, and changes nothing.
pub fn select(
    interface: &IfName,
    config: &Config,
    rules: &RulesHandle,
) -> Result<Selected, FirewallError> {
    let plan = |has_sets| RulePlan {
        interface: interface.clone(),
        firewall: config.firewall.clone(),
        established: config.block.established,
        has_sets,
    };
    let mut note = None;
    if config.firewall.backend != config::Backend::Iptables {
        match IpsetBackend::connect(interface) {
            Err(FirewallError::Set(error @ IpsetError::Unsupported))
                if config.firewall.backend == config::Backend::Auto =>
            {
                note = Some(BackendNote { error: error.to_string(), capacity: CAPACITY });
            }
            sets => {
                debug!("using back end ipset");
                return Ok(Selected { backend: Box::new(sets?), plan: plan(true), note: None });
            }
        }
    }
    debug!(?note, "using back end iptables");
    let backend = Box::new(IptablesBackend::new(interface, rules.clone()));
    Ok(Selected { backend, plan: plan(false), note })
}
