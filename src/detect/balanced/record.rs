//! What is remembered of a source that has failed on several ports of a host, and when that is a scan.
//!
//! Pure. Owns the verdict about ports. What is known of the ports and of the source comes from
//! [`super::rules`], the numbers from [`super::thresholds`].

use crate::detect::balanced::ports::RecentPorts;
use crate::detect::balanced::thresholds::{A_DAY, A_MINUTE, AN_HOUR, HABIT, JUDGED_AFTER, Limit};
use crate::detect::effort::Effort;
use crate::types::{Attempt, Moment, Outcome, Rule};

/// Connections within this time are one health check, even if the service has several connections.
const ONE_CHECK: std::time::Duration = std::time::Duration::from_secs(1);

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
    /// The last open port to which the source connected without data.
    idle: Option<Attempt>,
    /// The source has repeated that connection, as load balancers do.
    repeats: bool,
}

/// What is known besides the record when it is judged.
pub struct Circumstances<D> {
    /// Whether the failure at a port may be the fault of the host.
    pub is_doubtful: D,
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

    /// Adds a failure or a connection without data. Returns whether the port is new.
    pub fn add(&mut self, attempt: Attempt, crafted: bool) -> bool {
        self.failures += 1;
        self.stealthy |= attempt.outcome == Outcome::Unknown;
        self.crafted |= crafted;
        if attempt.outcome == Outcome::Answered {
            let expired = |first: &Attempt| attempt.moment.is_past(first.moment, JUDGED_AFTER);
            match self.idle.filter(|first| !expired(first)) {
                Some(first) if first.port == attempt.port => {
                    self.repeats |= attempt.moment.is_past(first.moment, ONE_CHECK);
                }
                Some(_) => {}
                None => self.idle = Some(attempt),
            }
        }
        self.ports.add(attempt)
    }

    /// Judges the source. Cheap unless it has failed on many ports.
    pub fn judge(&self, known: &Circumstances<impl Fn(&Attempt) -> bool>) -> Verdict {
        let ports = &self.ports;
        let limits = [A_MINUTE, AN_HOUR, A_DAY];
        // Silence means nothing then, so that only the classic threshold is left.
        let blind = known.blind && !self.crafted;
        let (limits, longest) = if blind { (&limits[..1], A_MINUTE) } else { (&limits[..], A_DAY) };
        if ports.exceeded(limits, |_, _| true).is_some() {
            let is_real = |attempt: &Attempt| !(known.is_doubtful)(attempt);
            let many = Limit { within: longest.within, ..A_DAY };
            if let Some(limit) = ports.exceeded(limits, |attempt, _| is_real(attempt)) {
                let is_many = ports.exceeded(&[many], |attempt, _| is_real(attempt)).is_some();
                if self.crafted || is_many {
                    return Verdict::Scan(Rule::FailedPorts, limit);
                }
            }
            if !known.has_waited {
                return Verdict::Later;
            }
            let is_new = |attempt: &Attempt, tries| tries < HABIT && is_real(attempt);
            return match ports.exceeded(limits, is_new) {
                Some(limit) if !known.is_client => Verdict::Scan(Rule::FailedPorts, limit),
                _ => Verdict::Nothing,
            };
        }
        if !ports.is_connect_scan() || self.repeats {
            Verdict::Nothing
        } else if known.has_waited {
            Verdict::Scan(Rule::ConnectScan, A_MINUTE)
        } else {
            Verdict::Later
        }
    }
}
