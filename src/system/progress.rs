//! A progress line at the bottom of a terminal, which disappears when the work is done.
//!
//! Owns that line, on standard error. If that is not a terminal, nothing is shown.

use std::io::{IsTerminal, Write, stderr};
use std::time::Duration;

use crate::types::Moment;

/// The shortest time between two updates: faster ones cannot be read.
const PACE: Duration = Duration::from_millis(100);

/// For a terminal that does not report its width.
const USUAL_WIDTH: usize = 80;

/// Moves to the beginning of the line and clears it (ECMA-48, EL).
const CLEAR: &str = "\r\x1b[K";

/// The line. Dropping it clears the line.
pub struct Progress {
    /// When the next update is due; none: never.
    next: Option<Moment>,
    is_shown: bool,
}

impl Progress {
    /// Makes a line for work that is shown if it takes longer than `patience`.
    pub fn after(patience: Duration) -> Self {
        let is_dumb = std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
        let wanted = stderr().is_terminal() && !is_dumb;
        Self { next: wanted.then(|| Moment::now() + patience), is_shown: false }
    }

    /// Updates the line if an update is due.
    pub fn show(&mut self, how_far: impl FnOnce() -> String) {
        let now = Moment::now();
        if self.next.is_none_or(|next| now < next) {
            return;
        }
        self.next = Some(now + PACE);
        self.is_shown = true;
        // A line that wraps could not be cleared.
        let columns = rustix::termios::tcgetwinsize(stderr()).map_or(0, |size| size.ws_col);
        let width = match usize::from(columns) {
            0 => USUAL_WIDTH,
            columns => columns,
        };
        let line: String = how_far().chars().take(width - 1).collect();
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
    // A failure only means that the line is not shown.
    let mut terminal = stderr().lock();
    let _ = terminal.write_all(text.as_bytes()).and_then(|()| terminal.flush());
}
