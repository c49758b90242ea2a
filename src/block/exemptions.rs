//! Exemptions: what must never be blocked, on any path.
//!
//! Owns the one answer to "is this exempt?", from the configuration, the host's addresses and its SSH
//! sessions. It asks nothing itself: the threads that follow the host tell it.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::config::values::Established;
use crate::config::{BlockConfig, Config, ExemptConfig};
use crate::types::{
    ExemptReason, Host, NetworkSet, SshSessions, impossible_around, link_local, loopback, overlap,
    overlap_in_any_spelling,
};

pub struct Exemptions {
    config: ExemptConfig,
    /// Whether a block would end a session that may be one.
    cuts: bool,
    host: Arc<Host>,
    sessions: Arc<SshSessions>,
    /// `exempt.networks`, the own addresses and the gateways: there may be thousands of each.
    configured: NetworkSet,
    own: NetworkSet,
    gateways: NetworkSet,
}

impl Exemptions {
    pub fn new(config: &Config, host: Arc<Host>, sessions: Arc<SshSessions>) -> Self {
        let cuts = cuts(&config.block);
        let configured = config.exempt.networks.iter().copied().collect();
        let (own, gateways) = (set_of(host.own()), set_of(host.gateways()));
        Self { config: config.exempt.clone(), cuts, host, sessions, configured, own, gateways }
    }

    pub fn configure(&mut self, config: &Config) {
        (self.config, self.cuts) = (config.exempt.clone(), cuts(&config.block));
        self.configured = self.config.networks.iter().copied().collect();
    }

    pub fn set_host(&mut self, host: Arc<Host>) {
        (self.own, self.gateways) = (set_of(host.own()), set_of(host.gateways()));
        self.host = host;
    }

    /// Takes the SSH sessions as they are now. Returns whether other peers are exempt.
    pub fn set_sessions(&mut self, sessions: Arc<SshSessions>) -> bool {
        let before = std::mem::replace(&mut self.sessions, sessions);
        let peers = |of: &SshSessions| (of.logged_in.clone(), of.undecided.clone());
        self.config.automatic && peers(&before) != peers(&self.sessions)
    }

    /// Why the kernel did not list the connections to sshd, if that matters.
    pub fn sessions_error(&self) -> Option<&str> {
        self.sessions.error.as_deref().filter(|_| self.config.automatic)
    }

    /// Why a network must not be blocked: it is, contains or lies within something exempt.
    pub fn reason(&self, network: &IpNet) -> Option<ExemptReason> {
        if let Some(exempt) = self.configured.overlapping(network) {
            return Some(ExemptReason::Configured(exempt));
        }
        let overlaps = |exempt: &IpNet| overlap_in_any_spelling(exempt, network);
        // An own address is exempt under any configuration: the host could no longer talk to itself.
        let named = |addresses: &[IpAddr]| {
            addresses.iter().copied().find(|address| overlaps(&IpNet::from(*address)))
        };
        if let Some(own) = self.own.overlapping(network) {
            return Some(ExemptReason::OwnAddress(own.addr()));
        }
        if let Some(loopback) = loopback().into_iter().find(|net| overlap(net, network)) {
            return Some(ExemptReason::Loopback(loopback));
        }
        if let Some(special) = impossible_around(network) {
            return Some(ExemptReason::Impossible(special));
        }
        // A network around a broadcast address has other addresses.
        if network.prefix_len() == network.max_prefix_len()
            && self.host.is_broadcast(network.addr())
        {
            return Some(ExemptReason::Broadcast(network.addr()));
        }
        if !self.config.automatic {
            return None;
        }
        let found = link_local().into_iter().find(overlaps).map(ExemptReason::LinkLocal);
        found
            .or_else(|| Some(ExemptReason::Gateway(self.gateways.overlapping(network)?.addr())))
            .or_else(|| named(self.host.resolvers()).map(ExemptReason::Resolver))
            .or_else(|| named(&self.sessions.logged_in).map(ExemptReason::SshSession))
            // A block that keeps connections does no harm until it is known that there is a session.
            .or_else(|| {
                let undecided = named(&self.sessions.undecided).filter(|_| self.cuts);
                undecided.map(ExemptReason::SshLogin)
            })
    }
}

fn set_of(addresses: &[IpAddr]) -> NetworkSet {
    addresses.iter().copied().map(IpNet::from).collect()
}

fn cuts(config: &BlockConfig) -> bool {
    config.established == Established::Cut
}

