//! Whether replies are visible to the capture.
//!
//! Pure. A mirror port may show one direction only. Then silence means nothing, no reply at all is visible, and
//! connections go on nevertheless. A sender of forged segments can feign such a connection, but it cannot
//! prevent that the replies to others are seen.

use crate::detect::balanced::thresholds::{CUT_OFF_SOURCES, KNOWN_OPEN_FOR};
use crate::types::Moment;

/// What the capture shows of replies.
#[derive(Default)]
pub struct Visibility {
    /// When a reply was last seen.
    answered: Option<Moment>,
    /// A bit for each source without a reply since then whose SYNs are not crafted.
    unanswered: u64,
    /// A connection has continued although no reply was seen.
    continued: bool,
    /// Replies were missing at least once.
    ever: bool,
}

impl Visibility {
    /// Whether no reply is visible although there must be some, so that silence means nothing.
    pub fn is_one_sided(&self) -> bool {
        self.continued
    }

    /// Whether replies were ever missing.
    pub fn was_one_sided(&self) -> bool {
        self.ever
    }

    /// Whether several sources have received no reply since `then` and no other source has received one
    /// either: a line is down.
    pub fn is_cut_off(&self, then: Moment) -> bool {
        self.answered.is_some_and(|answered| answered < then)
            && self.unanswered.count_ones() >= CUT_OFF_SOURCES
    }

    /// Takes note of a reply.
    pub fn answered(&mut self, now: Moment) {
        *self = Self { answered: Some(now), ever: self.ever, ..Self::default() };
    }

    /// Takes note of a probe without a reply, given the hash of its source. A reply since then shows that
    /// replies were visible while the probe waited.
    pub fn unanswered(&mut self, source: u64, then: Moment) {
        if self.answered.is_none_or(|answered| answered < then) {
            self.unanswered |= 1 << (source & 63);
        }
    }

    /// Takes note of a connection that has continued although no reply was seen.
    pub fn continued(&mut self, now: Moment) {
        self.continued |=
            self.answered.is_none_or(|answered| now.is_past(answered, KNOWN_OPEN_FOR));
        self.ever |= self.continued;
    }
}
