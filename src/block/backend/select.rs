//! Which backend holds the blocks: what is configured, or the best this kernel has.

use crate::block::backend::ipset::IpsetBackend;
use crate::block::backend::ipset::netlink::IpsetError;
use crate::block::backend::iptables::IptablesBackend;
use crate::block::backend::none::NullBackend;
use crate::block::backend::{Backend, FirewallError};
use crate::config;
use crate::config::Config;
use crate::types::event::BackendNote;
use crate::types::ifname::IfName;

/// What holds the blocks, and what an operator should know of the choice. Changes nothing yet.
pub fn connect(
    interface: &IfName,
    config: &Config,
) -> Result<(Box<dyn Backend + Send>, Option<BackendNote>), FirewallError> {
    let chosen = choose(interface, config);
    if config.block.enabled {
        return chosen;
    }
    // Without the privilege to look there is nothing that could have been left either.
    let left_over = chosen.ok().map(|(backend, _)| backend);
    Ok((Box::new(NullBackend::new(left_over)), None))
}

fn choose(
    interface: &IfName,
    config: &Config,
) -> Result<(Box<dyn Backend + Send>, Option<BackendNote>), FirewallError> {
    let (firewall, established) = (&config.firewall, config.block.established);
    let sets = match firewall.backend {
        config::Backend::Iptables => None,
        config::Backend::Auto | config::Backend::Ipset => {
            Some(IpsetBackend::connect(interface, firewall, established))
        }
    };
    let note = match sets {
        None => None,
        Some(Err(FirewallError::Set(error @ IpsetError::Unsupported)))
            if firewall.backend == config::Backend::Auto =>
        {
            let capacity = crate::block::backend::iptables::CAPACITY;
            Some(BackendNote { error: error.to_string(), capacity })
        }
        Some(sets) => return Ok((Box::new(sets?), None)),
    };
    Ok((Box::new(IptablesBackend::find(interface, firewall, established)?), note))
}
