//! The progress of long work: one line on a terminal, which is cleared when the work is done.
//!
//! Owns that line, on standard error. Must show nothing if standard error is not a terminal.

use std::io::{IsTerminal, Write, stderr};
use std::time::Duration;

use crate::types::clock::Moment;

/// The minimum time between two updates.
const INTERVAL: Duration = Duration::from_millis(100);

/// The width of a terminal that does not report one.
const USUAL_WIDTH: usize = 80;

/// Moves to the start of the line and erases it (ECMA-48, EL).
const CLEAR: &str = "\r\x1b[K";

/// The progress line. Dropping it clears the line.
pub struct Progress {
    /// When to update the line next. None: never.
    next: Option<Moment>,
    is_shown: bool,
}

impl Progress {
    /// Shows nothing for work that takes less than `patience`.
    pub fn after(patience: Duration) -> Self {
        let is_dumb = std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
        let wanted = stderr().is_terminal() && !is_dumb;
        Self { next: wanted.then(|| Moment::now() + patience), is_shown: false }
    }

    /// Updates the line, if it is time to.
    pub fn show(&mut self, text: impl FnOnce() -> String) {
        let now = Moment::now();
        if self.next.is_none_or(|next| now < next) {
            return;
        }
        self.next = Some(now + INTERVAL);
        self.is_shown = true;
        // A line that wraps could not be cleared.
        let columns = rustix::termios::tcgetwinsize(stderr()).map_or(0, |size| size.ws_col);
        let width = match usize::from(columns) {
            0 => USUAL_WIDTH,
            columns => columns,
        };
        let line: String = text().chars().take(width - 1).collect();
        write(&format!("{CLEAR}{line}"));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_shown {
            write(CLEAR);
        }
    }
}

fn write(text: &str) {
    // The progress is optional: ignore a closed terminal.
    let mut terminal = stderr().lock();
    let _ = terminal.write_all(text.as_bytes()).and_then(|()| terminal.flush());
}
