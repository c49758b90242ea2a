//! Printing: colours where a person sees them, JSON where a program asks for it, and errors.

use std::fmt::Display;
use std::io::{IsTerminal, Write, stderr, stdout};

use serde::Serialize;

use crate::cli::CliError;

/// Where a terminal does not say how wide it is.
const USUAL_WIDTH: usize = 80;

/// Whether a person reads the output.
pub fn on_terminal() -> bool {
    stdout().is_terminal()
}

/// How many characters fit on a line of the terminal.
pub fn width() -> usize {
    let told = rustix::termios::tcgetwinsize(stdout()).ok().map(|size| usize::from(size.ws_col));
    told.filter(|columns| *columns > 0).unwrap_or(USUAL_WIDTH)
}

/// How text stands out (ECMA-48, SGR).
#[derive(Clone, Copy)]
pub enum Style {
    Bold,
    Dim,
    Red,
    Green,
    Yellow,
}

/// Text that stands out where colours are wanted: on a terminal, unless it is a dumb one or `NO_COLOR`
/// is set (no-color.org).
pub fn styled(style: Style, text: &str) -> String {
    if !on_terminal() || !colours_wanted() || text.is_empty() {
        return text.to_owned();
    }
    let code = match style {
        Style::Bold => 1,
        Style::Dim => 2,
        Style::Red => 31,
        Style::Green => 32,
        Style::Yellow => 33,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

fn colours_wanted() -> bool {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    set("NO_COLOR").is_none() && set("TERM").is_none_or(|terminal| terminal != "dumb")
}

/// Text in lines of at most so many characters, broken between words; a longer word stands alone.
pub fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last().map_or(0, |line| line.chars().count());
        if line > 0 && line + 1 + word.chars().count() > width {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            line.push_str(if line.is_empty() { "" } else { " " });
            line.push_str(word);
        }
    }
    lines
}

/// Prints text as it is.
pub fn print(text: &str) -> Result<(), CliError> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(CliError::Output)
}

/// Says something beside the output, a line each. Where nobody hears it, it is not said.
pub fn say(message: &dyn Display) {
    for line in message.to_string().lines() {
        let _ = writeln!(stderr(), "tcptracker: {line}");
    }
}

/// Prints a value as JSON on a line of its own.
pub fn print_json_line(value: &impl Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string(value).map_err(|e| CliError::Output(e.into()))?;
    print(&(text + "\n"))
}

/// Prints a value as JSON.
pub fn print_json(value: &impl Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value).map_err(|e| CliError::Output(e.into()))?;
    print(&(text + "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_between_words() {
        assert_eq!(wrapped("ports 1, 22 and 333", 9), ["ports 1,", "22 and", "333"]);
        assert_eq!(wrapped("no-room-at-all here", 5), ["no-room-at-all", "here"]);
        assert_eq!(wrapped("", 5), [""]);
    }
}
