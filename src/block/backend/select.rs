//! The choice of the back end: the configured one, or the best that this kernel supports.

use tracing::debug;

use crate::block::backend::ipset::IpsetBackend;
use crate::block::backend::ipset::netlink::IpsetError;
use crate::block::backend::iptables::IptablesBackend;
use crate::block::backend::nft::NftBackend;
use crate::block::backend::nftables::Nftables;
use crate::block::backend::rulebook::{CAPACITY, RulePlan};
use crate::block::backend::rules::families;
use crate::block::backend::rules_handle::RulesHandle;
use crate::block::backend::{Backend, FirewallError};
use crate::config;
use crate::config::Config;
use crate::types::{BackendNote, IfName};

/// A chosen back end.
pub struct Selected {
    pub backend: Box<dyn Backend + Send>,
    /// The rules of iptables that it needs.
    pub plan: Option<RulePlan>,
    /// The other back ends, which a crashed instance with another configuration may have used.
    pub others: Vec<Box<dyn Backend + Send>>,
    /// The rules that such an instance has left.
    pub old_plan: Option<RulePlan>,
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
    if config.firewall.backend == config::Backend::Nftables {
        debug!("using back end nftables");
        let backend = Box::new(NftBackend::connect(&plan(true))?);
        let mut sets = IpsetBackend::connect(interface).ok();
        let has_sets = sets.as_mut().is_some_and(IpsetBackend::has_sets);
        let old_plan = (has_sets || has_chain()).then(|| plan(has_sets));
        let others = sets.into_iter().map(|sets| Box::new(sets) as _).collect();
        return Ok(Selected { backend, plan: None, others, old_plan, note: None });
    }
    // A kernel without nf_tables holds no table of a crashed instance.
    let table = NftBackend::connect(&plan(true)).ok();
    let others = table.into_iter().map(|table| Box::new(table) as _).collect();
    let old_plan = None;
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
                let (backend, plan) = (Box::new(sets?), Some(plan(true)));
                return Ok(Selected { backend, plan, others, old_plan, note: None });
            }
        }
    }
    debug!(?note, "using back end iptables");
    let backend = Box::new(IptablesBackend::new(interface, rules.clone()));
    Ok(Selected { backend, plan: Some(plan(false)), others, old_plan, note })
}

/// Whether the chain of iptables exists, as far as nf_tables knows.
fn has_chain() -> bool {
    families().any(|family| {
        Nftables::connect(family).and_then(|mut nftables| nftables.has_chain()).unwrap_or(false)
    })
}
