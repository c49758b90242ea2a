//! The verdict: whether a recognised scanner is blocked, and for how long.
//!
//! Owns the order of the reasons against a block (exemptions, observing, grace periods, the limit on blocks),
//! and the scans of exempt sources, which count when the exemption ends. It blocks nothing itself.

use std::collections::HashSet;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use lru::LruCache;
use tracing::{debug, trace};

use crate::block::exemptions::Exemptions;
use crate::block::last_minute::LastMinute;
use crate::block::ledger::Ledger;
use crate::config::{BlockConfig, Config};
use crate::system::netlink::NetlinkError;
use crate::types::{ExemptReason, Moment, Scan, SkipReason};

/// Asks the kernel with which hosts this host has completed a handshake. Also returns how long that took.
pub type AskConnected =
    Box<dyn FnMut() -> (Result<HashSet<IpAddr>, NetlinkError>, Duration) + Send>;

/// How long such an answer counts at least ...
const ANSWER_COUNTS: Duration = Duration::from_millis(50);
/// ... and for how many times as long as the kernel took for it: with 100,000 connections, a tenth of a second.
const ANSWER_COUNTS_TIMES: u32 = 10;

/// How many scans of exempt sources are remembered. Few sources are exempt, but each of them can be forged.
const EXEMPT_SCANS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// The eighths of `block.max_per_minute` up to which a source that has tried so many ports is blocked. A forger
/// pays a packet per port and source. To use up what a scanner of 32 ports may use, it has to send 2 * 4 +
/// 2 * 16 + 3 * 32 = 136 packets for each eighth of the limit, where 32 would do without the shares. The last
/// eighth is for sources that have completed a handshake, which no forger can.
const SHARES: [(u32, u32); 3] = [(32, 7), (16, 4), (0, 2)];

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Block {
        /// None: until unblocked.
        duration: Option<Duration>,
        /// Which offence this is.
        offence: u32,
    },
    /// These are probes that were on their way before the block.
    AlreadyBlocked,
    Skip(SkipReason),
}

pub struct Policy {
    config: BlockConfig,
    exemptions: Exemptions,
    /// The blocks of the last minute. Their limit (`block.max_per_minute`) is a guard against forged sources:
    /// a single SYN does not show whether its source is real, so an attacker could fill the kernel's sets
    /// with any addresses.
    blocks: LastMinute,
    ask_connected: AskConnected,
    /// The hosts of the last answer, and until when it counts.
    connected: HashSet<IpAddr>,
    connected_until: Moment,
    /// The latest scans of sources that were exempt then.
    exempt_scans: LruCache<IpNet, (Arc<Scan>, ExemptReason)>,
}

impl Policy {
    pub fn new(config: BlockConfig, exemptions: Exemptions, ask_connected: AskConnected) -> Self {
        Self {
            config,
            exemptions,
            blocks: LastMinute::default(),
            ask_connected,
            connected: HashSet::new(),
            connected_until: Moment::default(),
            exempt_scans: LruCache::new(EXEMPT_SCANS),
        }
    }

    pub fn configure(&mut self, config: &Config) {
        self.exemptions.configure(config);
        self.config = config.block.clone();
    }

    pub fn exemptions(&self) -> &Exemptions {
        &self.exemptions
    }

    pub fn exemptions_mut(&mut self) -> &mut Exemptions {
        &mut self.exemptions
    }

    /// Decides about a scanner. A possible decoy is blocked, too, because `nmap -D` would protect every
    /// scanner otherwise. But its address may be forged, so this is always a first offence.
    pub fn verdict(&mut self, scan: &Arc<Scan>, ledger: &Ledger, now: Moment) -> Verdict {
        let network = &scan.source;
        if ledger.covers(network) {
            return Verdict::AlreadyBlocked;
        }
        // An exemption explains more than the other obstacles.
        if let Some(why) = self.exemptions.reason(network) {
            self.exempt_scans.put(*network, (Arc::clone(scan), why.clone()));
            return Verdict::Skip(SkipReason::Exempt(why));
        }
        let obstacle = self.obstacle(scan, ledger, now);
        trace!(%network, ?obstacle, "not exempt");
        if let Some(why) = obstacle {
            return Verdict::Skip(why);
        }
        let forget_after = self.config.forget_after.get();
        let offence = if scan.decoy { 1 } else { ledger.next_offence(network, now, forget_after) };
        let step = usize::try_from(offence.saturating_sub(1)).unwrap_or(usize::MAX);
        // The configuration guarantees at least one duration.
        let durations = &self.config.durations;
        let duration = durations.get(step).or(durations.last());
        trace!(%network, scan.decoy, offence, ?duration, "offence");
        Verdict::Block { duration: duration.and_then(|duration| duration.get()), offence }
    }

