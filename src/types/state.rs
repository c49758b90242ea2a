//! The state of the service in one word.

use std::fmt;

/// How the service is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Scanners are blocked.
    Enforcing,
    /// Scanners are reported only, as configured.
    Observing,
    /// Something does not work as it should.
    Degraded,
}

impl State {
    /// All states, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Enforcing, Self::Observing, Self::Degraded];

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enforcing => "enforcing",
            Self::Observing => "observing",
            Self::Degraded => "degraded",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
