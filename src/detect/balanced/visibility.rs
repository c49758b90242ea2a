//! Whether replies are visible to the capture.
//!
//! Pure. A mirror port may show one direction only, and an asymmetric route hides some of the replies. Then
//! silence means nothing. Owns the evidence for that. While replies are visible, a single source cannot feign
//! that they are not.

use crate::detect::balanced::thresholds::{
    CUT_OFF_SOURCES, UNANSWERED_IN_A_ROW, UNANSWERED_SOURCES, UNSEEN_FOR, UNSEEN_SOURCES,
};
use crate::types::Moment;

/// What the capture shows of replies.
pub struct Visibility {
    /// When a reply was last seen.
    answered: Option<Moment>,
    /// Probes without a reply since the last reply.
    unanswered: u32,
    /// A bit for each source of these probes.
    sources: u64,
    /// A bit for each source of these probes whose SYNs are not crafted.
    ordinary: u64,
    /// A bit for each source whose connections continued although no reply was seen ...
    unseen: u64,
    /// ... since this moment.
    since: Moment,
    /// No reply is visible.
    blind: bool,
    /// When it was last evident that some replies are not visible.
    partly: Option<Moment>,
    /// Replies were missing at least once.
    ever: bool,
}

impl Visibility {
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
            ever: false,
        }
    }

    /// Whether no reply is visible, so that silence means nothing.
    pub fn is_blind(&self) -> bool {
        self.blind
    }

    /// Whether some or all replies are not visible, so that silence means little.
    pub fn is_one_sided(&self) -> bool {
        self.blind || self.partly.is_some()
    }

    /// Whether replies were ever missing.
    pub fn was_one_sided(&self) -> bool {
        self.ever
    }

    /// Whether several sources have received no reply since `then` and no other source has received one
    /// either: a line is down.
    pub fn is_cut_off(&self, then: Moment) -> bool {
        self.answered.is_some_and(|answered| answered < then)
            && many(self.ordinary, CUT_OFF_SOURCES)
    }

    /// Takes note of a reply.
    pub fn answered(&mut self, now: Moment) {
        (self.unanswered, self.sources, self.ordinary) = (0, 0, 0);
        (self.answered, self.blind) = (Some(now), false);
        self.partly = self.partly.filter(|shown| !now.is_past(*shown, UNSEEN_FOR));
    }

    /// Takes note of a probe without a reply, given the hash of its source. A reply since then shows that
    /// replies were visible while the probe waited.
    pub fn unanswered(&mut self, source: u64, then: Moment, crafted: bool) {
        if self.answered.is_some_and(|answered| answered >= then) {
            return;
        }
        self.unanswered = self.unanswered.saturating_add(1);
        self.sources |= bit(source);
        self.ordinary |= if crafted { 0 } else { bit(source) };
        self.blind |=
            self.unanswered >= UNANSWERED_IN_A_ROW && many(self.sources, UNANSWERED_SOURCES);
        self.ever |= self.blind;
    }

    /// Takes note of a connection that continued although no reply was seen, given the hash of its source.
    pub fn unseen(&mut self, source: u64, now: Moment) {
        if now.is_past(self.since, UNSEEN_FOR) {
            (self.since, self.unseen) = (now, 0);
        }
        self.unseen |= bit(source);
        self.blind |= self.answered.is_none();
        if many(self.unseen, UNSEEN_SOURCES) {
            self.partly = Some(now);
        }
        self.ever |= self.is_one_sided();
    }
}

fn bit(source: u64) -> u64 {
    1 << (source & 63)
}

/// Whether so many bits are set at least. Sources that share a bit count once.
fn many(bits: u64, sources: u32) -> bool {
    bits.count_ones() >= sources
}
