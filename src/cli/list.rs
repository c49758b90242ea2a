//! `tcptracker list`.

use serde::Serialize;

use crate::cli::CliError;
use crate::cli::arguments::Select;
use crate::cli::client::{Block, Purpose, ask_each, instances};
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
    let answers = zbus::block_on(async {
        let instances = instances(select.interface.as_ref(), Purpose::Look).await?;
        Ok::<_, CliError>(ask_each(&instances, async |instance| instance.list().await).await)
    })?;
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
    let now = now();
    let both = |time: u64, relative: String| format!("{} ({relative})", absolute(time));
    if !on_terminal() {
        return table_with(rows, several, absolute, absolute);
    }
    let wide = table_with(
        rows,
        several,
        |since| both(since, ago(since, now)),
        |until| both(until, ahead(until, now)),
    );
    if wide.natural_width() <= width() {
        return wide;
    }
    table_with(rows, several, |since| ago(since, now), |until| ahead(until, now))
}

fn table_with(
    rows: &[Row],
    several: bool,
    show_since: impl Fn(u64) -> String,
    show_until: impl Fn(u64) -> String,
) -> Table {
    let mut heading = vec!["ADDRESS", "SINCE", "UNTIL", "OFFENCE", "REASON"];
    if several {
        heading.insert(0, "INTERFACE");
    }
    let mut table = Table::new(heading);
    for row in rows {
        let offence = match row.offences {
            0 => "-".to_owned(),
            count => count.to_string(),
        };
        let until = row.until.map_or_else(|| "unblocked".to_owned(), &show_until);
        let mut cells =
            vec![row.address.clone(), show_since(row.since), until, offence, row.reason.clone()];
        if several {
            cells.insert(0, row.interface.clone());
        }
        table.row(cells);
    }
    table
}
