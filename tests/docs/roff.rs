//! Text in the format of man pages (man(7)).

/// The maximum length of a text line.
const LINE: usize = 78;

/// Escapes text so that roff interprets nothing in it.
pub(crate) fn plain(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '\\' => escaped.push_str("\\(rs"),
            '-' => escaped.push_str("\\-"),
            '\'' => escaped.push_str("\\(aq"),
            '`' => escaped.push_str("\\(ga"),
            '^' => escaped.push_str("\\(ha"),
            '~' => escaped.push_str("\\(ti"),
            _ => escaped.push(character),
        }
    }
    if escaped.starts_with('.') { format!("\\&{escaped}") } else { escaped }
}

pub(crate) fn bold(text: &str) -> String {
    format!("\\fB{}\\fR", plain(text))
}

pub(crate) fn italic(text: &str) -> String {
    format!("\\fI{}\\fR", plain(text))
}

/// Escapes text and sets the parts between backticks in bold.
pub(crate) fn marked(text: &str) -> String {
    let typed = text.split('`').enumerate();
    typed.map(|(at, part)| if at % 2 == 1 { bold(part) } else { plain(part) }).collect()
}

/// Capitalises the first letter.
pub(crate) fn capital(text: &str) -> String {
    let mut rest = text.chars();
    rest.next().map(|first| first.to_uppercase().chain(rest).collect()).unwrap_or_default()
}

/// The title line of a page.
pub(crate) fn title(name: &str, section: u8, about: &str) -> String {
    // Update the date when the content changes visibly.
    format!(
        ".\\\" Generated from the source code: make docs\n\
         .TH {} {section} 2026-11-25 \"tcptracker {}\" \"{about}\"\n",
        plain(name),
        tcptracker::cli::command().get_version().unwrap_or_default(),
    )
}

/// Wraps long text lines, as `mandoc -Tlint` requires.
pub(crate) fn broken(page: &str) -> String {
    let mut text = String::new();
    let mut is_example = false;
    for line in page.lines() {
        match line {
            ".EX" => is_example = true,
            ".EE" => is_example = false,
            _ => {}
        }
        let mut length = 0;
        for (at, word) in line.split(' ').enumerate() {
            // Do not wrap examples: readers copy them.
            let is_text = !line.starts_with('.') && !is_example;
            let begins_a_line = is_text && at > 0 && length + 1 + word.len() > LINE;
            if begins_a_line {
                text.push('\n');
                // roff would take a leading dot for a request.
                text.push_str(if word.starts_with('.') { "\\&" } else { "" });
                length = 0;
            } else if at > 0 {
                text.push(' ');
                length += 1;
            }
            text.push_str(word);
            length += word.len();
        }
        text.push('\n');
    }
    text
}
