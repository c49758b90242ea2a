//! Whether answers can be seen at all.
//!
//! Pure. A mirror port may show one direction only, and an asymmetric route hides the answers of a part of
//! the connections. Then silence means nothing. Owns noticing it; where answers are seen, a single source
//! cannot feign it.

use crate::detect::balanced::thresholds::{
    CUT_OFF_SOURCES, UNANSWERED_IN_A_ROW, UNANSWERED_SOURCES, UNSEEN_FOR, UNSEEN_SOURCES,
};
use crate::types::clock::Moment;

/// What can be seen.
pub struct Sight {
    /// When an answer was last seen, if ever.
    answered: Option<Moment>,
    /// Probes since the last answer, and a bit for each of their sources.
    unanswered: u32,
    sources: u64,
    /// Likewise, of those whose SYNs an operating system has made.
    ordinary: u64,
    /// A bit for each source whose connections went on though they seemed unanswered, since when.
    unseen: u64,
    since: Moment,
    /// No answer is seen.
    blind: bool,
    /// Not all are, as was shown then.
    partly: Option<Moment>,
}

impl Sight {
    pub fn new() -> Self {
        Self {
            answered: None,
            unanswered: 0,
            sources: 0,
            ordinary: 0,
            unseen: 0,
            since: Moment::default(),
            blind: false,
            partly: None,
        }
    }

    /// No answer is seen: silence means nothing.
    pub fn is_blind(&self) -> bool {
        self.blind
    }

    /// Answers are not seen, or not all: silence means little.
    pub fn is_one_sided(&self) -> bool {
        self.blind || self.partly.is_some()
    }

    /// Whether since then nobody is answered any more, whoever he is: the way to all of them is cut.
    pub fn is_cut_off(&self, then: Moment) -> bool {
        self.answered.is_some_and(|answered| answered < then)
            && many(self.ordinary, CUT_OFF_SOURCES)
    }

    /// Somebody has answered.
    pub fn answered(&mut self, now: Moment) {
        (self.unanswered, self.sources, self.ordinary) = (0, 0, 0);
        (self.answered, self.blind) = (Some(now), false);
        self.partly = self.partly.filter(|shown| !now.is_past(*shown, UNSEEN_FOR));
    }

    /// A probe of then, of the source of this hash, has stayed unanswered. If somebody was answered since,
    /// answers were seen all the while it waited.
    pub fn unanswered(&mut self, source: u64, then: Moment, crafted: bool) {
        if self.answered.is_some_and(|answered| answered >= then) {
            return;
        }
        self.unanswered = self.unanswered.saturating_add(1);
        self.sources |= bit(source);
        self.ordinary |= if crafted { 0 } else { bit(source) };
        self.blind |=
            self.unanswered >= UNANSWERED_IN_A_ROW && many(self.sources, UNANSWERED_SOURCES);
    }

    /// A connection of the source of this hash went on whose answer was not seen.
    pub fn unseen(&mut self, source: u64, now: Moment) {
        if now.is_past(self.since, UNSEEN_FOR) {
            (self.since, self.unseen) = (now, 0);
        }
        self.unseen |= bit(source);
        self.blind |= self.answered.is_none();
        if many(self.unseen, UNSEEN_SOURCES) {
            self.partly = Some(now);
        }
    }
}

fn bit(source: u64) -> u64 {
    1 << (source & 63)
}

/// Whether a set of bits, chosen by chance, is of so many at least.
fn many(bits: u64, sources: u32) -> bool {
    bits.count_ones() >= sources
}
