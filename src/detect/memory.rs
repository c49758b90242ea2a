//! The memory of a full detector.
//!
//! Pure. Owns the figures, which are upper bounds; tests/memory.rs compares them with full detectors.

use crate::config::{DetectionConfig, Preset};
use crate::detect::balanced::thresholds::{CREDITS, FOLLOWED};

/// A source that has tried several ports: its record, its key, when it was reported ...
const SOURCE: usize = 128;
/// ... and each port that the rule needs.
const PORT: usize = 8;
/// A source that has tried one port; there are three for each source with several ports.
const CANDIDATE: usize = 32;
const CANDIDATES: usize = 3;
/// A source that has failed on several ports of a host. As many again share a sixteenth of the sources for
/// sweeps and segments of no connection.
const FAILED: usize = 320;
/// A first failure. There are places for two at ports and one at hosts for each source.
const FIRST_FAILURE: usize = 24;
/// A followed connection with its links, and a credit.
const CONNECTION: usize = 128;
const CREDIT: usize = 32;
/// Ongoing scans (512 of 8 KiB), decoys, known ports, scheduled checks.
const FIXED: usize = 6 << 20;

/// Returns the most bytes that a detector with this rule takes, whatever arrives.
pub fn most_bytes(rule: &DetectionConfig) -> u64 {
    let (sources, ports) = (rule.max_sources.get(), rule.ports.get());
    let classic = sources * (SOURCE + PORT * (ports + 1) + CANDIDATES * CANDIDATE)
        + index(sources * (1 + CANDIDATES));
    let tables = match rule.preset {
        Preset::Classic => classic,
        // It holds the other engine for probes whose replies are not visible.
        Preset::Balanced => {
            let others = sources / 8;
            classic
                + (sources + others) * FAILED
                + index(sources)
                + index(others)
                + ((sources * 2).next_power_of_two() + sources.next_power_of_two()) * FIRST_FAILURE
                + FOLLOWED * CONNECTION
                + CREDITS * CREDIT
        }
    };
    u64::try_from(tables + FIXED).unwrap_or(u64::MAX)
}

/// An index of so many entries at the moment at which it grows: slots of 8 bytes, at most half of them used,
/// beside half as many of before.
fn index(entries: usize) -> usize {
    (entries * 2 + 1).next_power_of_two() * 8 * 3 / 2
}
