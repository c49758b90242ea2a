//! `tcptracker stats`.

use std::collections::{BTreeMap, BTreeSet};

use crate::cli::CliError;
use crate::cli::arguments::Select;
use crate::cli::client::{Purpose, ask_each, instances};
use crate::cli::output::{on_terminal, print, print_json, width};
use crate::cli::table::Table;

type Counters = BTreeMap<String, u64>;

pub fn run(select: &Select) -> Result<(), CliError> {
    let answers = zbus::block_on(async {
        let instances = instances(select.interface.as_ref(), Purpose::Look).await?;
        Ok::<_, CliError>(ask_each(&instances, async |instance| instance.stats().await).await)
    })?;
    let counted: BTreeMap<String, Counters> = answers
        .answered
        .into_iter()
        .map(|(interface, counters)| (interface.to_string(), counters.into_iter().collect()))
        .collect();
    if select.json {
        print_json(&counted)?;
    } else {
        print_tables(&counted.iter().collect::<Vec<_>>())?;
    }
    CliError::of_all(answers.failures, answers.asked)
}

/// Prints the instances side by side, as many as fit, and the others below.
fn print_tables(counted: &[(&String, &Counters)]) -> Result<(), CliError> {
    let mut rest = counted;
    while !rest.is_empty() {
        let fits = |count: &usize| table(&rest[..*count]).natural_width() <= width();
        let count = if on_terminal() {
            (1..=rest.len()).take_while(fits).last().unwrap_or(1)
        } else {
            rest.len()
        };
        if rest.len() < counted.len() {
            print("\n")?;
        }
        table(&rest[..count]).print()?;
        rest = &rest[count..];
    }
    Ok(())
}

fn table(counted: &[(&String, &Counters)]) -> Table {
    let heading = std::iter::once("COUNTER").chain(counted.iter().map(|(name, _)| name.as_str()));
    let mut table = Table::new(heading).of_numbers();
    if counted.len() > 1 && !on_terminal() {
        // Piped tables have no heading, and columns of several instances need one.
        let interfaces = counted.iter().map(|(interface, _)| (*interface).clone());
        table.row(std::iter::once("interface".to_owned()).chain(interfaces).collect());
    }
    let names: BTreeSet<&String> =
        counted.iter().flat_map(|(_, counters)| counters.keys()).collect();
    for name in names {
        let values = counted.iter().map(|(_, counters)| {
            counters.get(name).map_or_else(|| "-".to_owned(), ToString::to_string)
        });
        table.row(std::iter::once(name.clone()).chain(values).collect());
    }
    table
}
