//! Printing: text, colours, JSON, and errors.
//!
//! Owns the escaping of text from outside. Must be the only place that writes to the terminal, apart
//! from the progress line.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{IsTerminal, Write, stderr, stdout};

use serde::Serialize;

use crate::cli::CliError;

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

/// A text style (ECMA-48, SGR).
#[derive(Clone, Copy)]
pub enum Style {
    Bold,
    Dim,
    Red,
    Green,
    Yellow,
}

/// Styles text on a terminal, unless the terminal is dumb or `NO_COLOR` is set (no-color.org).
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

/// Prints text unchanged.
pub fn print(text: &str) -> Result<(), CliError> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(CliError::Output)
}

/// Prints a message to standard error, with the program's name on each line.
pub fn print_error(message: &dyn Display) {
    for line in message.to_string().lines() {
        // If standard error is closed, there is nowhere to report it.
        let _ = writeln!(stderr(), "tcptracker: {}", safe(line));
    }
}

/// Replaces the characters that a terminal interprets or hides: file names, reasons and keys may come from
/// other users. The others, spaces included, stay.
pub fn safe(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let escaped = |c: char| -> String {
        if is_unsafe(c) { c.escape_default().collect() } else { c.to_string() }
    };
    Cow::Owned(text.chars().map(escaped).collect())
}

/// Tells whether a character is a control character (category Cc), a line or paragraph separator (Zl,
/// Zp) or a format character (Cf), according to UnicodeData 16.0.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
            | '\u{890}'..='\u{891}' | '\u{8e2}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0001}'
            | '\u{e0020}'..='\u{e007f}')
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

/// Escapes the same characters as [`safe`], as JSON does it. Only strings can contain them.
fn json_safe(text: &str) -> String {
    let escaped = |c: char| match c {
        c if c != '\n' && is_unsafe(c) => {
            c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect()
        }
        c => c.to_string(),
    };
    text.chars().map(escaped).collect()
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
    fn control_and_format_characters_are_escaped() {
        for (text, expected) in [
            ("ports 22, 80: naïve 猫", "ports 22, 80: naïve 猫"),
            ("a\x1b[31mb", "a\\u{1b}[31mb"),
            ("a\tb\nc\u{9b}d", "a\\tb\\nc\\u{9b}d"),
            // Line separator, right-to-left override, zero-width space, tag character, soft hyphen.
            (
                "\u{2028}\u{202e}\u{200b}\u{e0041}\u{ad}",
                "\\u{2028}\\u{202e}\\u{200b}\\u{e0041}\\u{ad}",
            ),
            ("", ""),
        ] {
            assert_eq!(safe(text), expected);
        }
    }

    #[test]
    fn escaped_json_has_the_same_meaning() {
        let values = ["naïve\u{202e}", "\u{9b}31m", "\u{e0041}"];
        let text = json_safe(&serde_json::to_string_pretty(&values).unwrap());
        assert!(!text.contains(|c: char| c != '\n' && is_unsafe(c)), "{text:?}");
        assert_eq!(serde_json::from_str::<Vec<String>>(&text).unwrap(), values);
    }
}