    /// Counts a block that the kernel has accepted.
    pub fn count_block(&mut self, now: Moment) {
        self.blocks.add(now);
    }

    /// The blocks that are exempt by now.
    pub fn exempt_blocks(&self, ledger: &Ledger) -> Vec<IpNet> {
        let is_exempt = |network: &IpNet| self.exemptions.reason(network).is_some();
        ledger.blocks().map(|(network, _)| *network).filter(is_exempt).collect()
    }

    /// Takes the scans of sources that are no longer exempt. What they did more than a window ago does not count
    /// against them, unless the exemption was only a doubt.
    pub fn take_no_longer_exempt(&mut self, now: Moment) -> Vec<Arc<Scan>> {
        let ended = |(network, _): (&IpNet, _)| {
            self.exemptions.reason(network).is_none().then_some(*network)
        };
        let ended: Vec<IpNet> = self.exempt_scans.iter().filter_map(ended).collect();
        let scans = ended.into_iter().filter_map(|network| self.exempt_scans.pop(&network));
        let counts = |(scan, why): &(Arc<Scan>, ExemptReason)| {
            matches!(why, ExemptReason::SshLogin(_)) || !now.is_past(scan.moment, scan.span)
        };
        scans.filter(counts).map(|(scan, _)| scan).collect()
    }

    fn obstacle(&mut self, scan: &Scan, ledger: &Ledger, now: Moment) -> Option<SkipReason> {
        if !self.config.enabled {
            return Some(SkipReason::Observing);
        }
        if let Some(remaining) = ledger.grace(&scan.source, now) {
            return Some(SkipReason::Grace { remaining });
        }
        let limit = self.config.max_per_minute.get();
        let count = self.blocks.count(now);
        let eighths =
            SHARES.iter().find(|(ports, _)| scan.tried >= *ports).map_or(0, |share| share.1);
        let is_allowed = count < share(limit, eighths)
            || count < share(limit, 8) && self.is_connected(&scan.source, now);
        (!is_allowed).then_some(SkipReason::Throttled { limit })
    }

    /// Whether this host has completed a handshake with a source, as far as the kernel remembers.
    fn is_connected(&mut self, source: &IpNet, now: Moment) -> bool {
        if now >= self.connected_until {
            let (answer, took) = (self.ask_connected)();
            self.connected_until = now + ANSWER_COUNTS.max(took * ANSWER_COUNTS_TIMES);
            match answer {
                Ok(connected) => self.connected = connected,
                Err(error) => debug!(%error, "the kernel does not list connections"),
            }
        }
        let is_address = source.prefix_len() == source.max_prefix_len();
        is_address && self.connected.contains(&source.addr())
            || !is_address && self.connected.iter().any(|address| source.contains(address))
    }
}

