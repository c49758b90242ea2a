//! Exemptions: whom nobody may block, by whatever path.
//!
//! Decides from what is configured and from what is known of the host; the one thing it has to ask for
//! at the moment it matters, who has an SSH session open, is asked through a function it is given.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::config::ExemptConfig;
use crate::system::netlink::NetlinkError;
use crate::types::block::ExemptReason;
use crate::types::clock::Moment;
use crate::types::host::Host;

use crate::types::network::{link_local, loopback, overlap};

/// Asks the kernel who is connected to these ports.
pub type AskSessions = Box<dyn FnMut(&[u16]) -> Result<Vec<IpAddr>, NetlinkError> + Send>;

/// How long an answer stands for the verdicts that follow at once: asking takes a hundred times as long
/// as blocking, and in a burst of scans the others would wait.
const ANSWER_STANDS: Duration = Duration::from_millis(10);

/// Who is never blocked.
pub struct Exemptions {
    config: ExemptConfig,
    host: Arc<Host>,
    ask_sessions: AskSessions,
    /// The peers of live SSH sessions, when last asked.
    peers: Vec<IpAddr>,
    /// When that was.
    asked: Option<Moment>,
    /// The last question was not answered.
    is_unanswered: bool,
}

impl Exemptions {
    /// What is configured, and what follows from the host.
    pub fn new(config: ExemptConfig, host: Arc<Host>, ask_sessions: AskSessions) -> Self {
        Self { config, host, ask_sessions, peers: Vec::new(), asked: None, is_unanswered: false }
    }

    /// Another configuration holds from now on. Returns the one before.
    pub fn configure(&mut self, config: ExemptConfig) -> ExemptConfig {
        // Whoever was a peer is one only where that counts.
        self.peers.clear();
        self.asked = None;
        std::mem::replace(&mut self.config, config)
    }

    /// The host has changed.
    pub fn follow(&mut self, host: Arc<Host>) {
        self.host = host;
    }

    /// Asks who has an SSH session open. Where that fails, those of before still count.
    pub fn ask_for_sessions(&mut self, now: Moment) -> Result<(), NetlinkError> {
        let fresh = self.asked.is_some_and(|asked| now.since(asked) < ANSWER_STANDS);
        if self.config.automatic && !fresh {
            (self.asked, self.is_unanswered) = (None, true);
            self.peers = (self.ask_sessions)(&self.host.ssh().ports)?;
            self.asked = Some(now);
        }
        self.is_unanswered = false;
        Ok(())
    }

    /// Whether the last question who has an SSH session open was not answered.
    pub fn is_unanswered(&self) -> bool {
        self.is_unanswered
    }

    /// The peers of live SSH sessions, when last asked.
    pub fn peers(&self) -> &[IpAddr] {
        &self.peers
    }

    /// Why a network must not be blocked: it contains the peer of a live SSH session.
    pub fn forbid_for_session(&self, network: &IpNet) -> Option<ExemptReason> {
        let peer = self.peers.iter().find(|peer| network.contains(*peer))?;
        Some(ExemptReason::SshSession(*peer))
    }

    /// Why a network must not be blocked: it is, contains or lies in an exempt one. Says nothing of SSH
    /// sessions.
    pub fn forbid(&self, network: &IpNet) -> Option<ExemptReason> {
        for exempt in &self.config.networks {
            if overlap(exempt, network) {
                return Some(ExemptReason::Configured(*exempt));
            }
        }
        // Blocking an own address is never right, whatever is configured: the host would no longer
        // talk to itself.
        if let Some(own) = self.host.own().iter().find(|address| network.contains(*address)) {
            return Some(ExemptReason::OwnAddress(*own));
        }
        if !self.config.automatic {
            return None;
        }
        let reserved =
            |networks: [IpNet; 2]| networks.into_iter().find(|reserved| overlap(reserved, network));
        let named = |addresses: &[IpAddr]| {
            addresses.iter().copied().find(|address| network.contains(address))
        };
        let found = reserved(loopback()).map(ExemptReason::Loopback);
        found
            .or_else(|| reserved(link_local()).map(ExemptReason::LinkLocal))
            .or_else(|| named(self.host.gateways()).map(ExemptReason::Gateway))
            .or_else(|| named(self.host.resolvers()).map(ExemptReason::Resolver))
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::types::host::SshPorts;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    /// Those of a host with a gateway and a resolver, and one SSH session.
    pub fn exemptions(networks: &[&str], automatic: bool) -> Exemptions {
        let mut host = Host::default();
        let own = ["192.0.2.5", "2001:db8::5"].map(|address| address.parse().unwrap()).to_vec();
        host.set_network(own, vec!["192.0.2.254".parse().unwrap()], Vec::new());
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
    fn nobody_exempt_is_blocked_by_itself_within_or_around() {
        let exemptions = exemptions(&["10.0.0.0/8"], true);
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
        ] {
            let reason = exemptions.forbid(&net(exempt)).map(|reason| reason.to_string());
            assert_eq!(reason.as_deref(), Some(why), "{exempt}");
        }
        for other in ["192.0.2.6/32", "11.0.0.0/8", "2001:db8:0:1::/64", "9.9.9.10/32"] {
            assert_eq!(exemptions.forbid(&net(other)), None, "{other}");
        }
    }

    #[test]
    fn a_network_with_the_peer_of_a_session_is_not_blocked() {
        let mut exemptions = exemptions(&[], true);
        assert_eq!(exemptions.forbid_for_session(&net("203.0.113.7/32")), None, "nobody has asked");
        exemptions.ask_for_sessions(Moment::default()).unwrap();
        for exempt in ["203.0.113.7/32", "203.0.113.0/24", "2001:db8:7::/64"] {
            let why = exemptions.forbid_for_session(&net(exempt));
            assert!(matches!(why, Some(ExemptReason::SshSession(_))), "{exempt}");
        }
        for other in ["203.0.113.8/32", "2001:db8:8::/64"] {
            assert_eq!(exemptions.forbid_for_session(&net(other)), None, "{other}");
        }
    }

    #[test]
    fn without_the_automatic_ones_own_addresses_stay_exempt() {
        let mut exemptions = exemptions(&[], false);
        exemptions.ask_for_sessions(Moment::default()).unwrap();
        assert!(exemptions.forbid(&net("192.0.2.5/32")).is_some());
        for other in ["192.0.2.254/32", "9.9.9.9/32", "203.0.113.7/32"] {
            let network = net(other);
            let why = exemptions.forbid(&network).or(exemptions.forbid_for_session(&network));
            assert_eq!(why, None, "{other}");
        }
    }
}
