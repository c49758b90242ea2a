//! Printing: text, colours, JSON, and errors.
//!
//! Must be the only place that writes to the terminal, apart from the progress line.

use std::fmt::Display;
use std::io::{IsTerminal, Write, stderr, stdout};

use serde::Serialize;

use crate::cli::CliError;
use crate::types::{is_unprintable, printable, printable_lines};

/// The width of a terminal that does not report one.
const USUAL_WIDTH: usize = 80;

pub fn on_terminal() -> bool {
    stdout().is_terminal()
}

/// Returns how many characters fit on a line of the terminal.
pub fn width() -> usize {
    let reported =
        rustix::termios::tcgetwinsize(stdout()).ok().map(|size| usize::from(size.ws_col));
    reported.filter(|columns| *columns > 0).unwrap_or(USUAL_WIDTH)
}

/// A text style, with its code (ECMA-48, SGR).
#[derive(Clone, Copy)]
pub enum Style {
    Bold = 1,
    Dim = 2,
    Red = 31,
    Green = 32,
    Yellow = 33,
}

/// Styles text on a terminal, unless the terminal is dumb or `NO_COLOR` is set (no-color.org).
pub fn styled(style: Style, text: &str) -> String {
    if !on_terminal() || !colours_wanted() || text.is_empty() {
        return text.to_owned();
    }
    format!("\x1b[{}m{text}\x1b[0m", style as u8)
}

fn colours_wanted() -> bool {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    set("NO_COLOR").is_none() && set("TERM").is_none_or(|terminal| terminal != "dumb")
}

/// Breaks text between words into lines of at most `width` characters. A longer word gets its own line.
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

/// Prints plain text, which may come from outside.
pub fn print(text: &str) -> Result<(), CliError> {
    print_styled(&printable_lines(text))
}

/// Prints text with styles unchanged. What comes from outside must be escaped already.
pub fn print_styled(text: &str) -> Result<(), CliError> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(CliError::Output)
}

/// Prints a message to standard error, with the program's name on each line.
pub fn print_error(message: &dyn Display) {
    print_error_to(&mut stderr(), message);
}

/// Prints a message like [`print_error`] to another place.
pub fn print_error_to(place: &mut impl Write, message: &dyn Display) {
    for line in message.to_string().lines() {
        // If standard error is closed, there is nowhere to report it.
        let _ = place.write_all(format!("tcptracker: {}\n", printable(line)).as_bytes());
    }
}

/// Prints a value as JSON on one line.
pub fn print_json_line(value: &impl Serialize) -> Result<(), CliError> {
    print_json_text(serde_json::to_string(value))
}

/// Prints a value as indented JSON.
pub fn print_json(value: &impl Serialize) -> Result<(), CliError> {
    print_json_text(serde_json::to_string_pretty(value))
}

fn print_json_text(text: serde_json::Result<String>) -> Result<(), CliError> {
    let text = text.map_err(|error| CliError::Output(error.into()))?;
    print(&(json_safe(&text) + "\n"))
}

/// Escapes the characters that [`printable`] escapes, as JSON does it. Only strings can contain them.
fn json_safe(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\n' || !is_unprintable(c) {
            escaped.push(c);
        } else {
            escaped.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    escaped
}

/// Returns a number and its noun: "1 packet", "2 packets".
pub fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_broken_between_words() {
        assert_eq!(wrapped("ports 1, 22 and 333", 9), ["ports 1,", "22 and", "333"]);
        assert_eq!(wrapped("no-room-at-all here", 5), ["no-room-at-all", "here"]);
        assert_eq!(wrapped("", 5), [""]);
    }
    #[test]
    fn escaped_json_has_the_same_meaning() {
        let values = ["naïve\u{202e}", "\u{9b}31m", "\u{e0041}"];
        let text = json_safe(&serde_json::to_string_pretty(&values).unwrap());
        assert!(!text.contains(|c: char| c != '\n' && is_unprintable(c)), "{text:?}");
        assert_eq!(serde_json::from_str::<Vec<String>>(&text).unwrap(), values);
    }
}
