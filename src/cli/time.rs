//! Times and durations as text.
//!
//! On a terminal, times are in the user's time zone; in a pipe, they are in UTC (RFC 3339).

use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use crate::cli::output::on_terminal;
use crate::types::{HumanDuration, WallClock};

/// Returns the wall clock time in Unix seconds.
pub fn now() -> u64 {
    let clock = WallClock::read();
    clock.unix_seconds(clock.now())
}

/// Returns date and time.
pub fn absolute(unix_seconds: u64) -> String {
    if on_terminal() { local(unix_seconds, "%Y-%m-%d %H:%M:%S") } else { utc(unix_seconds) }
}

/// Returns the time of day; in a pipe, with its date.
pub fn time_of_day(unix_seconds: u64) -> String {
    if on_terminal() { local(unix_seconds, "%H:%M:%S") } else { utc(unix_seconds) }
}

/// Returns the time of day, with its date if that is not today.
pub fn on_its_day(unix_seconds: u64, now: u64) -> String {
    let day = |time| local(time, "%Y-%m-%d");
    if on_terminal() && day(unix_seconds) != day(now) {
        return absolute(unix_seconds);
    }
    time_of_day(unix_seconds)
}

/// Returns the time of day in milliseconds; in a pipe, with its date and in microseconds.
pub fn exact(unix_seconds: f64) -> String {
    let since_epoch = Duration::try_from_secs_f64(unix_seconds).unwrap_or_default();
    if on_terminal() {
        let millis = since_epoch.subsec_millis();
        return format!("{}.{millis:03}", local(since_epoch.as_secs(), "%H:%M:%S"));
    }
    utc_micros(since_epoch)
}

/// Returns a time in UTC in microseconds.
pub fn utc_micros(since_epoch: Duration) -> String {
    format!("{:.6}", timestamp(since_epoch))
}

fn local(unix_seconds: u64, format: &str) -> String {
    let time = timestamp(Duration::from_secs(unix_seconds));
    time.to_zoned_datetime(TimeZone::system()).strftime(format).to_string()
}

fn utc(unix_seconds: u64) -> String {
    timestamp(Duration::from_secs(unix_seconds)).to_string()
}

/// Returns the nearest time that has a date: the last one is in the year 9999.
fn timestamp(since_epoch: Duration) -> Timestamp {
    let time = SignedDuration::try_from(since_epoch).and_then(Timestamp::from_duration);
    time.unwrap_or(Timestamp::MAX)
}

pub fn ago(time: u64, now: u64) -> String {
    format!("{} ago", roughly(now.saturating_sub(time)))
}

pub fn ahead(time: u64, now: u64) -> String {
    format!("in {}", roughly(time.saturating_sub(now)))
}

/// Returns a duration in its two largest units.
pub fn roughly(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m {}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h {minutes}m"),
        (days, hours, _) => format!("{days}d {hours}h"),
    }
}

/// Returns a duration, with a fraction while that matters.
pub fn short(span: Duration) -> String {
    match span.as_secs() {
        0 => format!("{:.1} ms", span.as_secs_f64() * 1e3),
        1..60 => format!("{:.1} s", span.as_secs_f64()),
        seconds => HumanDuration(Duration::from_secs(seconds)).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_durations_are_readable() {
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (61, "1m 1s"), (3600, "1h 0m"), (90_061, "1d 1h")]
        {
            assert_eq!(roughly(seconds), text);
        }
        assert_eq!(short(Duration::from_millis(12)), "12.0 ms");
        assert_eq!(short(Duration::from_millis(2340)), "2.3 s");
        assert_eq!(short(Duration::from_secs(180)), "3m");
        assert_eq!(utc(1_700_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(utc_micros(Duration::from_millis(1500)), "1970-01-01T00:00:01.500000Z");
        assert!(utc(u64::MAX).starts_with("9999-12-"));
        assert_eq!(local(u64::MAX, "%Y"), "9999");
    }
}
