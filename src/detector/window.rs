//! The sliding window of one source.
//!
//! Pure. Exact for the question it answers, "were more than N distinct ports tried within the
//! window?", and small: that holds precisely when the (N+1)-th most recently tried distinct port
//! lies inside the window, so the N+1 most recent distinct ports and their times are all there is
//! to remember, however many probes come.

use std::time::Duration;

use smallvec::SmallVec;

use crate::clock::Moment;
use crate::probe::Port;

/// A port and when it was last tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The port.
    pub port: Port,
    /// When it was last tried.
    pub moment: Moment,
}

/// The most recent distinct ports of a source, latest first. With the default threshold they lie
/// within the window itself: a source costs one cache line less to look at.
#[derive(Debug, Default)]
pub struct Window(SmallVec<[Attempt; 4]>);

impl Window {
    /// An empty window with room for what a threshold of `ports` needs.
    pub fn for_threshold(ports: usize) -> Self {
        Self(SmallVec::with_capacity(ports + 1))
    }

    /// Forgets everything and keeps the room.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Records that `port` was tried at `now`, which must not be before any earlier call's. True if
    /// with it more than `ports` distinct ports were tried in the half-open span `(now - span,
    /// now]`.
    pub fn record(&mut self, port: Port, now: Moment, ports: usize, span: Duration) -> bool {
        let attempt = Attempt { port, moment: now };
        if let Some(at) = self.0.iter().position(|earlier| earlier.port == port) {
            self.0[..=at].rotate_right(1);
            self.0[0] = attempt;
        } else {
            self.0.truncate(ports);
            self.0.insert(0, attempt);
        }
        self.0.get(ports).is_some_and(|oldest| !now.is_past(oldest.moment, span))
    }

    /// When the latest probe came.
    pub fn latest(&self) -> Option<Moment> {
        self.0.first().map(|attempt| attempt.moment)
    }

    /// The ports remembered, in the order they were tried.
    pub fn attempts(&self) -> impl Iterator<Item = Attempt> {
        self.0.iter().rev().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    fn at(seconds: u64) -> Moment {
        Moment::from_nanos(seconds * SECOND)
    }

    fn record(window: &mut Window, port: u16, now: Moment) -> bool {
        window.record(Port(port), now, 3, Duration::from_secs(60))
    }

    #[test]
    fn the_fourth_distinct_port_fires_and_the_third_does_not() {
        let mut window = Window::default();
        assert!(!record(&mut window, 1, at(0)));
        assert!(!record(&mut window, 2, at(1)));
        assert!(!record(&mut window, 3, at(2)));
        assert!(!record(&mut window, 3, at(3)), "a repeated port counts once");
        assert!(record(&mut window, 4, at(4)));
        let ports: Vec<u16> = window.attempts().map(|attempt| attempt.port.0).collect();
        assert_eq!(ports, [1, 2, 3, 4]);
    }

    #[test]
    fn a_probe_exactly_as_old_as_the_window_no_longer_counts() {
        for (fourth, fires) in [(60 * SECOND, false), (60 * SECOND - 1, true)] {
            let mut window = Window::default();
            for port in 1..=3 {
                record(&mut window, port, at(0));
            }
            assert_eq!(record(&mut window, 4, Moment::from_nanos(fourth)), fires);
        }
    }

    #[test]
    fn a_repeated_port_is_refreshed() {
        let mut window = Window::default();
        record(&mut window, 1, at(0));
        record(&mut window, 2, at(10));
        record(&mut window, 3, at(20));
        record(&mut window, 1, at(50));
        assert!(record(&mut window, 4, at(65)), "port 1 was last tried 15 s ago, not 65 s");
    }

    /// The rule as one would write it down, remembering everything.
    fn naive(history: &[(u16, u64)], ports: usize, span: Duration) -> bool {
        let now = Moment::from_nanos(history.last().unwrap().1);
        let mut distinct: Vec<u16> = history
            .iter()
            .filter(|(_, t)| now.since(Moment::from_nanos(*t)) < span)
            .map(|(port, _)| *port)
            .collect();
        distinct.sort_unstable();
        distinct.dedup();
        distinct.len() > ports
    }

    proptest! {
        #[test]
        fn equals_the_naive_model(
            ports in 1..=64usize,
            span in prop_oneof![Just(1u64), 2..120u64, Just(86_400)],
            steps in proptest::collection::vec((0..70u16, 0..4u64), 1..400),
        ) {
            let span = Duration::from_secs(span);
            // Steps of a quarter of what makes `ports` of them fill the window: the edge is met often.
            let unit = u64::try_from(span.as_nanos() / (2 * ports as u128)).unwrap().max(1);
            let mut window = Window::for_threshold(ports);
            let mut history = Vec::new();
            let mut now = 0;
            for (port, pause) in steps {
                now += pause * unit;
                history.push((port, now));
                prop_assert_eq!(
                    window.record(Port(port), Moment::from_nanos(now), ports, span),
                    naive(&history, ports, span)
                );
            }
        }
    }
}