#[cfg(test)]
pub mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    /// The exemptions of a host with a gateway, a resolver and two SSH sessions.
    pub fn exemptions(networks: &[&str], automatic: bool) -> Exemptions {
        let mut host = Host::default();
        let own = ["192.0.2.5", "2001:db8::5"].map(|address| address.parse().unwrap()).to_vec();
        host.set_addresses(own, Vec::new());
        host.set_gateways(vec!["192.0.2.254".parse().unwrap()]);
        host.set_broadcasts(vec!["198.51.100.255".parse().unwrap()]);
        host.set_resolvers(vec!["9.9.9.9".parse().unwrap()]);
        let networks = networks.iter().map(|text| net(text)).collect();
        let exempt = ExemptConfig { networks, automatic };
        let sessions = SshSessions {
            logged_in: ["203.0.113.7", "2001:db8:7::7"].map(|peer| peer.parse().unwrap()).to_vec(),
            undecided: vec!["203.0.113.9".parse().unwrap()],
            error: None,
        };
        let config = Config { exempt, ..Config::default() };
        Exemptions::new(&config, Arc::new(host), Arc::new(sessions))
    }

    #[test]
    fn exempt_network_is_found_within_and_around_a_network() {
        let exemptions = exemptions(&["10.0.0.0/8"], true);
        for (exempt, why) in [
            ("10.1.2.3/32", "10.0.0.0/8 is listed in exempt.networks"),
            ("10.0.0.0/8", "10.0.0.0/8 is listed in exempt.networks"),
            ("8.0.0.0/5", "10.0.0.0/8 is listed in exempt.networks"),
            ("64:ff9b::10.1.2.3/128", "10.0.0.0/8 is listed in exempt.networks"),
            ("2002:a01::/32", "10.0.0.0/8 is listed in exempt.networks"),
            ("64:ff9b:1::/48", "10.0.0.0/8 is listed in exempt.networks"),
            ("192.0.2.5/32", "192.0.2.5 is an address of this host"),
            ("192.0.2.0/24", "192.0.2.5 is an address of this host"),
            ("64:ff9b::192.0.2.5/128", "192.0.2.5 is an address of this host"),
            ("2001:db8::/64", "2001:db8::5 is an address of this host"),
            ("127.0.0.1/32", "127.0.0.0/8 is loopback"),
            ("::1/128", "::1 is loopback"),
            ("224.0.0.5/32", "no remote host can have an address in 224.0.0.0/4"),
            ("ff02::5/128", "no remote host can have an address in ff00::/8"),
            (
                "198.51.100.255/32",
                "198.51.100.255 is a broadcast address, and no remote host can have it",
            ),
            ("fe80::1/128", "fe80::/10 is link-local"),
            ("169.254.1.1/32", "169.254.0.0/16 is link-local"),
            ("192.0.2.254/32", "192.0.2.254 is a gateway of this host"),
            ("9.0.0.0/8", "9.9.9.9 is a name server of this host"),
            ("64:ff9b::9.9.9.9/128", "9.9.9.9 is a name server of this host"),
            ("203.0.113.7/32", "203.0.113.7 has an SSH session open to this host"),
            ("203.0.113.0/24", "203.0.113.7 has an SSH session open to this host"),
            ("2001:db8:7::/64", "2001:db8:7::7 has an SSH session open to this host"),
        ] {
            let reason = exemptions.reason(&net(exempt)).map(|reason| reason.to_string());
            assert_eq!(reason.as_deref(), Some(why), "{exempt}");
        }
        for other in [
            "192.0.2.6/32",
            "198.51.100.128/25",
            "11.0.0.0/8",
            "2001:db8:0:1::/64",
            "9.9.9.10/32",
            "64:ff9b::11.1.2.3/128",
            "203.0.113.8/32",
            "2001:db8:8::/64",
        ] {
            assert_eq!(exemptions.reason(&net(other)), None, "{other}");
        }
    }

    #[test]
    fn possible_login_is_exempt_only_if_a_block_would_end_it() {
        let mut exemptions = exemptions(&[], true);
        let network = net("203.0.113.9/32");
        assert_eq!(exemptions.reason(&network), None);
        let mut config = Config::default();
        config.block.established = Established::Cut;
        exemptions.configure(&config);
        assert!(matches!(exemptions.reason(&network), Some(ExemptReason::SshLogin(_))));
    }

    #[test]
    fn without_automatic_exemptions_own_addresses_stay_exempt() {
        let exemptions = exemptions(&[], false);
        for own in ["192.0.2.5/32", "127.0.0.1/32", "0.0.0.0/0"] {
            assert!(exemptions.reason(&net(own)).is_some(), "{own}");
        }
        for other in ["192.0.2.254/32", "9.9.9.9/32", "203.0.113.7/32"] {
            assert_eq!(exemptions.reason(&net(other)), None, "{other}");
        }
    }
}
