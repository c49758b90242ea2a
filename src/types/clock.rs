//! Moments, and the clocks of the system.
//!
//! Owns the only calls to those clocks. Everything that decides takes a [`Moment`] as an argument, so that
//! it can be tested and replayed.

use std::fmt;
use std::ops::Add;
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, Timespec, clock_gettime};
use serde::{Deserialize, Serialize};

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// The boot on the live timeline: 100 years after its start, so that events before the boot have a moment,
/// too.
const BOOT: Duration = Duration::from_secs(3_155_760_000);

/// A point on a timeline, in nanoseconds. The live timeline follows `CLOCK_BOOTTIME`, which no step of the
/// wall clock moves and which includes the time that a machine sleeps. In a replay it is the time of the
/// capture. Moments of different timelines, or of different boots, must not be compared.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Moment(u64);

impl Moment {
    /// The end of every timeline.
    pub const LAST: Self = Self(u64::MAX);

    /// Returns the moment `nanos` nanoseconds after the start of the timeline.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Returns the nanoseconds since the start of the timeline.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Returns the current moment of the live timeline.
    pub fn now() -> Self {
        Self(nanos(clock_gettime(ClockId::Boottime))) + BOOT
    }

    /// Returns whether at least `span` has passed since `earlier`. Use it per packet: a [`Duration`] between
    /// two moments costs divisions.
    pub const fn is_past(self, earlier: Self, span: Duration) -> bool {
        self.0.saturating_sub(earlier.0) as u128 >= span.as_nanos()
    }

    /// Returns an earlier moment, but not one before the start of the timeline.
    #[must_use]
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(nanos_of(duration)))
    }

    /// Returns the time since `earlier`, or zero if that is later.
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

/// Returns the processor time that the calling thread has used.
pub fn thread_time() -> Duration {
    Duration::from_nanos(nanos(clock_gettime(ClockId::ThreadCPUTime)))
}

/// A reading of the wall clock and the live timeline: it converts between the kernel's capture times, the
/// times that people read, and [`Moment`]. Take a new one for each batch of packets and each reply, so that
/// a step of the wall clock changes only what is displayed.
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
        // Through the C library, so that tests can replace the wall clock.
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = Moment::now();
        Self { now, offset: i128::from(nanos_of(wall)) - i128::from(now.0) }
    }

    /// Makes a reading for a test.
    #[cfg(test)]
    pub fn at(now: Moment, unix_seconds: u64) -> Self {
        let wall = i128::from(unix_seconds) * i128::from(NANOS_PER_SECOND);
        Self { now, offset: wall - i128::from(now.0) }
    }

    /// The moment of the reading.
    pub const fn now(&self) -> Moment {
        self.now
    }

    /// Converts nanoseconds since the Unix epoch. The result is never later than this reading: a time from
    /// before a step of the clock may be wrong by that step, but is never in the future.
    pub fn moment_of(&self, unix_nanos: u64) -> Moment {
        let moment = i128::from(unix_nanos) - self.offset;
        Moment(u64::try_from(moment.max(0)).unwrap_or(u64::MAX)).min(self.now)
    }

    /// Converts a moment to Unix time in nanoseconds, which is negative before the epoch.
    pub fn unix_nanos(&self, moment: Moment) -> i128 {
        i128::from(moment.0) + self.offset
    }

    /// Converts a moment to Unix time in seconds with a fraction.
    #[expect(clippy::cast_precision_loss, reason = "fractions of a microsecond are irrelevant")]
    pub fn unix_time(&self, moment: Moment) -> f64 {
        self.unix_nanos(moment) as f64 / 1e9
    }

    /// Converts a moment to Unix time in whole seconds, rounded to the nearest.
    pub fn unix_seconds(&self, moment: Moment) -> u64 {
        let nanos = self.unix_nanos(moment) + i128::from(NANOS_PER_SECOND / 2);
        u64::try_from(nanos / i128::from(NANOS_PER_SECOND)).unwrap_or(0)
    }
}

/// A duration as people write it: `60s`, `90m`, `1h`, `30d`, in the largest unit that divides it. One minute
/// is `60s`, as in the reference of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HumanDuration(pub Duration);

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Seconds per unit, the smallest number of seconds for which the unit is used, and its letter.
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
    fn capture_time_is_never_in_the_future() {
        let clock = WallClock { now: Moment(5_000), offset: 1_000_000 };
        assert_eq!(clock.moment_of(1_004_000), Moment(4_000));
        // The wall clock was set back by an hour after this packet was stamped.
        assert_eq!(clock.moment_of(3_600_000_000_000), Moment(5_000));
        // Or forward, so that the packet seems to come from before the boot.
        assert_eq!(clock.moment_of(7), Moment(0));
    }

    #[test]
    fn unix_seconds_round_to_the_nearest() {
        let clock = WallClock { now: Moment(0), offset: 100 * 1_000_000_000 };
        assert_eq!(clock.unix_seconds(Moment(499_999_999)), 100);
        assert_eq!(clock.unix_seconds(Moment(500_000_000)), 101);
    }

    #[test]
    fn durations_are_shown_as_they_are_written() {
        for text in ["0s", "1s", "60s", "90s", "2m", "90m", "1h", "4h", "1d", "30d", "1w", "2w"] {
            let duration = humantime::parse_duration(text).unwrap();
            assert_eq!(HumanDuration(duration).to_string(), text);
        }
        assert_eq!(HumanDuration(Duration::from_millis(1500)).to_string(), "1s 500ms");
    }
}
