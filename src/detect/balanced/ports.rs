//! The ports of a host on which a source has failed, and the limits for them.
//!
//! Pure. Owns the most recent distinct ports and their times, which is enough, as in the classic rule: there
//! are more than N within a span exactly if the N+1 most recent ones are.

use std::time::Duration;

use crate::detect::balanced::thresholds::{
    A_DAY, A_MINUTE, AN_HOUR, CONNECT_SCAN, Limit, PORTS_KEPT,
};
use crate::types::{Attempt, Moment, Outcome, Port, Rule};

/// A rule that was exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    pub rule: Rule,
    pub threshold: usize,
    pub span: Duration,
}

impl Violation {
    pub fn new(rule: Rule, limit: Limit) -> Self {
        Self { rule, threshold: limit.more_than, span: limit.within }
    }
}

/// The most recent distinct ports, in the order of their last attempts.
#[derive(Clone, Copy, Debug)]
pub struct RecentPorts {
    recent: [Attempt; PORTS_KEPT],
    kept: u8,
}

impl RecentPorts {
    pub const fn new() -> Self {
        let none = Attempt::at(Port(0), Moment::from_nanos(0));
        Self { recent: [none; PORTS_KEPT], kept: 0 }
    }

    pub fn attempts(&self) -> &[Attempt] {
        &self.recent[..usize::from(self.kept)]
    }

    /// Adds a port, or moves it to the end. Returns whether the port is new.
    pub fn add(&mut self, attempt: Attempt) -> bool {
        let known = self.attempts().iter().position(|known| known.port == attempt.port);
        if let Some(at) = known {
            // A port that has failed once does not count as open.
            let failed = self.recent[at].outcome != Outcome::Answered;
            if attempt.outcome == Outcome::Answered && failed {
                return false;
            }
            self.remove_at(at);
        } else if usize::from(self.kept) == PORTS_KEPT {
            // Connections to open ports do not evict failed ports.
            let open = self.recent.iter().position(|a| a.outcome == Outcome::Answered);
            if open.is_none() && attempt.outcome == Outcome::Answered {
                return false;
            }
            self.remove_at(open.unwrap_or(0));
        }
        // A missing reply is known later than a refusal.
        let mut at = usize::from(self.kept);
        while at > 0 && self.recent[at - 1].moment > attempt.moment {
            self.recent[at] = self.recent[at - 1];
            at -= 1;
        }
        self.recent[at] = attempt;
        self.kept += 1;
        known.is_none()
    }

    /// Removes a port that has replied after all.
    pub fn undo(&mut self, port: Port) {
        self.retain(|attempt| attempt.port != port);
    }

    pub fn retain(&mut self, keep: impl Fn(&Attempt) -> bool) {
        for at in (0..usize::from(self.kept)).rev() {
            if !keep(&self.recent[at]) {
                self.remove_at(at);
            }
        }
    }

    fn remove_at(&mut self, at: usize) {
        self.recent.copy_within(at + 1..usize::from(self.kept), at);
        self.kept -= 1;
    }

    /// How many ports were tried within a span before `now`, and how many of these failed.
    pub fn within(&self, span: Duration, now: Moment) -> (usize, usize) {
        let lie_within = self.attempts().iter().filter(|a| !now.is_past(a.moment, span));
        lie_within.fold((0, 0), |(all, failed), attempt| {
            (all + 1, failed + usize::from(attempt.outcome != Outcome::Answered))
        })
    }

    /// The limit for failed ports that is exceeded, with the shortest span first.
    pub fn violation(&self, now: Moment) -> Option<Violation> {
        let failed = |limit: &Limit| self.within(limit.within, now).1 > limit.more_than;
        let limit = [A_MINUTE, AN_HOUR, A_DAY].into_iter().find(failed)?;
        Some(Violation::new(Rule::FailedPorts, limit))
    }

    /// Whether this is a connect scan: too many ports failed or were connected to without data, and there are
    /// some of each kind.
    pub fn connect_scan(&self, now: Moment) -> Option<Violation> {
        let (all, failed) = self.within(CONNECT_SCAN.within, now);
        (all > CONNECT_SCAN.more_than && (1..all).contains(&failed))
            .then(|| Violation::new(Rule::ConnectScan, CONNECT_SCAN))
    }

    /// The attempts that exceed a rule.
    pub fn evidence(&self, violation: &Violation, now: Moment) -> Vec<Attempt> {
        let only_failed = violation.rule == Rule::FailedPorts;
        let lie_within = self.attempts().iter().filter(|a| !now.is_past(a.moment, violation.span));
        lie_within.filter(|a| !only_failed || a.outcome != Outcome::Answered).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: u64) -> Moment {
        Moment::from_nanos(seconds * 1_000_000_000)
    }

    fn refused(port: u16, seconds: u64) -> Attempt {
        Attempt { outcome: Outcome::Refused, ..Attempt::at(Port(port), at(seconds)) }
    }

    /// The rules without any optimisation: they remember everything.
    fn naive(history: &[(u16, u64)], now: u64) -> bool {
        [(3, 60), (4, 3600), (7, 86_400)].into_iter().any(|(more_than, span)| {
            let recent = history.iter().filter(|(_, t)| now - t < span);
            let mut ports: Vec<u16> = recent.map(|(port, _)| *port).collect();
            ports.sort_unstable();
            ports.dedup();
            ports.len() > more_than
        })
    }

    proptest! {
        #[test]
        fn ports_equal_the_naive_model(
            steps in proptest::collection::vec(
                (0..14u16, prop_oneof![0..3u64, 15..61u64, 600..4000u64, 20_000..50_000u64]),
                1..60,
            ),
        ) {
            let (mut ports, mut history, mut now) = (RecentPorts::new(), Vec::new(), 100_000);
            for (port, pause) in steps {
                now += pause;
                history.push((port, now));
                ports.add(refused(port, now));
                prop_assert_eq!(ports.violation(at(now)).is_some(), naive(&history, now));
            }
        }
    }

    #[test]
    fn open_ports_in_between_hide_no_failures() {
        let mut ports = RecentPorts::new();
        for number in 0..4 {
            for open in 0..20 {
                let answered = Outcome::Answered;
                ports.add(Attempt {
                    outcome: answered,
                    ..refused(1000 + open, 100 * u64::from(number))
                });
            }
            ports.add(refused(number, 100 * u64::from(number) + 1));
        }
        assert_eq!(ports.violation(at(302)).map(|violation| violation.rule), None);
        ports.add(refused(9, 400));
        assert_eq!(ports.violation(at(400)).map(|violation| violation.span), Some(AN_HOUR.within));
    }
}
