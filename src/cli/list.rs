//! `tcptracker list`.

use serde::Serialize;

use crate::cli::CliError;
use crate::cli::arguments::Select;
use crate::cli::client::{Block, Instance, Purpose, ask};
use crate::cli::output::{on_terminal, print, print_json, width};
use crate::cli::table::Table;
use crate::cli::time::{absolute, ago, ahead, now};
use crate::types::IfName;

/// A block in the JSON output. Its keys are stable.
#[derive(Serialize)]
struct Row {
    interface: String,
    address: String,
    /// Unix seconds.
    since: u64,
    /// Unix seconds; null: until unblocked.
    until: Option<u64>,
    /// 0 for a manual block.
    offences: u32,
    reason: String,
}

pub fn run(select: &Select) -> Result<(), CliError> {
    let answers = ask(select.interface.as_ref(), Purpose::Look, Instance::list)?;
    let rows: Vec<Row> = answers
        .answered
        .into_iter()
        .flat_map(|(interface, blocks)| {
            blocks.into_iter().map(move |block| row_of(&interface, block))
        })
        .collect();
    if select.json {
        print_json(&rows)?;
    } else if rows.is_empty() && on_terminal() && answers.failures.is_empty() {
        print("nothing is blocked\n")?;
    } else {
        table(&rows, answers.asked > 1).print()?;
    }
    CliError::of_all(answers.failures, answers.asked)
}

fn row_of(interface: &IfName, block: Block) -> Row {
    let (address, since, until, offences, reason) = block;
    let until = (until > 0).then_some(until);
    Row { interface: interface.to_string(), address, since, until, offences, reason }
}

/// On a terminal, times are relative, with the absolute times added if the terminal is wide enough.
fn table(rows: &[Row], several: bool) -> Table {
    if !on_terminal() {
        return table_with(rows, several, |time, _| absolute(time));
    }
    let wide =
        table_with(rows, several, |time, relative| format!("{} ({relative})", absolute(time)));
    if wide.natural_width() <= width() {
        return wide;
    }
    table_with(rows, several, |_, relative| relative)
}

fn table_with(rows: &[Row], several: bool, show: impl Fn(u64, String) -> String) -> Table {
    let now = now();
    let interface = several.then_some("INTERFACE");
    let mut table =
        Table::new(interface.into_iter().chain(["ADDRESS", "SINCE", "UNTIL", "OFFENCE", "REASON"]));
    for row in rows {
        let offence = match row.offences {
            0 => "-".to_owned(),
            count => count.to_string(),
        };
        let since = show(row.since, ago(row.since, now));
        let until = row.until.map(|until| show(until, ahead(until, now)));
        let until = until.unwrap_or_else(|| "unblocked".to_owned());
        let cells = [row.address.clone(), since, until, offence, row.reason.clone()];
        let interface = several.then(|| row.interface.clone());
        table.row(interface.into_iter().chain(cells).collect());
    }
    table
}
