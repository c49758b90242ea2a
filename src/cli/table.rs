//! Tables: aligned on a terminal, tab-separated in a pipe.
//!
//! Owns the layout. Escapes every cell, because cells may hold text from outside.

use crate::cli::CliError;
use crate::cli::output::{Style, on_terminal, print_styled, styled, width, wrapped};
use crate::types::printable;

/// The space between two columns.
const GAP: usize = 2;

/// The minimum width of the last column, however narrow the terminal is.
const NARROWEST: usize = 16;

/// Rows under a heading. On a terminal, columns are aligned and the last one is wrapped. In a pipe,
/// columns are separated by tabs, without the heading.
pub struct Table {
    heading: Vec<String>,
    rows: Vec<Vec<String>>,
    numbers: bool,
}

impl Table {
    pub fn new<T: Into<String>>(heading: impl IntoIterator<Item = T>) -> Self {
        let heading = heading.into_iter().map(Into::into).collect();
        Self { heading, rows: Vec::new(), numbers: false }
    }

    /// Aligns all columns but the first to the right.
    #[must_use]
    pub fn of_numbers(mut self) -> Self {
        self.numbers = true;
        self
    }

    pub fn row(&mut self, row: Vec<String>) {
        self.rows.push(row.into_iter().map(|cell| printable(&cell).into_owned()).collect());
    }

    pub fn print(&self) -> Result<(), CliError> {
        print_styled(&if on_terminal() { self.aligned(width()) } else { self.plain() })
    }

    /// Returns the width without wrapping.
    pub fn natural_width(&self) -> usize {
        let widths = self.widths();
        widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1)
    }

    fn widths(&self) -> Vec<usize> {
        let width = |column: usize| {
            let cells = std::iter::once(&self.heading).chain(&self.rows);
            cells.filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
        };
        (0..self.heading.len()).map(|column| width(column).unwrap_or(0)).collect()
    }

    fn aligned(&self, width: usize) -> String {
        let mut widths = self.widths();
        if let Some((last, others)) = widths.split_last_mut() {
            let before: usize = others.iter().map(|width| width + GAP).sum();
            *last = (*last).min(width.saturating_sub(before).max(NARROWEST));
        }
        let mut text = styled(Style::Bold, &self.line(&self.heading, &widths)) + "\n";
        for row in &self.rows {
            let Some((last, others)) = row.split_last() else { continue };
            let room = widths.last().copied().unwrap_or(NARROWEST);
            for (at, part) in wrapped(last, room).into_iter().enumerate() {
                let mut cells: Vec<String> = match at {
                    0 => others.to_vec(),
                    _ => vec![String::new(); others.len()],
                };
                cells.push(part);
                text.push_str(&self.line(&cells, &widths));
                text.push('\n');
            }
        }
        text
    }

    fn line(&self, cells: &[String], widths: &[usize]) -> String {
        let padded: Vec<String> = cells
            .iter()
            .zip(widths)
            .enumerate()
            .map(|(column, (cell, width))| {
                if self.numbers && column > 0 {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                }
            })
            .collect();
        padded.join(&" ".repeat(GAP)).trim_end().to_owned()
    }

    fn plain(&self) -> String {
        self.rows.iter().map(|row| row.join("\t") + "\n").collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(["ADDRESS", "REASON"]);
        table.row(vec!["192.0.2.1".to_owned(), "manual, because of the mail log".to_owned()]);
        table.row(vec!["10.0.0.0/8".to_owned(), String::new()]);
        table
    }

    #[test]
    fn columns_are_aligned_or_separated_by_tabs() {
        assert_eq!(
            table().aligned(80),
            "ADDRESS     REASON\n192.0.2.1   manual, because of the mail log\n10.0.0.0/8\n"
        );
        assert_eq!(table().plain(), "192.0.2.1\tmanual, because of the mail log\n10.0.0.0/8\t\n");
        assert_eq!(table().natural_width(), 43);
    }

    #[test]
    fn last_column_is_wrapped() {
        assert_eq!(
            table().aligned(30),
            "ADDRESS     REASON\n192.0.2.1   manual, because of\n            the mail log\n10.0.0.0/8\n"
        );
    }

    #[test]
    fn cells_are_escaped() {
        let mut table = Table::new(["REASON"]);
        table.row(vec!["a\tb\x1b[31m\u{202e}".to_owned()]);
        assert_eq!(table.plain(), "a\\tb\\u{1b}[31m\\u{202e}\n");
        assert_eq!(table.aligned(80), "REASON\na\\tb\\u{1b}[31m\\u{202e}\n");
    }

    #[test]
    fn numbers_are_aligned_to_the_right() {
        let mut table = Table::new(["COUNTER", "eth0"]).of_numbers();
        table.row(vec!["blocks".to_owned(), "12345".to_owned()]);
        table.row(vec!["scans".to_owned(), "7".to_owned()]);
        assert_eq!(table.aligned(80), "COUNTER   eth0\nblocks   12345\nscans        7\n");
    }
}
