//! Which back end holds the blocks: the configured one, or the best one that this kernel supports.

use crate::block::backend::ipset::IpsetBackend;
use crate::block::backend::ipset::netlink::IpsetError;
use crate::block::backend::iptables::IptablesBackend;
use crate::block::backend::{Backend, FirewallError};
use crate::config;
use crate::config::Config;
use crate::types::event::BackendNote;
use crate::types::ifname::IfName;

/// Opens the back end that holds the blocks, with a note if it is not the one to expect. Changes nothing
/// in the kernel yet.
pub fn connect(
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
