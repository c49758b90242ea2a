//! One file: what it says as far as it is TOML, and what is wrong with its syntax.
//!
//! Owns the words for syntax errors, which the parser states in terms of its grammar. Never decides
//! whether a key exists or what it takes.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue, Error};

use crate::types::quotable;

/// Beginnings of the parser's messages about mistakes whose end it has found.
const LOCAL: [&str; 5] = [
    "duplicate key",
    "extra comma in array",
    "missing comma between array",
    "missing escaped value",
    "unexpected key or value",
];

/// Beginnings of the parser's messages about strings without an end, each with the quotes that are missing.
const QUOTES: [(&str, &str); 4] = [
    ("invalid basic string", "\""),
    ("invalid literal string", "'"),
    ("invalid multi-line basic string", r#"""""#),
    ("invalid multi-line literal string", "'''"),
];

/// What is wrong, and on which line.
#[derive(Clone, Debug)]
pub struct Problem {
    pub line: usize,
    pub what: String,
}

/// A parsed file. The parser goes on after an error, so that all errors can be reported at once.
pub struct Document<'a> {
    text: &'a str,
    table: Spanned<DeTable<'a>>,
    /// In the order of lines, one for each line.
    problems: Vec<Problem>,
    /// Where words within values are not TOML, such as a string without quotes.
    broken: Vec<usize>,
    last_reliable_line: Option<usize>,
}

impl<'a> Document<'a> {
    pub fn parse(text: &'a str) -> Self {
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut document = Self {
            text,
            table,
            problems: Vec::new(),
            broken: Vec::new(),
            last_reliable_line: None,
        };
        for error in &errors {
            let Some(problem) = document.explain(error) else {
                document.broken.push(start_of(error));
                continue;
            };
            if !is_local(error) {
                let earlier = document.last_reliable_line.unwrap_or(problem.line);
                document.last_reliable_line = Some(problem.line.min(earlier));
            }
            document.problems.push(problem);
        }
        document.problems.sort_by_key(|problem| problem.line);
        document.problems.dedup_by_key(|problem| problem.line);
        document
    }

    /// The syntax errors but those within single values.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The last line that the parser has read as its author meant it; none: all of them.
    pub fn last_reliable_line(&self) -> Option<usize> {
        self.last_reliable_line
    }

