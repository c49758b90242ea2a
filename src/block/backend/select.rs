//! The choice of the back end: the configured one, or the best that this kernel supports.

use tracing::debug;

use crate::block::backend::ipset::IpsetBackend;
use crate::block::backend::ipset::netlink::IpsetError;
use crate::block::backend::iptables::IptablesBackend;
use crate::block::backend::nft::NftBackend;
use crate::block::backend::nftables::Nftables;
use crate::block::backend::program::Program;
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
    let (chosen, note) = match config.firewall.backend {
        config::Backend::Auto => best(interface, &plan(true)),
        chosen => (chosen, None),
    };
    debug!(?chosen, ?note, "chose the back end");
    if chosen == config::Backend::Nftables {
        let backend = Box::new(NftBackend::connect(&plan(true))?);
        let mut sets = IpsetBackend::connect(interface).ok();
        let has_sets = sets.as_mut().is_some_and(IpsetBackend::has_sets);
        let old_plan = (has_sets || has_chain()).then(|| plan(has_sets));
        let others = sets.into_iter().map(|sets| Box::new(sets) as _).collect();
        return Ok(Selected { backend, plan: None, others, old_plan, note });
    }
    // A kernel without nf_tables holds no table of a crashed instance.
    let table = NftBackend::connect(&plan(true)).ok();
    let others = table.into_iter().map(|table| Box::new(table) as _).collect();
    let has_sets = chosen == config::Backend::Ipset;
    let backend: Box<dyn Backend + Send> = if has_sets {
        Box::new(IpsetBackend::connect(interface)?)
    } else {
        Box::new(IptablesBackend::new(interface, rules.clone()))
    };
    Ok(Selected { backend, plan: Some(plan(has_sets)), others, old_plan: None, note })
}

/// Returns the best back end for this host, and a note if that is the one with a rule per address.
fn best(interface: &IfName, plan: &RulePlan) -> (config::Backend, Option<BackendNote>) {
    let has_nf_tables = NftBackend::connect(plan).is_ok();
    if has_nf_tables && prefers_table(config::Backend::Auto) {
        return (config::Backend::Nftables, None);
    }
    match IpsetBackend::connect(interface) {
        Err(FirewallError::Set(error @ IpsetError::Unsupported)) if !has_nf_tables => {
            let note = BackendNote { error: error.to_string(), capacity: CAPACITY };
            (config::Backend::Iptables, Some(note))
        }
        Err(FirewallError::Set(IpsetError::Unsupported)) => (config::Backend::Nftables, None),
        // What else is wrong is an error with its own words.
        _ => (config::Backend::Ipset, None),
    }
}

/// Whether a back end means the table of nf_tables on this host, if the kernel has nf_tables.
pub fn prefers_table(backend: config::Backend) -> bool {
    match backend {
        config::Backend::Nftables => true,
        // nft(8) cannot load a file into which it has saved rules of iptables.
        config::Backend::Auto => loads_native_rules() || !Program::is_installed(),
        config::Backend::Ipset | config::Backend::Iptables => false,
    }
}

/// Whether nftables.service loads the owner's rules at boot: systemd enables a unit by a link in the directory of
/// a target.
fn loads_native_rules() -> bool {
    let targets = std::fs::read_dir("/etc/systemd/system").into_iter().flatten().flatten();
    targets
        .map(|target| target.path())
        .filter(|target| target.extension().is_some_and(|extension| extension == "wants"))
        .any(|target| target.join("nftables.service").is_symlink())
}

/// Whether the chain of iptables exists, as far as nf_tables knows.
fn has_chain() -> bool {
    families().any(|family| {
        Nftables::connect(family).and_then(|mut nftables| nftables.has_chain()).unwrap_or(false)
    })
}
