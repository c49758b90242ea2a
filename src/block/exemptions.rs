//! Exemptions: what must never be blocked, on any path.
//!
//! Owns the one answer to "is this exempt?", from the configuration, the host's addresses and the live
//! SSH sessions. It asks the kernel for sessions through a function that it is given, and never for a
//! verdict that another reason decides.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::config::ExemptConfig;
use crate::system::netlink::NetlinkError;
use crate::types::{
    ExemptReason, Host, Moment, impossible_around, link_local, loopback, overlap,
    overlap_in_any_spelling,
};

/// Asks the kernel for the peers of connections to these ports.
pub type AskSessions = Box<dyn FnMut(&[u16]) -> Result<Vec<IpAddr>, NetlinkError> + Send>;

/// How long an answer counts for the verdicts that follow. A question takes a hundred times as long as a
/// block, and in a burst of scans the later ones would wait.
const ANSWER_COUNTS: Duration = Duration::from_millis(10);

/// Whether live SSH sessions count for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sessions {
    /// They do, as of this moment.
    At(Moment),
    /// They do not: the caller looks at them itself, or would not block anyway.
    Ignored,
}

pub struct Exemptions {
    config: ExemptConfig,
    host: Arc<Host>,
    ask_sessions: AskSessions,
    /// The peers of live SSH sessions, as of the last answer.
    peers: Vec<IpAddr>,
    /// The last question.
    asked: Option<Moment>,
    /// Why the kernel did not answer the last question.
    error: Option<NetlinkError>,
}

impl Exemptions {
    pub fn new(config: ExemptConfig, host: Arc<Host>, ask_sessions: AskSessions) -> Self {
        Self { config, host, ask_sessions, peers: Vec::new(), asked: None, error: None }
    }

    pub fn configure(&mut self, config: ExemptConfig) {
        // Peers of before count only if the new configuration still asks for them.
        self.peers.clear();
        self.asked = None;
        self.config = config;
    }

    pub fn set_host(&mut self, host: Arc<Host>) {
        self.host = host;
    }

    /// Why a network must not be blocked: it is, contains or lies within something exempt.
    pub fn reason(&mut self, network: &IpNet, sessions: Sessions) -> Option<ExemptReason> {
        if let Some(why) = self.standing_reason(network) {
            return Some(why);
        }
        let Sessions::At(now) = sessions else { return None };
        let peer = self.peers(now).iter().find(|peer| network.contains(*peer))?;
        Some(ExemptReason::SshSession(*peer))
    }

    /// The peers of live SSH sessions. If the kernel does not answer, the last answer counts.
    pub fn peers(&mut self, now: Moment) -> &[IpAddr] {
        if !self.config.automatic {
            self.error = None;
        } else if self.asked.is_none_or(|asked| now.since(asked) >= ANSWER_COUNTS) {
            self.asked = Some(now);
            match (self.ask_sessions)(&self.host.ssh().ports) {
                Ok(peers) => (self.peers, self.error) = (peers, None),
                Err(error) => self.error = Some(error),
            }
        }
        &self.peers
    }

    /// Why the kernel did not answer the last question for sessions.
    pub fn sessions_error(&self) -> Option<&NetlinkError> {
        self.error.as_ref()
    }

    fn standing_reason(&self, network: &IpNet) -> Option<ExemptReason> {
        let configured = &self.config.networks;
        let overlaps = |exempt: &IpNet| overlap_in_any_spelling(exempt, network);
        if let Some(exempt) = configured.iter().find(|exempt| overlaps(exempt)) {
            return Some(ExemptReason::Configured(*exempt));
        }
        // An own address is exempt under any configuration: the host could no longer talk to itself.
        let named = |addresses: &[IpAddr]| {
            addresses.iter().copied().find(|address| overlaps(&IpNet::from(*address)))
        };
        if let Some(own) = named(self.host.own()) {
            return Some(ExemptReason::OwnAddress(own));
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
            .or_else(|| named(self.host.gateways()).map(ExemptReason::Gateway))
            .or_else(|| named(self.host.resolvers()).map(ExemptReason::Resolver))
    }
}

#[cfg(test)]
pub mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::types::SshPorts;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    const NOW: Sessions = Sessions::At(Moment::from_nanos(0));

    /// The exemptions of a host with a gateway, a resolver and two SSH sessions.
    pub fn exemptions(networks: &[&str], automatic: bool) -> Exemptions {
        let mut host = Host::default();
        let own = ["192.0.2.5", "2001:db8::5"].map(|address| address.parse().unwrap()).to_vec();
        host.set_network(own, vec!["192.0.2.254".parse().unwrap()], Vec::new());
        host.set_broadcasts(vec!["198.51.100.255".parse().unwrap()]);
        host.set_resolvers(vec!["9.9.9.9".parse().unwrap()]);
        host.set_ssh(SshPorts { ports: vec![22, 2222], unreadable: Vec::new() });
        let networks = networks.iter().map(|text| net(text)).collect();
        let ask = |ports: &[u16]| {
            assert_eq!(ports, [22, 2222]);
            Ok(vec!["203.0.113.7".parse().unwrap(), "2001:db8:7::7".parse().unwrap()])
        };
        Exemptions::new(ExemptConfig { networks, automatic }, Arc::new(host), Box::new(ask))
    }