/// So many eighths of a limit, rounded up, so that even a limit of 1 permits a block.
fn share(limit: u32, eighths: u32) -> usize {
    let share = (u64::from(limit) * u64::from(eighths)).div_ceil(8);
    usize::try_from(share).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::exemptions::tests::exemptions;
    use crate::types::{Block, BlockReason, Evidence, Host, Rule, ScanKind, SshSessions};

    fn at(seconds: u64) -> Moment {
        Moment::from_nanos(seconds * 1_000_000_000)
    }

    fn scan(source: &str, tried: u32, now: Moment) -> Arc<Scan> {
        let source: IpNet = source.parse().unwrap();
        Arc::new(Scan {
            source,
            address: source.addr(),
            destination: [192, 0, 2, 5].into(),
            kind: ScanKind::Vertical,
            attempts: Vec::new(),
            moment: now,
            probes: tried.into(),
            rule: Rule::Ports,
            threshold: 3,
            span: Duration::from_secs(60),
            tried,
            continued: tried > 4,
            decoy: false,
            others: Vec::new(),
        })
    }

    fn policy(limit: u32, connected: &[&str]) -> Policy {
        let mut config = Config::default().block;
        config.max_per_minute = u64::from(limit).try_into().unwrap();
        let connected: HashSet<_> = connected.iter().map(|host| host.parse().unwrap()).collect();
        let ask = Box::new(move || (Ok(connected.clone()), Duration::ZERO));
        Policy::new(config, exemptions(&[], true), ask)
    }

    #[test]
    fn durations_escalate_and_the_last_repeats() {
        let mut ledger = Ledger::new(Duration::from_secs(1_000_000));
        let now = Moment::default();
        let scan = scan("198.51.100.1/32", 4, now);
        let mut hours = Vec::new();
        for count in 0..6 {
            if count > 0 {
                ledger.add_offence(scan.source, now, count);
            }
            match policy(600, &[]).verdict(&scan, &ledger, now) {
                Verdict::Block { duration, offence } => {
                    assert_eq!(offence, count + 1);
                    hours.push(duration.unwrap().as_secs() / 3600);
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(hours, [1, 4, 24, 168, 168, 168]);
    }

    /// Blocks as many different sources as the policy allows, and returns their number.
    fn block_all(policy: &mut Policy, ledger: &mut Ledger, prefix: &str, tried: u32) -> usize {
        let now = at(1);
        let allowed = |number: &u16| {
            let [high, low] = number.to_be_bytes();
            let scan = scan(&format!("{prefix}.{high}.{low}/32"), tried, now);
            let verdict = policy.verdict(&scan, ledger, now);
            if !matches!(verdict, Verdict::Block { .. }) {
                assert_eq!(verdict, Verdict::Skip(SkipReason::Throttled { limit: 600 }));
                return false;
            }
            policy.count_block(now);
            let reason = BlockReason::Scan(Box::new(Evidence::from(&*scan)));
            ledger.insert(scan.source, now, Block { since: now, until: None, offences: 1, reason });
            true
        };
        (0..2000).filter(allowed).count()
    }

    #[test]
    fn sources_that_go_on_and_real_ones_have_shares_of_the_limit() {
        let (mut policy, mut ledger) =
            (policy(600, &["198.51.100.1", "2001:db8:9::9"]), Ledger::new(Duration::MAX));
        let mut packets = 0;
        for (prefix, tried, blocked) in [("11.1", 4, 150), ("11.2", 16, 150), ("11.3", 32, 225)] {
            assert_eq!(block_all(&mut policy, &mut ledger, prefix, tried), blocked, "{tried}");
            packets += blocked * usize::try_from(tried).unwrap();
        }
        assert!(
            packets >= 4 * 600 * 4,
            "a forger needs {packets} packets, and 2,400 without shares"
        );
        let mut is_blocked = |source, now| {
            let scan = scan(source, 4, now);
            matches!(policy.verdict(&scan, &ledger, now), Verdict::Block { .. })
        };
        assert!(!is_blocked("198.51.100.2/32", at(1)), "no handshake");
        for real in ["198.51.100.1/32", "2001:db8:9::/64"] {
            assert!(is_blocked(real, at(1)), "{real}");
        }
        assert!(is_blocked("198.51.100.2/32", at(61)), "a minute has passed");
    }

    #[test]
    fn small_limit_permits_a_block() {
        for eighths in [2, 4, 7, 8] {
            assert_eq!((share(1, eighths), share(0, eighths)), (1, 0));
        }
    }

    #[test]
    fn kernel_is_asked_for_connections_only_beyond_the_shares_and_not_all_the_time() {
        let asked = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let count = Arc::clone(&asked);
        let mut policy = policy(8, &[]);
        policy.ask_connected = Box::new(move || {
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            (Err(NetlinkError::Garbled), Duration::from_millis(20))
        });
        let ledger = Ledger::new(Duration::MAX);
        let judge = |policy: &mut Policy, millis: u64| {
            let now = Moment::from_nanos(millis * 1_000_000);
            policy.verdict(&scan("198.51.100.1/32", 4, now), &ledger, now);
            asked.load(std::sync::atomic::Ordering::Relaxed)
        };
        assert_eq!(judge(&mut policy, 0), 0);
        policy.count_block(at(0));
        policy.count_block(at(0));
        for (millis, questions) in [(0, 1), (199, 1), (200, 2)] {
            assert_eq!(judge(&mut policy, millis), questions, "{millis}");
        }
    }

    #[test]
    fn source_is_judged_by_its_recent_scans_when_its_exemption_ends() {
        let mut policy = policy(600, &[]);
        let ledger = Ledger::new(Duration::MAX);
        let peer = "203.0.113.7/32";
        for (second, end, counts) in [(10, 69, true), (10, 70, false)] {
            let sessions = SshSessions {
                logged_in: vec!["203.0.113.7".parse().unwrap()],
                ..SshSessions::default()
            };
            policy.exemptions_mut().set_sessions(Arc::new(sessions));
            let scan = scan(peer, 4, at(second));
            let verdict = policy.verdict(&scan, &ledger, at(second));
            assert!(matches!(verdict, Verdict::Skip(SkipReason::Exempt(_))), "{verdict:?}");
            assert_eq!(policy.take_no_longer_exempt(at(second)), []);
            assert!(policy.exemptions_mut().set_sessions(Arc::default()));
            let found = policy.take_no_longer_exempt(at(end));
            assert_eq!(found, if counts { vec![scan] } else { Vec::new() });
        }
        policy.exemptions_mut().set_host(Arc::new(Host::default()));
        assert_eq!(policy.take_no_longer_exempt(at(71)), [], "each scan is judged once");
    }
}
