//! What is remembered of a source that has failed on several ports of a host, and when that is a scan.
//!
//! Pure. Owns the verdict about ports. What is known of the ports and of the source comes from
//! [`super::rules`], the numbers from [`super::thresholds`].

use crate::detect::balanced::ports::{ONE_TRY, RecentPorts};
use crate::detect::balanced::thresholds::{A_DAY, A_MINUTE, AN_HOUR, HABIT, JUDGED_AFTER, Limit};
use crate::detect::effort::Effort;
use crate::types::{Attempt, Moment, Outcome, Port, Rule};

/// What is remembered of a source.
#[derive(Default)]
pub struct Record {
    pub ports: RecentPorts,
    pub failures: u64,
    /// A segment was no SYN.
    pub stealthy: bool,
    /// A program has crafted a segment: no honest client does.
    pub crafted: bool,
    pub latest: Moment,
    pub reported: Option<Moment>,
    pub effort: Effort,
    /// A verdict is scheduled.
    pub awaits_verdict: bool,
    idle: Idle,
}

/// Connections without data.
#[derive(Default)]
enum Idle {
    #[default]
    None,
    /// The first one, until it is too old.
    Once(Attempt),
    /// The source has repeated it, as load balancers do.
    Repeated,
}

/// What is known besides the record when it is judged.
#[derive(Clone, Copy)]
pub struct Circumstances {
    /// No reply is visible, so silence means little.
    pub blind: bool,
    /// The source uses the host, too.
    pub is_client: bool,
    /// The source had its time to show what it is.
    pub has_waited: bool,
}

/// What a record means.
pub enum Verdict {
    Scan(Rule, Limit),
    /// Perhaps a scan. The source may still show what it is.
    Later,
    Nothing,
}

impl Record {
    pub fn new(now: Moment) -> Self {
        Self { latest: now, ..Self::default() }
    }

    /// A source that was silent for an hour starts over.
    pub fn touch(&mut self, now: Moment) {
        if now.is_past(self.latest, AN_HOUR.within) {
            (self.stealthy, self.crafted, self.reported) = (false, false, None);
        }
        self.latest = now;
    }

    /// Adds a failure or a connection without data, given the port of the client. Returns whether the port that
    /// it tried is new.
    pub fn add(&mut self, attempt: Attempt, from: Port, crafted: bool) -> bool {
        self.failures += 1;
        self.stealthy |= attempt.outcome == Outcome::Unknown;
        self.crafted |= crafted;
        if attempt.outcome == Outcome::Answered {
            match self.idle {
                Idle::Once(first) if !attempt.moment.is_past(first.moment, JUDGED_AFTER) => {
                    let is_later = attempt.moment.is_past(first.moment, ONE_TRY);
                    if first.port == attempt.port && is_later {
                        self.idle = Idle::Repeated;
                    }
                }
                Idle::Repeated => {}
                _ => self.idle = Idle::Once(attempt),
            }
        }
        self.ports.add(attempt, from)
    }

    /// Judges the source.
    pub fn judge(&self, known: Circumstances) -> Verdict {
        let ports = &self.ports;
        let limits = [A_MINUTE, AN_HOUR, A_DAY];
        // Silence means nothing then, so that only the classic threshold is left.
        let (limits, longest) = if known.blind && !self.crafted {
            (&limits[..1], A_MINUTE.within)
        } else {
            (&limits[..], A_DAY.within)
        };
        if let Some(limit) = ports.exceeded(limits, |_| true) {
            let many = Limit { within: longest, ..A_DAY };
            if self.crafted || ports.exceeded(&[many], |_| true).is_some() {
                return Verdict::Scan(Rule::FailedPorts, limit);
            }
            if !known.has_waited {
                return Verdict::Later;
            }
            return match ports.exceeded(limits, |tries| tries < HABIT) {
                Some(limit) if !known.is_client => Verdict::Scan(Rule::FailedPorts, limit),
                _ => Verdict::Nothing,
            };
        }
        if !ports.is_connect_scan() || matches!(self.idle, Idle::Repeated) {
            Verdict::Nothing
        } else if known.has_waited {
            Verdict::Scan(Rule::ConnectScan, A_MINUTE)
        } else {
            Verdict::Later
        }
    }
}
