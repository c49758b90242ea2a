//! The choice of the back end: the configured one, or the best that this kernel supports.

use tracing::debug;

use crate::block::backend::ipset::IpsetBackend;
use crate::block::backend::ipset::netlink::IpsetError;
use crate::block::backend::iptables::{CAPACITY, IptablesBackend};
use crate::block::backend::{Backend, FirewallError};
use crate::config;
use crate::config::Config;
use crate::types::{BackendNote, IfName};

/// Chooses and connects the back end. Returns with it what an operator should know about the choice.
/// Changes nothing.
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
            Some(BackendNote { error: error.to_string(), capacity: CAPACITY })
        }
        Some(sets) => {
            debug!("using back end ipset");
            return Ok((Box::new(sets?), None));
        }
    };
    debug!(?note, "using back end iptables");
    Ok((Box::new(IptablesBackend::find(interface, firewall, established)?), note))
}
