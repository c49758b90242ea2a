//! `tcptracker stats`.

use std::collections::{BTreeMap, BTreeSet};

use crate::cli::CliError;
use crate::cli::arguments::Select;
use crate::cli::client::{Instance, Purpose, ask};
use crate::cli::output::{on_terminal, print_json};
use crate::cli::table::Table;

type Counters = BTreeMap<String, u64>;

pub fn run(select: &Select) -> Result<(), CliError> {
    let answers = ask(select.interface.as_ref(), Purpose::Look, Instance::stats)?;
    let counted: BTreeMap<String, Counters> = answers
        .answered
        .into_iter()
        .map(|(interface, counters)| (interface.to_string(), counters.into_iter().collect()))
        .collect();
    if select.json {
        print_json(&counted)?;
    } else {
        table(&counted).print()?;
    }
    CliError::of_all(answers.failures, answers.asked)
}

/// Returns a column for each instance.
fn table(counted: &BTreeMap<String, Counters>) -> Table {
    let heading = std::iter::once("COUNTER").chain(counted.keys().map(String::as_str));
    let mut table = Table::new(heading).of_numbers();
    if counted.len() > 1 && !on_terminal() {
        // Piped tables have no heading, and columns of several instances need one.
        let interfaces = counted.keys().cloned();
        table.row(std::iter::once("interface".to_owned()).chain(interfaces).collect());
    }
    let names: BTreeSet<&String> = counted.values().flat_map(Counters::keys).collect();
    for name in names {
        let values = counted
            .values()
            .map(|counters| counters.get(name).map_or_else(|| "-".to_owned(), ToString::to_string));
        table.row(std::iter::once(name.clone()).chain(values).collect());
    }
    table
}
