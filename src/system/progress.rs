//! How far long work is: one line at the bottom of a terminal, gone when the work is done.
//!
//! Owns that line, on standard error. Where that is no terminal, nothing is shown.

use std::io::{IsTerminal, Write, stderr};
use std::time::Duration;

use crate::types::clock::Moment;

/// How often the line is another: more often than this nobody reads it.
const PACE: Duration = Duration::from_millis(100);

/// Where a terminal does not say how wide it is.
const USUAL_WIDTH: usize = 80;

/// To the line's beginning, and away with what stands there (ECMA-48, EL).
const CLEAR: &str = "\r\x1b[K";

/// The line. Dropped, it is gone.
pub struct Progress {
    /// When it is to be written next; none: never.
    next: Option<Moment>,
    is_shown: bool,
}

impl Progress {
    /// For work that is long if it takes longer than this.
    pub fn after(patience: Duration) -> Self {
        let is_dumb = std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
        let wanted = stderr().is_terminal() && !is_dumb;
        Self { next: wanted.then(|| Moment::now() + patience), is_shown: false }
    }

    /// Shows how far it is, if it is time to.
    pub fn show(&mut self, how_far: impl FnOnce() -> String) {
        let now = Moment::now();
        if self.next.is_none_or(|next| now < next) {
            return;
        }
        self.next = Some(now + PACE);
        self.is_shown = true;
        // A line that is broken could not be taken back.
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
    // Where nobody sees it, nothing is lost.
    let mut terminal = stderr().lock();
    let _ = terminal.write_all(text.as_bytes()).and_then(|()| terminal.flush());
}
