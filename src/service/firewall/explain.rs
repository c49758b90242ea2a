//! What is known of an address: whether, why and since when it is blocked, and what would keep it from
//! being so.
//!
//! Only looks. Dropped packets are the kernel's count; the rest is the ledger's.

use crate::handles::firewall::BlockExplanation;
use crate::handles::firewall::Explanation;
use ipnet::IpNet;

use crate::handles::firewall::RequestError;
use crate::service::firewall::FirewallThread;
use crate::types::clock::WallClock;

impl FirewallThread {
    pub fn explain(
        &mut self,
        asked: IpNet,
        clock: &WallClock,
    ) -> Result<Explanation, RequestError> {
        let now = clock.now();
        let exempt =
            self.exemptions.forbid(&asked).or_else(|| self.forbid_for_session(&asked, now));
        let forget_after = self.config.forget_after.get();
        let past = self.ledger.past_around(&asked, now, forget_after);
        let grace = self.ledger.grace(&asked, now);
        let found = self.ledger.block_around(&asked);
        let blocked = found.map(|(network, _)| network);
        if blocked.is_none() && exempt.is_none() && grace.is_none() && past.is_none() {
            return Err(RequestError::Unknown(asked));
        }
        let past_count = past.map_or(0, |(_, past)| past.count);
        let offences = found.map_or(past_count, |(_, block)| block.offences.max(past_count));
        let block = found.map(|(_, block)| {
            let attempts = block.evidence.iter().flat_map(|evidence| &evidence.attempts);
            BlockExplanation {
                since: clock.unix_seconds(block.since),
                until: block.until.map_or(0, |until| clock.unix_seconds(until)),
                reason: block.reason.clone(),
                evidence: block.evidence.as_deref().cloned(),
                times: attempts.map(|attempt| clock.unix_time(attempt.moment)).collect(),
                dropped: None,
            }
        });
        let dropped = blocked.and_then(|network| self.backend.dropped_from(network).ok());
        Ok(Explanation {
            network: blocked.or(past.map(|(network, _)| network)).unwrap_or(asked),
            block: block.map(|block| BlockExplanation { dropped, ..block }),
            offences,
            exempt,
            grace_until: grace.map(|remaining| clock.unix_seconds(now + remaining)),
        })
    }
}
