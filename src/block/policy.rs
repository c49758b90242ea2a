//! The verdict: whether a recognised scanner is blocked, and for how long.
//!
//! Owns the order of the reasons against a block: exemptions, observing, grace periods and the rate limit.
//! It decides and changes nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::IpNet;
use tracing::trace;

use crate::block::exemptions::{Exemptions, Sessions};
use crate::block::last_minute::LastMinute;
use crate::block::ledger::Ledger;
use crate::config::{BlockConfig, Config};
use crate::types::{Moment, Scan, SkipReason};

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
}

impl Policy {
    pub fn new(config: BlockConfig, exemptions: Exemptions) -> Self {
        Self { config, exemptions, blocks: LastMinute::default() }
    }

    pub fn configure(&mut self, config: &Config) {
        self.exemptions.configure(config.exempt.clone());
        self.config = config.block.clone();
    }

    pub fn exemptions(&mut self) -> &mut Exemptions {
        &mut self.exemptions
    }

    /// Decides about a scanner. A possible decoy is blocked, too, because `nmap -D` would protect every
    /// scanner otherwise. But its address may be forged, so this is always a first offence.
    pub fn verdict(&mut self, scan: &Scan, ledger: &Ledger, now: Moment) -> Verdict {
        let network = &scan.source;
        if ledger.covers(network) {
            return Verdict::AlreadyBlocked;
        }
        let obstacle = self.obstacle(network, ledger, now);
        trace!(%network, ?obstacle, "obstacles other than exemptions");
        // The kernel is asked for sessions only if everything else would block: a flood of forged scans
        // must not become a flood of questions.
        let sessions = if obstacle.is_none() { Sessions::At(now) } else { Sessions::Ignored };
        let exempt = self.exemptions.reason(network, sessions);
        trace!(%network, ?sessions, ?exempt, "exemptions");
        // An exemption explains more than the other obstacles.
        if let Some(why) = exempt.map(SkipReason::Exempt).or(obstacle) {
            return Verdict::Skip(why);
        }
        let may_be_decoy = scan.decoy;
        let forget_after = self.config.forget_after.get();
        let offence =
            if may_be_decoy { 1 } else { ledger.next_offence(network, now, forget_after) };
        let step = usize::try_from(offence.saturating_sub(1)).unwrap_or(usize::MAX);
        // The configuration guarantees at least one duration.
        let durations = &self.config.durations;
        let duration = durations.get(step).or(durations.last());
        trace!(%network, may_be_decoy, offence, ?duration, "offence");
        Verdict::Block { duration: duration.and_then(|duration| duration.get()), offence }
    }

    /// Counts a block that the kernel has accepted.
    pub fn count_block(&mut self, now: Moment) {
        self.blocks.add(now);
    }

    /// The blocks that are exempt by now, without a look at SSH sessions.
    pub fn exempt_blocks(&mut self, ledger: &Ledger) -> Vec<IpNet> {
        let is_exempt =
            |network: &IpNet| self.exemptions.reason(network, Sessions::Ignored).is_some();
        ledger.blocks().map(|(network, _)| *network).filter(is_exempt).collect()
    }

    /// The blocks of sources that have an SSH session nevertheless: an existing connection survives a
    /// block, and it may have begun just before.
    pub fn blocks_with_sessions(&mut self, ledger: &Ledger, now: Moment) -> Vec<IpNet> {
        // Without a block there is nothing to ask for, except to learn whether the kernel answers again.
        if ledger.blocks().len() == 0 && self.exemptions.sessions_error().is_none() {
            return Vec::new();
        }
        let peers = self.exemptions.peers(now).iter().map(|peer| IpNet::from(*peer));
        let blocks: BTreeSet<IpNet> = peers
            .filter(|peer| ledger.covers(peer))
            .flat_map(|peer| ledger.overlapping(&peer))
            .collect();
        blocks.into_iter().collect()
    }

    fn obstacle(&mut self, network: &IpNet, ledger: &Ledger, now: Moment) -> Option<SkipReason> {
        if !self.config.enabled {
            return Some(SkipReason::Observing);
        }
        if let Some(remaining) = ledger.grace(network, now) {
            return Some(SkipReason::Grace { remaining });
        }
        let limit = self.config.max_per_minute.get();
        let is_reached = self.blocks.count(now) >= limit as usize;
        is_reached.then_some(SkipReason::Throttled { limit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::exemptions::tests::exemptions;
    use crate::types::{Rule, ScanKind};

    #[test]
    fn durations_escalate_and_the_last_repeats() {
        let mut ledger = Ledger::new(Duration::from_secs(1_000_000));
        let now = Moment::default();
        let scan = Scan {
            source: "198.51.100.1/32".parse().unwrap(),
            address: [198, 51, 100, 1].into(),
            destination: [192, 0, 2, 5].into(),
            kind: ScanKind::Vertical,
            attempts: Vec::new(),
            moment: now,
            probes: 4,
            rule: Rule::Ports,
            threshold: 3,
            span: Duration::from_secs(60),
            tried: 4,
            continued: false,
            decoy: false,
            others: Vec::new(),
        };
        let mut hours = Vec::new();
        for count in 0..6 {
            if count > 0 {
                ledger.add_offence(scan.source, now, count);
            }
            let mut policy = Policy::new(Config::default().block, exemptions(&[], true));
            match policy.verdict(&scan, &ledger, now) {
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
