//! One file: what it says as far as it is TOML, and what is wrong with its syntax.
//!
//! Owns the words for syntax errors, which the parser states in terms of its grammar. Never decides
//! whether a key exists or what it takes.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue, Error};

use crate::types::quotable;

/// What is wrong, and on which line.
#[derive(Clone, Debug)]
pub struct Problem {
    pub line: usize,
    pub what: String,
}

/// A name, and what stands for it.
pub type Entry<'a, 'b> = (&'b Spanned<DeString<'a>>, &'b Spanned<DeValue<'a>>);

/// A parsed file. The parser goes on after an error, so that all errors can be reported at once.
pub struct Document<'a> {
    text: &'a str,
    table: Spanned<DeTable<'a>>,
    errors: Vec<(Kind, Error)>,
}

/// What a syntax error means for the reader of the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Duplicate,
    /// A word that is not a value, such as a string without quotes.
    Value,
    UnclosedString,
    Escape,
    MissingComma,
    ExtraComma,
    TextAfterEnd,
    UnclosedSection,
    UnclosedList,
    UnclosedTable,
    MissingEquals,
    Other,
}

impl Kind {
    /// The parser has no codes for its errors. A message that a later version words differently
    /// becomes `Other`, which is shown as it is; the tests notice.
    fn of(message: &str) -> Self {
        const BEGINNINGS: [(&str, Kind); 14] = [
            ("duplicate key", Kind::Duplicate),
            ("unclosed table", Kind::UnclosedSection),
            ("unclosed array table", Kind::UnclosedSection),
            ("unclosed array", Kind::UnclosedList),
            ("unexpected `=` in array", Kind::UnclosedList),
            ("unclosed inline table", Kind::UnclosedTable),
            ("missing comma between array", Kind::MissingComma),
            ("extra comma in array", Kind::ExtraComma),
            ("unexpected key or value", Kind::TextAfterEnd),
            ("key with no value", Kind::MissingEquals),
            ("missing escaped value", Kind::Escape),
            ("invalid basic string", Kind::UnclosedString),
            ("invalid literal string", Kind::UnclosedString),
            ("invalid multi-line", Kind::UnclosedString),
        ];
        let found = BEGINNINGS.iter().find(|(beginning, _)| message.starts_with(beginning));
        found.map_or(Self::Value, |(_, kind)| *kind)
    }

    /// Whether the parser's view of the lines below is not the author's.
    const fn hides_the_rest(self) -> bool {
        matches!(
            self,
            Self::UnclosedSection
                | Self::UnclosedList
                | Self::UnclosedTable
                | Self::MissingEquals
                | Self::Other
        )
    }
}

impl<'a> Document<'a> {
    pub fn parse(text: &'a str) -> Self {
        let (table, errors) = DeTable::parse_recoverable(text);
        let errors = errors.into_iter().map(|error| (Kind::of(error.message()), error)).collect();
        let mut document = Self { text, table, errors };
        for index in 0..document.errors.len() {
            let (kind, error) = &document.errors[index];
            // An error of a value outside of all values is one of the grammar.
            if *kind == Kind::Value && document.scalar_at(start_of(error)).is_none() {
                document.errors[index].0 = Kind::Other;
            }
        }
        document
    }

