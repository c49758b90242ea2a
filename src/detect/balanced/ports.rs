//! The ports of a host on which a source has failed, and the limits for them.
//!
//! Pure. Owns the most recent distinct ports and their times, which is enough, as in the classic rule: there
//! are more than N within a span exactly if the N+1 most recent ones are.

use std::time::Duration;

use crate::detect::balanced::thresholds::{A_DAY, A_MINUTE, Limit};
use crate::types::{Attempt, Moment, Outcome, Port, Rule};

/// As many ports as the longest rule needs.
const KEPT: usize = A_DAY.more_than + 1;

/// Tries of one port within this time are one try: a client tries all addresses of a host at once.
const ONE_TRY: Duration = Duration::from_millis(500);

/// The most recent distinct ports, in the order of their last attempts.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecentPorts {
    recent: [Attempt; KEPT],
    /// How often each port was tried.
    tries: [u8; KEPT],
    kept: u8,
}

impl RecentPorts {
    pub fn attempts(&self) -> &[Attempt] {
        &self.recent[..usize::from(self.kept)]
    }

    /// Adds a port, or moves it to the end. Returns whether the port is new.
    pub fn add(&mut self, attempt: Attempt) -> bool {
        let known = self.attempts().iter().position(|known| known.port == attempt.port);
        let mut tries = 1;
        if let Some(at) = known {
            let before = self.recent[at];
            // A port that has failed once does not count as open.
            if attempt.outcome == Outcome::Answered && before.outcome != Outcome::Answered {
                return false;
            }
            let is_another_try = attempt.moment.is_past(before.moment, ONE_TRY);
            tries = self.tries[at].saturating_add(is_another_try.into());
            self.remove_at(at);
        } else if usize::from(self.kept) == KEPT {
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
            (self.recent[at], self.tries[at]) = (self.recent[at - 1], self.tries[at - 1]);
            at -= 1;
        }
        (self.recent[at], self.tries[at]) = (attempt, tries);
        self.kept += 1;
        known.is_none()
    }

    /// Takes note that the source uses a port although it seems to fail.
    pub fn excuse(&mut self, port: Port) {
        let known = self.attempts().iter().position(|known| known.port == port);
        if let Some(at) = known {
            self.tries[at] = u8::MAX;
        }
    }

    /// Removes a port that has replied after all.
    pub fn undo(&mut self, port: Port) {
        let known = self.attempts().iter().position(|known| known.port == port);
        if let Some(at) = known {
            self.remove_at(at);
        }
    }

    fn remove_at(&mut self, at: usize) {
        self.recent.copy_within(at + 1..usize::from(self.kept), at);
        self.tries.copy_within(at + 1..usize::from(self.kept), at);
        self.kept -= 1;
    }

    /// The first of these limits that is exceeded by the failed ports that count, given how often each was
    /// tried.
    pub fn exceeded(
        &self,
        limits: &[Limit],
        counts: impl Fn(&Attempt, u8) -> bool,
    ) -> Option<Limit> {
        let all = self.attempts().iter().zip(self.tries);
        let failed = all.filter(|(attempt, tries)| {
            attempt.outcome != Outcome::Answered && counts(attempt, *tries)
        });
        let moments = failed.map(|(attempt, _)| attempt.moment);
        let latest = moments.clone().last()?;
        let within = |span| moments.clone().filter(|moment| !latest.is_past(*moment, span)).count();
        limits.iter().find(|limit| within(limit.within) > limit.more_than).copied()
    }

    /// The attempts within a span before the latest one.
    fn within(&self, span: Duration) -> impl Iterator<Item = &Attempt> {
        let latest = self.latest();
        self.attempts().iter().filter(move |attempt| !latest.is_past(attempt.moment, span))
    }

    fn latest(&self) -> Moment {
        self.attempts().last().map_or(Moment::default(), |attempt| attempt.moment)
    }

    /// Whether this is a connect scan: too many ports failed or were connected to without data, and there are
    /// some of each kind.
    pub fn is_connect_scan(&self) -> bool {
        let (mut all, mut failed) = (0, 0);
        for attempt in self.within(A_MINUTE.within) {
            all += 1;
            failed += usize::from(attempt.outcome != Outcome::Answered);
        }
        all > A_MINUTE.more_than && (1..all).contains(&failed)
    }

    /// The attempts that exceed the limit of a rule.
    pub fn evidence(&self, rule: Rule, limit: Limit) -> Vec<Attempt> {
        let only_failed = rule == Rule::FailedPorts;
        let counted = |a: &&Attempt| !only_failed || a.outcome != Outcome::Answered;
        self.within(limit.within).filter(counted).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::balanced::thresholds::AN_HOUR;
    use proptest::prelude::*;

    fn at(seconds: u64) -> Moment {
        Moment::from_nanos(seconds * 1_000_000_000)
    }

    fn refused(port: u16, seconds: u64) -> Attempt {
        Attempt { outcome: Outcome::Refused, ..Attempt::at(Port(port), at(seconds)) }
    }

    fn exceeded(ports: &RecentPorts) -> Option<Duration> {
        ports.exceeded(&[A_MINUTE, AN_HOUR, A_DAY], |_, _| true).map(|limit| limit.within)
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
            let (mut ports, mut history, mut now) = (RecentPorts::default(), Vec::new(), 100_000);
            for (port, pause) in steps {
                now += pause;
                history.push((port, now));
                ports.add(refused(port, now));
                prop_assert_eq!(exceeded(&ports).is_some(), naive(&history, now));
            }
        }
    }

    #[test]
    fn open_ports_in_between_hide_no_failures() {
        let mut ports = RecentPorts::default();
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
        assert_eq!(exceeded(&ports), None);
        ports.add(refused(9, 400));
        assert_eq!(exceeded(&ports), Some(AN_HOUR.within));
    }

    #[test]
    fn tries_count_if_they_are_apart() {
        let mut ports = RecentPorts::default();
        for seconds in [0, 0, 2, 4] {
            ports.add(refused(1, seconds));
        }
        ports.add(refused(2, 4));
        let limit = Limit { more_than: 0, within: A_MINUTE.within };
        let tried =
            |most| ports.exceeded(&[limit], |attempt, t| attempt.port == Port(1) && t <= most);
        assert!(tried(2).is_none() && tried(3).is_some(), "{ports:?}");
    }
}
