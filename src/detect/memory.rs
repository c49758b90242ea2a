//! The memory of a full detector.
//!
//! Pure. Owns the figures, which are upper bounds; tests/memory.rs compares them with full detectors.

use crate::config::{DetectionConfig, Preset};
use crate::detect::balanced::credit::CREDITS;
use crate::detect::balanced::rules::{FIRST_PORTS_PER_SOURCE, SHARE_OF_OTHERS};
use crate::detect::balanced::thresholds::FOLLOWED;

/// A source that has tried several ports: its record, its key, when it was reported ...
const SOURCE: usize = 128;
/// ... and each port that the rule needs.
const PORT: usize = 8;
/// A source that has tried one port; there are three for each source with several ports.
const CANDIDATE: usize = 32;
const CANDIDATES: usize = 3;
/// A source that has failed on several ports of a host. Sweeps and segments of no connection have tables
/// of their own.
const FAILED: usize = 320;
/// A first failure at a port, or at a host.
const FIRST_FAILURE: usize = 12;
/// A followed connection with its links, and a credit.
const CONNECTION: usize = 128;
const CREDIT: usize = 32;
/// Ongoing scans (512 of 8 KiB), decoys, known and used ports, scheduled checks.
const FIXED: usize = 8 << 20;

/// Returns the most bytes that a detector with this rule takes, whatever arrives.
pub fn most_bytes(rule: &DetectionConfig) -> u64 {
    let (sources, ports) = (rule.max_sources.get(), rule.ports.get());
    let classic = sources * (SOURCE + PORT * (ports + 1) + CANDIDATES * CANDIDATE)
        + index(sources * (1 + CANDIDATES));
    let tables = match rule.preset {
        Preset::Classic => classic,
        // It holds the other engine for probes whose replies are not visible.
        Preset::Balanced => {
            let others = 2 * sources / SHARE_OF_OTHERS;
            classic
                + (sources + others) * FAILED
                + index(sources)
                + index(others)
                + ((sources * FIRST_PORTS_PER_SOURCE).next_power_of_two()
                    + sources.next_power_of_two())
                    * FIRST_FAILURE
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