    /// The entries of the top level: sections, and keys that are outside of all sections.
    pub fn entries(&self) -> &DeTable<'a> {
        self.table.get_ref()
    }

    pub fn line_at(&self, offset: usize) -> usize {
        self.text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
    }

    /// The text as its author wrote it.
    pub fn written(&self, span: Range<usize>) -> &'a str {
        self.text.get(span).unwrap_or_default()
    }

    /// The line on which a section has its one place: in brackets or braces, not before a dot.
    pub fn line_of_section(&self, name: &str) -> Option<usize> {
        let (key, value) = self.entries().iter().find(|(key, _)| key.get_ref() == name)?;
        let is_header = self.written(0..key.span().start).trim_end().ends_with('[');
        let is_inline = self.written(value.span()).starts_with('{');
        (is_header || is_inline).then(|| self.line_at(key.span().start))
    }

    /// The words within a value that are not TOML, each with its line.
    pub fn broken_words(&self, value: &Spanned<DeValue<'a>>) -> Vec<(usize, &'a str)> {
        let scalars = self.broken.iter().filter_map(|offset| scalar_in(value, *offset));
        let mut spans: Vec<Range<usize>> = scalars.map(Spanned::span).collect();
        spans.dedup();
        spans.into_iter().map(|span| (self.line_at(span.start), self.written(span))).collect()
    }

    /// Says what is wrong. None: a single value, which its key explains.
    ///
    /// The parser has no codes for its errors. A message that a later version words differently is shown as
    /// it is; the tests notice.
    fn explain(&self, error: &Error) -> Option<Problem> {
        let at = start_of(error);
        let (mut line, before, after) = self.split_line(at);
        let (whole, rest) = (format!("{before}{after}"), quotable(after.trim()));
        let found = self.entry_at(at);
        let key = found.as_ref().map(|(name, _)| format!("{name}: ")).unwrap_or_default();
        let message = error.message();
        let is = |beginning: &str| message.starts_with(beginning);
        let what = if is("duplicate key") {
            self.explain_duplicate(error)
        } else if is("unclosed table") || is("unclosed array table") {
            let name = before.trim().trim_start_matches('[').trim();
            format!("expected ] after [{0}; write [{0}]", quotable(name))
        } else if is("unclosed ") || is("unexpected `=` in array") {
            line = found.map_or(line, |(_, start)| self.line_at(start));
            let is_table = is("unclosed inline table");
            let (what, end) = if is_table { ("table", '}') } else { ("list", ']') };
            format!("{key}the {what} has no end; write {end} after its last item")
        } else if is("missing comma between array") {
            let item = self.scalar_at(at).map_or(after, |item| self.written(item.span()));
            format!("{key}expected a comma before {}", quotable(item.trim()))
        } else if is("extra comma in array") {
            format!("{key}expected an item before the comma; remove the comma")
        } else if is("unexpected key or value") && before.trim_start().starts_with('[') {
            format!("a section has a line of its own; write {rest} below it")
        } else if is("unexpected key or value") {
            format!(
                "{key}unexpected {rest} after the value; put a list in brackets, and # before a comment"
            )
        } else if is("key with no value") {
            explain_missing_equals(whole.trim())
        } else if is("missing escaped value") {
            format!(r"{key}a backslash begins an escape; write \\ for a backslash itself")
        } else if let Some((_, end)) = QUOTES.iter().find(|(beginning, _)| is(beginning)) {
            format!("{key}the string has no end; write {end} after it")
        } else if self.scalar_at(at).is_some() {
            return None;
        } else {
            format!("{}: not TOML: {}", quotable(whole.trim()), quotable(message))
        };
        Some(Problem { line, what })
    }

    fn explain_duplicate(&self, error: &Error) -> String {
        let at = start_of(error);
        let (_, before, _) = self.split_line(at);
        let name = self.written(error.span().unwrap_or_default());
        if before.trim_start().starts_with('[') {
            let first = self.text.lines().take(self.line_at(at) - 1).position(|line| {
                let header = line.trim_start_matches(['[', ' ', '\t']);
                let after = header.strip_prefix(name).map(str::trim_start);
                after.is_some_and(|rest| rest.starts_with([']', '.', '=']))
            });
            let name = quotable(name);
            return match first.map(|index| index + 1) {
                Some(line) => format!("[{name}] is on line {line} already; write its keys there"),
                None => format!("[{name}] is there twice; write its keys in one place"),
            };
        }
        // The same key of the same section: dotted, or the nearest one above.
        let dotted = before.trim_end().strip_suffix('.').map(str::trim);
        let above = self.entries().iter().filter_map(|(section, content)| {
            let section = section.get_ref().as_ref();
            let keys = content.get_ref().as_table()?;
            let start = keys.keys().find(|key| key.get_ref() == name)?.span().start;
            (start < at && dotted.is_none_or(|dotted| dotted == section))
                .then_some((start, section))
        });
        match above.max() {
            Some((start, section)) => format!(
                "{section}.{} is set on line {} already; remove one of them",
                quotable(name),
                self.line_at(start)
            ),
            None => format!("{} is set twice; remove one of them", quotable(name)),
        }
    }

    /// The number of the line, and what stands on it before and after an offset.
    fn split_line(&self, offset: usize) -> (usize, &'a str, &'a str) {
        let (before, after) = self.text.split_at_checked(offset).unwrap_or((self.text, ""));
        let before = before.rsplit('\n').next().unwrap_or_default();
        (self.line_at(offset), before, after.lines().next().unwrap_or_default())
    }

    /// The full name of the key whose value is at an offset, and where the key begins.
    fn entry_at(&self, offset: usize) -> Option<(String, usize)> {
        self.entries().iter().find_map(|(section, content)| {
            let (key, _) = content
                .get_ref()
                .as_table()?
                .iter()
                .find(|(_, value)| touches(&value.span(), offset))?;
            let name = format!("{}.{}", section.get_ref(), key.get_ref());
            Some((quotable(&name).into_owned(), key.span().start))
        })
    }

    fn scalar_at(&self, offset: usize) -> Option<&Spanned<DeValue<'a>>> {
        self.entries().iter().find_map(|(_, value)| scalar_in(value, offset))
    }
}

fn explain_missing_equals(line: &str) -> String {
    if let Some(comment) = line.strip_prefix("//").or_else(|| line.strip_prefix(';')) {
        return format!("a comment begins with #; write # {}", quotable(comment.trim()));
    }
    if let Some(name) = line.strip_suffix(']')
        && !name.contains(['[', ' '])
    {
        return format!("expected [ before {0}]; write [{0}]", quotable(name));
    }
    let end = line.find(|c: char| !c.is_alphanumeric() && !"_-.".contains(c));
    let (name, rest) = line.split_at(end.unwrap_or(line.len()));
    let value = rest.trim_start_matches([':', ' ', '\t']);
    match (name, value) {
        ("", _) => format!("expected KEY = VALUE, found {}", quotable(line)),
        (_, "") => format!("{0} has no value; write {0} = VALUE", quotable(name)),
        _ => format!("expected = after {0}; write {0} = {1}", quotable(name), quotable(value)),
    }
}

/// Whether an error leaves the parser's view of the lines below as their author meant it.
fn is_local(error: &Error) -> bool {
    let mut beginnings = LOCAL.into_iter().chain(QUOTES.map(|(beginning, _)| beginning));
    beginnings.any(|beginning| error.message().starts_with(beginning))
}

fn start_of(error: &Error) -> usize {
    error.span().map_or(0, |span| span.start)
}

/// The single value at an offset, within lists and tables.
fn scalar_in<'a, 'b>(
    value: &'b Spanned<DeValue<'a>>,
    offset: usize,
) -> Option<&'b Spanned<DeValue<'a>>> {
    match value.get_ref() {
        DeValue::Array(items) => items.iter().find_map(|item| scalar_in(item, offset)),
        DeValue::Table(keys) => keys.values().find_map(|value| scalar_in(value, offset)),
        _ => touches(&value.span(), offset).then_some(value),
    }
}

fn touches(span: &Range<usize>, offset: usize) -> bool {
    (span.start..=span.end).contains(&offset)
}
