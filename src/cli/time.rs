//! Times and durations as text.
//!
//! On a terminal, times are in the user's time zone; in a pipe, they are in UTC (RFC 3339).

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::cli::output::on_terminal;
use crate::types::{HumanDuration, WallClock};

/// The end of the year 9999, the last that RFC 3339 can represent.
const LAST: u64 = 253_402_300_799;

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
    let time = SystemTime::UNIX_EPOCH.checked_add(since_epoch.min(Duration::from_secs(LAST)));
    time.map_or_else(String::new, |time| humantime::format_rfc3339_micros(time).to_string())
}

fn local(unix_seconds: u64, format: &str) -> String {
    let time = i64::try_from(unix_seconds).ok().and_then(|time| Timestamp::from_second(time).ok());
    time.map_or_else(
        || utc(unix_seconds),
        |time| time.to_zoned_datetime(TimeZone::system()).strftime(format).to_string(),
    )
}

fn utc(unix_seconds: u64) -> String {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(unix_seconds));
    time.filter(|_| unix_seconds <= LAST).map_or_else(
        || unix_seconds.to_string(),
        |time| humantime::format_rfc3339_seconds(time).to_string(),
    )
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
        assert_eq!(utc(u64::MAX), u64::MAX.to_string());
        assert_eq!(local(u64::MAX, "%H"), u64::MAX.to_string());
    }
}
