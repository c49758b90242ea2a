//! The sliding window of one source.
//!
//! Pure. Owns the answer to "did the source try more than N distinct ports within the window?". It did
//! exactly if the (N+1)-th most recently tried distinct port lies inside the window. So the window needs only
//! the N+1 most recent distinct ports and their times, however many probes arrive.

use std::time::Duration;

use crate::types::{Attempt, Moment, Port};

/// What a probe has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tried {
    /// The source had not tried the port within the span.
    pub new_port: bool,
    /// The source has tried more ports than the rule allows.
    pub too_many: bool,
}

/// An attempt in 8 bytes: the port in the upper bits, and the lower 48 bits of its moment. The moment wraps
/// around after three days, and a window is at most one day.
#[derive(Clone, Copy, Debug, Default)]
pub struct Packed(u64);

const MOMENT_BITS: u32 = 48;
const MOMENT: u64 = (1 << MOMENT_BITS) - 1;

impl Packed {
    fn new(port: Port, moment: Moment) -> Self {
        Self(u64::from(port.0) << MOMENT_BITS | moment.as_nanos() & MOMENT)
    }

    pub fn bits(self) -> u64 {
        self.0
    }

    fn port(self) -> Port {
        Port((self.0 >> MOMENT_BITS) as u16)
    }

    /// The moment of the attempt, given a moment less than three days later.
    fn moment(self, seen_from: Moment) -> Moment {
        let age = seen_from.as_nanos().wrapping_sub(self.0) & MOMENT;
        Moment::from_nanos(seen_from.as_nanos().saturating_sub(age))
    }
}

/// The most recent distinct ports of a source, latest first. The caller owns the memory, which has room for
/// one port more than the rule allows.
pub struct Window<'a> {
    room: &'a mut [Packed],
    /// How many attempts there are. All were within the span at the latest attempt.
    taken: &'a mut u8,
    latest: &'a mut Moment,
}

impl<'a> Window<'a> {
    pub fn new(room: &'a mut [Packed], taken: &'a mut u8, latest: &'a mut Moment) -> Self {
        Self { room, taken, latest }
    }

    /// Records an attempt. `now` must not go backwards. The half-open span `(now - span, now]` counts.
    pub fn record(&mut self, port: Port, now: Moment, span: Duration) -> Tried {
        let silent = now.is_past(*self.latest, span);
        let mut taken = if silent { 0 } else { usize::from(*self.taken) };
        while taken > 0 && now.is_past(self.room[taken - 1].moment(now), span) {
            taken -= 1;
        }
        let known = self.room[..taken].iter().position(|earlier| earlier.port() == port);
        let last = known.unwrap_or_else(|| {
            taken = self.room.len().min(taken + 1);
            taken - 1
        });
        // There are only a few attempts, so a call of memmove would take longer.
        for at in (0..last).rev() {
            self.room[at + 1] = self.room[at];
        }
        self.room[0] = Packed::new(port, now);
        *self.latest = now;
        // Configuration allows 64 ports at most.
        *self.taken = u8::try_from(taken).unwrap_or(u8::MAX);
        Tried { new_port: known.is_none(), too_many: taken == self.room.len() }
    }

    /// When the source sent its latest probe.
    pub fn latest(&self) -> Moment {
        *self.latest
    }

    /// The attempts within the span before the latest one, oldest first.
    pub fn attempts(&self) -> impl Iterator<Item = Attempt> {
        self.room[..usize::from(*self.taken)]
            .iter()
            .rev()
            .map(|packed| Attempt::at(packed.port(), packed.moment(*self.latest)))
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

    /// Memory for a threshold.
    struct Room {
        attempts: Vec<Packed>,
        taken: u8,
        latest: Moment,
    }

    impl Room {
        fn for_threshold(ports: usize) -> Self {
            Self { attempts: vec![Packed::default(); ports + 1], taken: 0, latest: at(0) }
        }

        fn window(&mut self) -> Window<'_> {
            Window::new(&mut self.attempts, &mut self.taken, &mut self.latest)
        }
    }

    fn record(room: &mut Room, port: u16, now: Moment) -> bool {
        room.window().record(Port(port), now, Duration::from_secs(60)).too_many
    }

    #[test]
    fn fourth_distinct_port_fires_and_third_does_not() {
        let mut window = Room::for_threshold(3);
        assert!(!record(&mut window, 1, at(0)));
        assert!(!record(&mut window, 2, at(1)));
        assert!(!record(&mut window, 3, at(2)));
        assert!(!record(&mut window, 3, at(3)), "a repeated port counts once");
        assert!(record(&mut window, 4, at(4)));
        let ports: Vec<u16> = window.window().attempts().map(|attempt| attempt.port.0).collect();
        assert_eq!(ports, [1, 2, 3, 4]);
    }

    #[test]
    fn probe_exactly_as_old_as_the_window_does_not_count() {
        for (fourth, fires) in [(60 * SECOND, false), (60 * SECOND - 1, true)] {
            let mut window = Room::for_threshold(3);
            for port in 1..=3 {
                record(&mut window, port, at(0));
            }
            assert_eq!(record(&mut window, 4, Moment::from_nanos(fourth)), fires);
        }
    }

    #[test]
    fn repeated_port_is_refreshed() {
        let mut window = Room::for_threshold(3);
        record(&mut window, 1, at(0));
        record(&mut window, 2, at(10));
        record(&mut window, 3, at(20));
        record(&mut window, 1, at(50));
        assert!(record(&mut window, 4, at(65)), "port 1 was last tried 15 s ago, not 65 s");
    }

    #[test]
    fn attempt_older_than_the_wrap_around_does_not_count() {
        let mut window = Room::for_threshold(3);
        for port in 1..=3 {
            record(&mut window, port, at(0));
        }
        // 2^48 ns later the lower bits repeat.
        assert!(!record(&mut window, 4, Moment::from_nanos(1 << MOMENT_BITS)));
    }

    /// The rule without any optimisation: it remembers everything.
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
        fn window_equals_the_naive_model(
            ports in 1..=64usize,
            span in prop_oneof![Just(1u64), 2..120u64, Just(86_400)],
            steps in proptest::collection::vec((0..70u16, 0..4u64), 1..400),
        ) {
            let span = Duration::from_secs(span);
            // A step is so long that the probes often meet the edge of the window.
            let unit = u64::try_from(span.as_nanos() / (2 * ports as u128)).unwrap().max(1);
            let mut room = Room::for_threshold(ports);
            let mut history = Vec::new();
            let mut now = 0;
            for (port, pause) in steps {
                now += pause * unit;
                history.push((port, now));
                prop_assert_eq!(
                    room.window().record(Port(port), Moment::from_nanos(now), span).too_many,
                    naive(&history, ports, span)
                );
            }
        }
    }
}
