//! The state of the service in one word, as users see it.

use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Enforcing,
    /// Scanners are only reported, as configured.
    Observing,
    /// Something does not work.
    Degraded,
}

impl State {
    /// All states, in the order of their discriminants.
    pub const ALL: [Self; 3] = [Self::Enforcing, Self::Observing, Self::Degraded];

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
