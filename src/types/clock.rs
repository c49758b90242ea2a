//! Time as the service knows it.
//!
//! Owns the only calls to the system's clocks. Everything that decides takes a [`Moment`] as an
//! argument, so it can be tested and replayed; nothing here decides anything.

use std::fmt;
use std::ops::Add;
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, Timespec, clock_gettime};
use serde::{Deserialize, Serialize};

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Where the boot lies on the live timeline: a hundred years after its start, so that what happened
/// before the boot has a moment as well.
const BOOT: Duration = Duration::from_secs(3_155_760_000);

/// A point on one timeline, in nanoseconds. Live it follows `CLOCK_BOOTTIME`, which no wall-clock step
/// moves and which counts the time a machine sleeps; in a replay it is the capture's own time.
/// Moments of different timelines must not be compared, nor those of different boots.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Moment(u64);

impl Moment {
    /// The moment `nanos` nanoseconds after the timeline's start.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the timeline's start.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The current moment of the live timeline.
    pub fn now() -> Self {
        Self(nanos(clock_gettime(ClockId::Boottime))) + BOOT
    }

    /// Whether at least `span` has passed since `earlier`. What is asked for each probe is asked so: a
    /// [`Duration`] between two moments costs divisions.
    pub const fn is_past(self, earlier: Self, span: Duration) -> bool {
        self.0.saturating_sub(earlier.0) as u128 >= span.as_nanos()
    }

    /// So much earlier; the timeline's start if there is no such moment.
    #[must_use]
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(nanos_of(duration)))
    }

    /// How long after `earlier` this is; zero if it is not after it.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos_of(duration)))
    }
}

/// Where the wall clock stands against the live timeline just now: the bridge between the
/// kernel's capture times, what people read, and [`Moment`]. Take a fresh one for each batch of
/// packets and each reply, so that a step of the wall clock shows in what is displayed and
/// nowhere else.
#[derive(Clone, Copy, Debug)]
pub struct WallClock {
    now: Moment,
    /// Wall clock minus timeline, in nanoseconds.
    offset: i128,
}

impl WallClock {
    /// Reads both clocks.
    #[expect(clippy::disallowed_methods, reason = "this file owns the clocks")]
    pub fn read() -> Self {
        // By the C library, so that the tests can put another wall clock in its place.
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = Moment::now();
        Self { now, offset: i128::from(nanos_of(wall)) - i128::from(now.0) }
    }

    /// A reading of one's choice.
    #[cfg(test)]
    pub fn at(now: Moment, unix_seconds: u64) -> Self {
        let wall = i128::from(unix_seconds) * i128::from(NANOS_PER_SECOND);
        Self { now, offset: wall - i128::from(now.0) }
    }

    /// The moment at which the two clocks were compared.
    pub const fn now(&self) -> Moment {
        self.now
    }

    /// The moment of a wall-clock time in nanoseconds since the Unix epoch. Never later than this
    /// reading: a time from before a step of the clock may be off by that step, but never ahead.
    pub fn moment_of(&self, unix_nanos: u64) -> Moment {
        let moment = i128::from(unix_nanos) - self.offset;
        Moment(u64::try_from(moment.max(0)).unwrap_or(u64::MAX)).min(self.now)
    }

    /// A moment as Unix time in nanoseconds; negative before the epoch.
    pub fn unix_nanos(&self, moment: Moment) -> i128 {
        i128::from(moment.0) + self.offset
    }

    /// A moment as Unix time in seconds, with a fraction as fine as a floating-point number can hold.
    #[expect(clippy::cast_precision_loss, reason = "fractions of a microsecond are of no interest")]
    pub fn unix_time(&self, moment: Moment) -> f64 {
        self.unix_nanos(moment) as f64 / 1e9
    }

    /// A moment as Unix time in whole seconds, rounded to the nearest.
    pub fn unix_seconds(&self, moment: Moment) -> u64 {
        let nanos = self.unix_nanos(moment) + i128::from(NANOS_PER_SECOND / 2);
        u64::try_from(nanos / i128::from(NANOS_PER_SECOND)).unwrap_or(0)
    }
}

/// A length of time as people write and read it: `60s`, `90m`, `1h`, `30d`, in the largest unit
/// that divides it. A single minute stays `60s`, as the configuration's reference writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HumanDuration(pub Duration);

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Seconds in the unit, the least number of seconds it is used for, and its letter.
        const UNITS: [(u64, u64, &str); 5] = [
            (604_800, 604_800, "w"),
            (86_400, 86_400, "d"),
            (3_600, 3_600, "h"),
            (60, 120, "m"),
            (1, 0, "s"),
        ];
        if self.0.subsec_nanos() != 0 {
            return write!(f, "{}", humantime::format_duration(self.0));
        }
        let seconds = self.0.as_secs();
        let exact = |(unit, least, _): &(u64, u64, &str)| {
            seconds >= *least && seconds.is_multiple_of(*unit)
        };
        let (unit, _, letter) = UNITS.into_iter().find(exact).unwrap_or((1, 0, "s"));
        write!(f, "{}{letter}", seconds / unit)
    }
}

fn nanos(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let fraction = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(NANOS_PER_SECOND).saturating_add(fraction)
}

fn nanos_of(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capture_time_is_never_ahead_of_now() {
        let clock = WallClock { now: Moment(5_000), offset: 1_000_000 };
        assert_eq!(clock.moment_of(1_004_000), Moment(4_000));
        // The wall clock was set back by an hour after this packet was stamped.
        assert_eq!(clock.moment_of(3_600_000_000_000), Moment(5_000));
        // ... or forward, so that the packet seems to come from before the boot.
        assert_eq!(clock.moment_of(7), Moment(0));
    }

    #[test]
    fn unix_seconds_round_to_the_nearest() {
        let clock = WallClock { now: Moment(0), offset: 100 * 1_000_000_000 };
        assert_eq!(clock.unix_seconds(Moment(499_999_999)), 100);
        assert_eq!(clock.unix_seconds(Moment(500_000_000)), 101);
    }

    #[test]
    fn durations_read_as_they_are_written() {
        for text in ["0s", "1s", "60s", "90s", "2m", "90m", "1h", "4h", "1d", "30d", "1w", "2w"] {
            let duration = humantime::parse_duration(text).unwrap();
            assert_eq!(HumanDuration(duration).to_string(), text);
        }
        assert_eq!(HumanDuration(Duration::from_millis(1500)).to_string(), "1s 500ms");
    }
}
