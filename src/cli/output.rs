//! Printing: a table for a terminal, plain text for a program.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write, stderr, stdout};

use serde::Serialize;

use super::CliError;

/// Rows under a heading. On a terminal the columns are aligned; elsewhere they are separated by a
/// tab each, without the heading.
pub(super) struct Table {
    heading: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new<T: Into<String>>(heading: impl IntoIterator<Item = T>) -> Self {
        Self { heading: heading.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    pub(super) fn row(&mut self, row: Vec<String>) {
        self.rows.push(row);
    }

    pub(super) fn print(&self) -> Result<(), CliError> {
        print(&if on_terminal() { self.aligned() } else { self.plain() })
    }

    fn aligned(&self) -> String {
        let width = |column: usize| {
            let cells = std::iter::once(&self.heading).chain(&self.rows);
            cells.filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
        };
        let widths: Vec<usize> =
            (0..self.heading.len()).map(|column| width(column).unwrap_or(0)).collect();
        let mut text = String::new();
        for row in std::iter::once(&self.heading).chain(&self.rows) {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                // Writing to a string cannot fail.
                let _ = write!(line, "{cell:<width$}  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    fn plain(&self) -> String {
        self.rows.iter().map(|row| row.join("\t") + "\n").collect()
    }
}

/// Whether a person reads the output.
pub(super) fn on_terminal() -> bool {
    stdout().is_terminal()
}

/// Prints text as it is.
pub(super) fn print(text: &str) -> Result<(), CliError> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(CliError::Output)
}

/// Says what went wrong, a line each. Where nobody hears it, it is not said.
pub(super) fn say(error: &dyn std::fmt::Display) {
    for line in error.to_string().lines() {
        let _ = writeln!(stderr(), "tcptracker: {line}");
    }
}

/// Prints a value as JSON on a line of its own.
pub(super) fn print_json_line(value: &impl Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string(value).map_err(|e| CliError::Output(e.into()))?;
    print(&(text + "\n"))
}

/// Prints a value as JSON.
pub(super) fn print_json(value: &impl Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value).map_err(|e| CliError::Output(e.into()))?;
    print(&(text + "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_for_people_and_separated_for_programs() {
        let mut table = Table::new(["ADDRESS", "REASON"]);
        table.row(vec!["192.0.2.1".to_owned(), "by hand".to_owned()]);
        table.row(vec!["10.0.0.0/8".to_owned(), String::new()]);
        assert_eq!(table.aligned(), "ADDRESS     REASON\n192.0.2.1   by hand\n10.0.0.0/8\n");
        assert_eq!(table.plain(), "192.0.2.1\tby hand\n10.0.0.0/8\t\n");
    }
}
