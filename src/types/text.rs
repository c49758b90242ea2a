//! Foreign text made safe for terminals and logs.
//!
//! Owns the choice of characters that may not be printed as they are. A file, a D-Bus caller or
//! another program may supply the text: it must not move the cursor, hide a part of a line or begin
//! a new one.

use std::borrow::Cow;

/// The number of characters of foreign text that a message quotes.
const LONGEST_QUOTE: usize = 120;

/// Replaces control, format and line-separating characters by escapes such as `\n` or `\u{1b}`.
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, is_unprintable)
}

/// Returns text whose lines are printable, with tabs between columns.
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| !matches!(c, '\n' | '\t') && is_unprintable(c))
}

fn escaped(text: &str, is_wrong: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.chars().any(&is_wrong) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_wrong(c) {
            escaped.extend(c.escape_default());
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

/// Returns the beginning of a text, printable and short enough for a message.
pub fn quotable(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(LONGEST_QUOTE) {
        None => printable(text),
        Some((end, _)) => Cow::Owned(format!("{}...", printable(&text[..end]))),
    }
}

/// Tells whether a character may act on a terminal or hide text: it is a control character (category Cc),
/// a line or paragraph separator (Zl, Zp), a format character (Cf), or one that hides in the text before it
/// (tags and further variation selectors), according to UnicodeData 16.0.
pub fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
            | '\u{890}'..='\u{891}' | '\u{8e2}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visible_text_is_not_copied() {
        for text in ["", "detection.ports", "Größe «5» 漢字 é 👍", "a\\b \"quoted\""] {
            assert!(matches!(printable(text), Cow::Borrowed(same) if same == text), "{text}");
        }
    }

    #[test]
    fn characters_that_act_on_a_terminal_are_escaped() {
        assert_eq!(printable("a\x1b[31mred"), r"a\u{1b}[31mred");
        assert_eq!(printable("one\r\ntwo\tthree\0"), r"one\r\ntwo\tthree\u{0}");
        assert_eq!(printable_lines("a\tb\n\x1b\u{2028}"), "a\tb\n\\u{1b}\\u{2028}");
        assert_eq!(printable("\u{7f}\u{85}\u{9b}"), r"\u{7f}\u{85}\u{9b}");
    }

    #[test]
    fn characters_that_hide_or_reorder_text_are_escaped() {
        let text = "\u{202e}\u{2066}\u{200b}\u{feff}\u{2028}\u{2029}\u{ad}\u{e0041}\u{e0100}";
        let escaped = printable(text);
        assert!(escaped.is_ascii(), "{escaped}");
        assert!(escaped.starts_with(r"\u{202e}\u{2066}\u{200b}"), "{escaped}");
    }

    #[test]
    fn a_quote_is_cut_between_characters() {
        let long = "é".repeat(LONGEST_QUOTE);
        assert_eq!(quotable(&long), long);
        let longer = format!("{long}\u{1b}");
        assert_eq!(quotable(&longer), format!("{long}..."));
    }
}