    #[test]
    fn exempt_network_is_found_within_and_around_a_network() {
        let mut exemptions = exemptions(&["10.0.0.0/8"], true);
        for (exempt, why) in [
            ("10.1.2.3/32", "10.0.0.0/8 is listed in exempt.networks"),
            ("10.0.0.0/8", "10.0.0.0/8 is listed in exempt.networks"),
            ("8.0.0.0/5", "10.0.0.0/8 is listed in exempt.networks"),
            ("192.0.2.5/32", "192.0.2.5 is an address of this host"),
            ("192.0.2.0/24", "192.0.2.5 is an address of this host"),
            ("2001:db8::/64", "2001:db8::5 is an address of this host"),
            ("127.0.0.1/32", "127.0.0.0/8 is loopback"),
            ("::1/128", "::1 is loopback"),
            ("fe80::1/128", "fe80::/10 is link-local"),
            ("169.254.1.1/32", "169.254.0.0/16 is link-local"),
            ("192.0.2.254/32", "192.0.2.254 is a gateway of this host"),
            ("9.0.0.0/8", "9.9.9.9 is a name server of this host"),
            ("64:ff9b::10.1.2.3/128", "10.0.0.0/8 is listed in exempt.networks"),
            ("2002:a01::/32", "10.0.0.0/8 is listed in exempt.networks"),
            ("64:ff9b:1::/48", "10.0.0.0/8 is listed in exempt.networks"),
            ("64:ff9b::9.9.9.9/128", "9.9.9.9 is a name server of this host"),
            ("64:ff9b::192.0.2.5/128", "192.0.2.5 is an address of this host"),
            ("224.0.0.5/32", "no remote host can have an address in 224.0.0.0/4"),
            ("ff02::5/128", "no remote host can have an address in ff00::/8"),
            (
                "192.0.2.255/32",
                "192.0.2.255 is a broadcast address, and no remote host can have it",
            ),
        ] {
            let reason = exemptions.reason(&net(exempt), NOW).map(|reason| reason.to_string());
            assert_eq!(reason.as_deref(), Some(why), "{exempt}");
        }
        for other in [
            "192.0.2.6/32",
            "198.51.100.128/25",
            "11.0.0.0/8",
            "2001:db8:0:1::/64",
            "9.9.9.10/32",
            "64:ff9b::11.1.2.3/128",
        ] {
            assert_eq!(exemptions.reason(&net(other), NOW), None, "{other}");
        }
    }

    #[test]
    fn network_with_the_peer_of_a_session_is_exempt() {
        let mut exemptions = exemptions(&[], true);
        for exempt in ["203.0.113.7/32", "203.0.113.0/24", "2001:db8:7::/64"] {
            let network = net(exempt);
            assert_eq!(exemptions.reason(&network, Sessions::Ignored), None, "{exempt}");
            let why = exemptions.reason(&network, NOW);
            assert!(matches!(why, Some(ExemptReason::SshSession(_))), "{exempt}");
        }
        for other in ["203.0.113.8/32", "2001:db8:8::/64"] {
            assert_eq!(exemptions.reason(&net(other), NOW), None, "{other}");
        }
    }

    #[test]
    fn kernel_is_asked_at_most_once_per_10_ms_and_not_for_what_is_exempt_anyway() {
        let asked = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&asked);
        let ask = move |_: &[u16]| {
            count.fetch_add(1, Ordering::Relaxed);
            Ok(Vec::new())
        };
        let config = ExemptConfig { networks: vec![net("10.0.0.0/8")], automatic: true };
        let mut exemptions = Exemptions::new(config, Arc::default(), Box::new(ask));
        let at = |millis: u64| Sessions::At(Moment::from_nanos(millis * 1_000_000));
        assert!(exemptions.reason(&net("10.0.0.1/32"), at(0)).is_some());
        assert_eq!(exemptions.reason(&net("203.0.113.7/32"), Sessions::Ignored), None);
        assert_eq!(asked.load(Ordering::Relaxed), 0);
        for (millis, questions) in [(0, 1), (9, 1), (10, 2)] {
            assert_eq!(exemptions.reason(&net("203.0.113.7/32"), at(millis)), None);
            assert_eq!(asked.load(Ordering::Relaxed), questions, "{millis}");
        }
    }

    #[test]
    fn without_automatic_exemptions_own_addresses_stay_exempt() {
        let mut exemptions = exemptions(&[], false);
        assert!(exemptions.reason(&net("192.0.2.5/32"), NOW).is_some());
        for other in ["192.0.2.254/32", "9.9.9.9/32", "203.0.113.7/32"] {
            assert_eq!(exemptions.reason(&net(other), NOW), None, "{other}");
        }
    }
}
