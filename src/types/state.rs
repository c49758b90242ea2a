//! The state of the service, as users see it.
//!
//! Pure. Plain records.

use std::fmt;

use crate::types::words::words;

words! {
    #[derive(Default)]
    State {
        #[default]
        /// Blocks are not in force yet.
        Starting = "starting",
        Enforcing = "enforcing",
        /// Scanners are only reported, as configured.
        Observing = "observing",
        /// Something does not work.
        Degraded = "degraded",
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The figures of one address family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FamilyFigures {
    /// Networks to be blocked.
    pub blocked: u32,
    /// Networks blocked in the kernel, as of the last check.
    pub enforced: u32,
    /// Packets that the kernel dropped since the start, as of the last check.
    pub dropped_packets: u64,
}

/// The condition of the service at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub state: State,
    /// Why it is degraded, or what it still waits for.
    pub reason: Option<String>,
    /// The back end that holds the blocks; `none` in observe mode.
    pub backend: &'static str,
    /// IPv4 and IPv6, in the order of `Family::ALL`.
    pub families: [FamilyFigures; 2],
}

impl Status {
    /// Returns how many networks of both families are to be blocked.
    pub fn blocked(&self) -> u32 {
        self.families.iter().map(|figures| figures.blocked).sum()
    }
}
