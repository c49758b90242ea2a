//! The verdict: what becomes of a recognised scanner.
//!
//! Pure.

use std::time::Duration;

use ipnet::IpNet;

use crate::block::exemptions::Exemptions;
use crate::block::ledger::Ledger;
use crate::block::rate_limit::BlockRateLimit;
use crate::config::BlockConfig;
use crate::types::block::SkipReason;
use crate::types::clock::Moment;

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
    Spare(SkipReason),
}

/// Judges a scanner. One who may be a decoy is blocked all the same, or `nmap -D` would let everybody
/// scan; but it may be somebody innocent, so that it is always a first offence.
pub fn verdict(
    network: &IpNet,
    may_be_decoy: bool,
    now: Moment,
    config: &BlockConfig,
    exemptions: &Exemptions,
    ledger: &Ledger,
    rate_limit: &mut BlockRateLimit,
) -> Verdict {
    if ledger.covers(network) {
        return Verdict::AlreadyBlocked;
    }
    if let Some(why) = exemptions.forbid(network) {
        return Verdict::Spare(SkipReason::Exempt(why));
    }
    if !config.enabled {
        return Verdict::Spare(SkipReason::Observing);
    }
    if let Some(remaining) = ledger.grace(network, now) {
        return Verdict::Spare(SkipReason::Grace { remaining });
    }
    if !rate_limit.permits(now) {
        return Verdict::Spare(SkipReason::Throttled { limit: rate_limit.limit() });
    }
    let offence =
        if may_be_decoy { 1 } else { ledger.next_offence(network, now, config.forget_after.get()) };
    let step = usize::try_from(offence.saturating_sub(1)).unwrap_or(usize::MAX);
    // The configuration guarantees at least one.
    let duration = config.durations.get(step).or(config.durations.last());
    Verdict::Block { duration: duration.and_then(|duration| duration.get()), offence }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::exemptions::tests::exemptions;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
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
            let mut rate_limit = BlockRateLimit::new(1);
            let exemptions = exemptions(&[], true);
            match verdict(&source, false, now, &config, &exemptions, &ledger, &mut rate_limit) {
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
