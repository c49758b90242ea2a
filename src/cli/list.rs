//! `tcptracker list`

use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::CliError;
use super::client::{Block, instances};
use super::output::{Table, on_terminal, print, print_json};
use crate::clock::WallClock;
use crate::interface::InterfaceName;

/// A block, as a program reads it. The keys stay as they are.
#[derive(Serialize)]
struct Row {
    interface: String,
    address: String,
    /// Unix seconds.
    since: u64,
    /// Unix seconds; null: until unblocked.
    until: Option<u64>,
    /// Zero if none.
    offences: u32,
    reason: String,
}

pub(super) fn run(only: Option<&InterfaceName>, json: bool) -> Result<(), CliError> {
    let (several, rows) = zbus::block_on(async {
        let instances = instances(only).await?;
        let mut rows = Vec::new();
        for instance in &instances {
            let blocks = instance.list().await?;
            rows.extend(blocks.into_iter().map(|block| row_of(&instance.interface, block)));
        }
        Ok::<_, CliError>((instances.len() > 1, rows))
    })?;
    if json {
        return print_json(&rows);
    }
    if rows.is_empty() && on_terminal() {
        return print("nothing is blocked\n");
    }
    let mut heading = vec!["ADDRESS", "SINCE", "UNTIL", "OFFENCE", "REASON"];
    if several {
        heading.insert(0, "INTERFACE");
    }
    let now = WallClock::read();
    let now = now.unix_seconds(now.now());
    let mut table = Table::new(heading);
    for row in rows {
        let offence = match row.offences {
            0 => "-".to_owned(),
            count => count.to_string(),
        };
        let mut cells =
            vec![row.address, since(row.since, now), until(row.until, now), offence, row.reason];
        if several {
            cells.insert(0, row.interface);
        }
        table.row(cells);
    }
    table.print()
}

fn row_of(interface: &InterfaceName, block: Block) -> Row {
    let (address, since, until, offences, reason) = block;
    let until = (until > 0).then_some(until);
    Row { interface: interface.to_string(), address, since, until, offences, reason }
}

/// Relative for a person, absolute for a program.
fn since(time: u64, now: u64) -> String {
    if on_terminal() {
        format!("{} ago", roughly(now.saturating_sub(time)))
    } else {
        absolute(time)
    }
}

fn until(time: Option<u64>, now: u64) -> String {
    match time {
        None => "unblocked".to_owned(),
        Some(time) if on_terminal() => format!("in {}", roughly(time.saturating_sub(now))),
        Some(time) => absolute(time),
    }
}

/// UTC, RFC 3339.
fn absolute(unix_seconds: u64) -> String {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(unix_seconds));
    // The year 9999 is the last that can be written.
    time.filter(|_| unix_seconds < 253_402_300_800).map_or_else(
        || unix_seconds.to_string(),
        |time| humantime::format_rfc3339_seconds(time).to_string(),
    )
}

/// The two largest units: as exact as anybody wants it in a table.
fn roughly(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m {}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h {minutes}m"),
        (days, hours, _) => format!("{days}d {hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_well() {
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (61, "1m 1s"), (3600, "1h 0m"), (90_061, "1d 1h")]
        {
            assert_eq!(roughly(seconds), text);
        }
        assert_eq!(absolute(1_700_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(absolute(u64::MAX), u64::MAX.to_string());
    }
}
