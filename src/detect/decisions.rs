//! What was recently decided about failures, so that a person can ask why a source is not blocked.
//!
//! Pure. Owns two rings of a fixed size. The first failures of sources have one of their own, because a flood
//! of forged sources consists of these. Nothing decides by what is in them.

use ipnet::IpNet;

use crate::types::Judged;

/// How many decisions are kept of each kind. 48 bytes each.
const KEPT: usize = 2048;

/// How many failures are explained at a time, the latest.
const EXPLAINED: usize = 64;

/// The decisions.
#[derive(Default)]
pub struct Decisions {
    first: Ring,
    later: Ring,
}

#[derive(Default)]
struct Ring {
    kept: Vec<Judged>,
    next: usize,
}

impl Decisions {
    /// Takes note of a decision about the first failure of a source, or about a later one.
    pub fn note(&mut self, judged: Judged, is_first: bool) {
        let ring = if is_first { &mut self.first } else { &mut self.later };
        ring.note(judged);
    }

    /// Returns the latest decision about each port that addresses in a network have tried, the oldest first.
    pub fn of(&self, network: &IpNet) -> Vec<Judged> {
        let both = self.first.kept.iter().chain(&self.later.kept);
        let mut found: Vec<Judged> =
            both.filter(|judged| network.contains(&judged.source)).copied().collect();
        let place = |judged: &Judged| (judged.source, judged.host, judged.attempt.port);
        found.sort_by_key(|judged| (place(judged), std::cmp::Reverse(judged.attempt.moment)));
        found.dedup_by_key(|judged| place(judged));
        found.sort_by_key(|judged| judged.attempt.moment);
        found.split_off(found.len().saturating_sub(EXPLAINED))
    }
}

impl Ring {
    fn note(&mut self, judged: Judged) {
        if self.kept.len() < KEPT {
            self.kept.push(judged);
        } else {
            self.kept[self.next] = judged;
            self.next = (self.next + 1) % KEPT;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Attempt, Decision, Moment, Port};

    fn judged(source: u8, port: u16, nanos: u64, decision: Decision) -> Judged {
        Judged {
            source: [192, 0, 2, source].into(),
            host: Some([198, 51, 100, 2].into()),
            attempt: Attempt::at(Port(port), Moment::from_nanos(nanos)),
            decision,
        }
    }

    #[test]
    fn latest_decision_about_each_port_is_returned() {
        let mut decisions = Decisions::default();
        decisions.note(judged(1, 80, 1, Decision::Counts), true);
        decisions.note(judged(1, 81, 2, Decision::Offset), false);
        decisions.note(judged(1, 80, 3, Decision::Used), false);
        decisions.note(judged(2, 82, 4, Decision::Counts), true);
        let expected = [judged(1, 81, 2, Decision::Offset), judged(1, 80, 3, Decision::Used)];
        assert_eq!(decisions.of(&"192.0.2.1/32".parse().unwrap()), expected);
        assert_eq!(decisions.of(&"192.0.2.0/24".parse().unwrap()).len(), 3);
    }

    #[test]
    fn flood_of_first_failures_evicts_no_later_ones() {
        let mut decisions = Decisions::default();
        decisions.note(judged(1, 80, 1, Decision::Counts), false);
        for nanos in 2..10_000 {
            decisions.note(judged(7, 80, nanos, Decision::Counts), true);
        }
        assert_eq!(decisions.of(&"192.0.2.1/32".parse().unwrap()).len(), 1);
        assert_eq!(decisions.first.kept.len(), KEPT);
    }
}
