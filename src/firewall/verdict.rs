//! The verdict: what becomes of a recognised scanner, and whom nobody may block.
//!
//! Pure. Every way to a block leads through here, the bus included.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::guard::Guard;
use super::ledger::Ledger;
use crate::clock::Moment;
use crate::config::{BlockConfig, ExemptConfig};
use crate::events::Spared;
use crate::host::Host;
use crate::network::{link_local, loopback, overlap, show_network};

/// Who is never blocked.
pub struct Exemptions {
    config: ExemptConfig,
    host: Arc<Host>,
}

impl Exemptions {
    /// What is configured, and what follows from the host.
    pub fn new(config: ExemptConfig, host: Arc<Host>) -> Self {
        Self { config, host }
    }

    /// The host has changed.
    pub fn follow(&mut self, host: Arc<Host>) {
        self.host = host;
    }

    /// Why a network must not be blocked: it is, contains or lies in an exempt one.
    pub fn forbid(&self, network: &IpNet) -> Option<String> {
        for exempt in &self.config.networks {
            if overlap(exempt, network) {
                return Some(format!("{} is listed in exempt.networks", show_network(exempt)));
            }
        }
        // Blocking an own address is never right, whatever is configured: the host would no longer
        // talk to itself.
        if let Some(own) = self.host.own().iter().find(|address| network.contains(*address)) {
            return Some(format!("{own} is an address of this host"));
        }
        if !self.config.automatic {
            return None;
        }
        if loopback().iter().any(|loopback| overlap(loopback, network)) {
            return Some("loopback".to_owned());
        }
        if link_local().iter().any(|link_local| overlap(link_local, network)) {
            return Some("link-local".to_owned());
        }
        let named = |addresses: &[std::net::IpAddr], what: &str| {
            let found = addresses.iter().find(|address| network.contains(*address))?;
            Some(format!("{found} is {what} of this host"))
        };
        named(&self.host.gateways, "a gateway")
            .or_else(|| named(&self.host.resolvers, "a resolver"))
    }
}

/// What becomes of a scanner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Block it.
    Block {
        /// For how long; none: until unblocked.
        duration: Option<Duration>,
        /// Which offence this is.
        offence: u32,
    },
    /// It is blocked already: these are the probes that were on their way.
    AlreadyBlocked,
    /// Leave it alone.
    Spare(Spared),
}

/// Judges a scanner.
pub fn judge(
    network: &IpNet,
    now: Moment,
    config: &BlockConfig,
    exemptions: &Exemptions,
    ledger: &Ledger,
    guard: &mut Guard,
) -> Verdict {
    if ledger.covers(network) {
        return Verdict::AlreadyBlocked;
    }
    if let Some(why) = exemptions.forbid(network) {
        return Verdict::Spare(Spared::Exempt(why));
    }
    if !config.enabled {
        return Verdict::Spare(Spared::Observing);
    }
    if let Some(remaining) = ledger.grace(network, now) {
        return Verdict::Spare(Spared::Grace { remaining });
    }
    if !guard.permits(now) {
        return Verdict::Spare(Spared::Throttled { limit: guard.limit() });
    }
    let offence = ledger.next_offence(network, now, config.forget_after.get());
    let step = usize::try_from(offence.saturating_sub(1)).unwrap_or(usize::MAX);
    // The configuration guarantees at least one.
    let duration = config.durations.get(step).or(config.durations.last());
    Verdict::Block { duration: duration.and_then(|duration| duration.get()), offence }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn exemptions(networks: &[&str], automatic: bool) -> Exemptions {
        let mut host = Host::with_addresses([net("192.0.2.5/24"), net("2001:db8::5/64")]);
        host.gateways = vec!["192.0.2.254".parse().unwrap()];
        host.resolvers = vec!["9.9.9.9".parse().unwrap()];
        let networks = networks.iter().map(|text| net(text)).collect();
        Exemptions::new(ExemptConfig { networks, automatic }, Arc::new(host))
    }

    #[test]
    fn nobody_exempt_is_blocked_by_itself_within_or_around() {
        let exemptions = exemptions(&["10.0.0.0/8"], true);
        for exempt in [
            "10.1.2.3/32",
            "10.0.0.0/8",
            "0.0.0.0/0",
            "192.0.2.5/32",
            "192.0.2.0/24",
            "2001:db8::/64",
            "127.0.0.1/32",
            "::1/128",
            "fe80::1/128",
            "169.254.1.1/32",
            "192.0.2.254/32",
            "9.9.9.9/32",
        ] {
            assert!(exemptions.forbid(&net(exempt)).is_some(), "{exempt}");
        }
        for other in ["192.0.2.6/32", "11.0.0.0/8", "2001:db8:0:1::/64", "9.9.9.10/32"] {
            assert_eq!(exemptions.forbid(&net(other)), None, "{other}");
        }
    }

    #[test]
    fn without_the_automatic_ones_own_addresses_stay_exempt() {
        let exemptions = exemptions(&[], false);
        assert!(exemptions.forbid(&net("192.0.2.5/32")).is_some());
        assert_eq!(exemptions.forbid(&net("192.0.2.254/32")), None);
    }

    #[test]
    fn durations_escalate_and_the_last_repeats() {
        let config = BlockConfig::default();
        let source = net("198.51.100.1/32");
        let mut ledger = Ledger::new(Duration::from_secs(1_000_000));
        let now = Moment::default();
        let mut hours = Vec::new();
        for count in 0..6 {
            if count > 0 {
                ledger.remember_offence(source, now, count);
            }
            let mut guard = Guard::new(1);
            match judge(&source, now, &config, &exemptions(&[], true), &ledger, &mut guard) {
                Verdict::Block { duration, offence } => {
                    assert_eq!(offence, count + 1);
                    hours.push(duration.unwrap().as_secs() / 3600);
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(hours, [1, 4, 24, 168, 168, 168]);
    }
}