    /// The entries of the top level: sections, and keys that are outside of all sections.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'a, '_>> {
        self.table.get_ref().iter()
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
        let (key, value) = self.entries().find(|(key, _)| key.get_ref() == name)?;
        let is_header = self.before(key.span().start).trim_end().ends_with('[');
        let is_inline = self.written(value.span()).starts_with('{');
        (is_header || is_inline).then(|| self.line_at(key.span().start))
    }

    /// The words within a value that are not TOML, each with its line.
    pub fn broken_words(&self, value: &Spanned<DeValue<'a>>) -> Vec<(usize, &'a str)> {
        let broken = self.errors.iter().filter(|(kind, _)| *kind == Kind::Value);
        let scalars = broken.filter_map(|(_, error)| scalar_in(value, start_of(error)));
        let mut spans: Vec<Range<usize>> = scalars.map(Spanned::span).collect();
        spans.dedup();
        spans.into_iter().map(|span| (self.line_at(span.start), self.written(span))).collect()
    }

    /// The syntax errors but those within single values, in the order of lines, one for each line.
    pub fn syntax_problems(&self) -> Vec<Problem> {
        let errors = self.errors.iter().filter(|(kind, _)| *kind != Kind::Value);
        let mut problems: Vec<Problem> =
            errors.map(|(kind, error)| self.explain(*kind, error)).collect();
        problems.sort_by_key(|problem| problem.line);
        problems.dedup_by_key(|problem| problem.line);
        problems
    }

    /// The last line that the parser has read as its author meant it; none: all of them.
    pub fn last_reliable_line(&self) -> Option<usize> {
        let hiding = self.errors.iter().filter(|(kind, _)| kind.hides_the_rest());
        hiding.map(|(kind, error)| self.explain(*kind, error).line).min()
    }

    fn explain(&self, kind: Kind, error: &Error) -> Problem {
        let at = start_of(error);
        let (mut line, before, after) = self.split_line(at);
        let whole = format!("{before}{after}");
        let found = self.entry_at(at);
        let key = found.as_ref().map(|(name, _)| format!("{name}: ")).unwrap_or_default();
        let what = match kind {
            Kind::Duplicate => self.explain_duplicate(error),
            Kind::UnclosedString => {
                let quote = if error.message().contains("literal") { "'" } else { "\"" };
                let length = if error.message().contains("multi-line") { 3 } else { 1 };
                format!("{key}the string has no end; write {} after it", quote.repeat(length))
            }
            Kind::Escape => {
                format!(r"{key}a backslash begins an escape; write \\ for a backslash itself")
            }
            Kind::MissingComma => {
                let item = self.scalar_at(at).map_or(after, |item| self.written(item.span()));
                format!("{key}expected a comma before {}", quotable(item.trim()))
            }
            Kind::ExtraComma => format!("{key}expected an item before the comma; remove the comma"),
            Kind::TextAfterEnd if before.trim_start().starts_with('[') => format!(
                "a section has a line of its own; write {} below it",
                quotable(after.trim())
            ),
            Kind::TextAfterEnd => format!(
                "{key}unexpected {} after the value; put a list in brackets, and # before a comment",
                quotable(after.trim())
            ),
            Kind::UnclosedSection => {
                let name = before.trim().trim_start_matches('[').trim();
                format!("expected ] after [{0}; write [{0}]", quotable(name))
            }
            Kind::UnclosedList | Kind::UnclosedTable => {
                line = found.map_or(line, |(_, start)| self.line_at(start));
                let (what, end) =
                    if kind == Kind::UnclosedList { ("list", ']') } else { ("table", '}') };
                format!("{key}the {what} has no end; write {end} after its last item")
            }
            Kind::MissingEquals => explain_missing_equals(whole.trim()),
            Kind::Value | Kind::Other => {
                format!("{}: not TOML: {}", quotable(whole.trim()), quotable(error.message()))
            }
        };
        Problem { line, what }
    }

    fn explain_duplicate(&self, error: &Error) -> String {
        let at = start_of(error);
        let (_, before, _) = self.split_line(at);
        let name = self.written(error.span().unwrap_or_default());
        if before.trim_start().starts_with('[') {
            let first = self.line_before(at, |line| {
                let line = line.trim_start();
                let header = line.trim_start_matches('[').trim_start();
                let after = header.strip_prefix(name).map(str::trim_start);
                after.is_some_and(|rest| rest.starts_with([']', '.', '=']))
            });
            let name = quotable(name);
            return match first {
                Some(line) => format!("[{name}] is on line {line} already; write its keys there"),
                None => format!("[{name}] is there twice; write its keys in one place"),
            };
        }
        // The same key of the same section: dotted, or the nearest one above.
        let dotted = before.trim_end().strip_suffix('.').map(str::trim);
        let above = self.entries().filter_map(|(section, content)| {
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

    fn before(&self, offset: usize) -> &'a str {
        self.text.get(..offset).unwrap_or(self.text)
    }

    fn line_before(&self, offset: usize, is_it: impl Fn(&str) -> bool) -> Option<usize> {
        let end = self.line_at(offset) - 1;
        self.text.lines().take(end).position(is_it).map(|index| index + 1)
    }

    /// The number of the line, and what stands on it before and after an offset.
    fn split_line(&self, offset: usize) -> (usize, &'a str, &'a str) {
        let (before, after) = self.text.split_at_checked(offset).unwrap_or((self.text, ""));
        let before = before.rsplit('\n').next().unwrap_or_default();
        (self.line_at(offset), before, after.lines().next().unwrap_or_default())
    }

    /// The full name of the key whose value is at an offset, and where the key begins.
    fn entry_at(&self, offset: usize) -> Option<(String, usize)> {
        self.entries().find_map(|(section, content)| {
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
        self.entries().find_map(|(_, value)| scalar_in(value, offset))
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
