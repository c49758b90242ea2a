//! Where the configuration comes from, and which source wins.
//!
//! Owns the order of the layers (defaults, files, environment, flags; the later wins) and the origin
//! of every value. Checks every value of every layer, even one that a later layer overrides, and
//! reports all problems at once. Never applies a part of a configuration.

mod document;
mod hints;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::de::{DeValue, ValueDeserializer};
use toml::{Spanned, Table, Value};

use crate::config::Config;
use crate::config::reference::{KEYS, Key, SECTIONS, expected};
use crate::types::{IfName, parse_network, printable, quotable};
use document::{Document, Problem};

/// The directory of the service's files.
pub const DIRECTORY: &str = "/etc/tcptracker";
const COMMON_FILE: &str = "tcptracker.toml";
const PREFIX: &str = "TCPTRACKER_";
/// An IPv6 network with an IPv4 address in it, and a few characters to spare.
const LONGEST_NETWORK: usize = 64;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Default,
    /// A file, and the line in it.
    File(PathBuf, usize),
    Environment(String),
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment {}", printable(name)),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// Everything that is wrong with the configuration, a line each, in the order of sources and lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(Vec<String>);

impl ConfigError {
    pub fn problems(&self) -> &[String] {
        &self.0
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for ConfigError {}

/// The sources of a configuration.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Files, and whether each must exist. The later wins.
    files: Vec<(PathBuf, bool)>,
    environment: Vec<(String, String)>,
    observe: bool,
}

impl Sources {
    /// Returns the usual files for an interface, or those that all interfaces share. An explicit file
    /// replaces both usual files.
    pub fn new(interface: Option<&IfName>, explicit: Option<&Path>) -> Self {
        match explicit {
            Some(file) => Self { files: vec![(file.to_owned(), true)], ..Self::default() },
            None => Self::within(Path::new(DIRECTORY), interface),
        }
    }

    /// Returns the usual files for an interface, in a directory.
    pub fn within(directory: &Path, interface: Option<&IfName>) -> Self {
        let names = interface.map(|name| format!("{name}.toml"));
        let names = std::iter::once(COMMON_FILE.to_owned()).chain(names);
        let files = names.map(|name| (directory.join(name), false)).collect();
        Self { files, ..Self::default() }
    }

    #[must_use]
    pub fn with_environment(
        mut self,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        self.environment.extend(environment);
        self
    }

    /// Adds the flag `--observe`, if it is set.
    #[must_use]
    pub fn with_observe(mut self, is_set: bool) -> Self {
        self.observe = is_set;
        self
    }

    /// Returns all existing files in the usual directory; none if an explicit file replaces them.
    pub fn usual_files(&self) -> Vec<PathBuf> {
        let [(common, false)] = &self.files[..] else { return Vec::new() };
        let others = self.beside().into_iter().map(|(file, _)| file);
        std::iter::once(common.clone()).chain(others).filter(|file| file.exists()).collect()
    }

    /// Returns each file for a single interface, with the sources of that interface; none if an explicit
    /// file replaces them.
    pub fn beside(&self) -> Vec<(PathBuf, Self)> {
        let [(common, false)] = &self.files[..] else { return Vec::new() };
        let entries = common.parent().and_then(|directory| std::fs::read_dir(directory).ok());
        let files = entries.into_iter().flatten().flatten().map(|entry| entry.path());
        let is_other = |file: &PathBuf| {
            file != common && file.extension().is_some_and(|extension| extension == "toml")
        };
        let mut files: Vec<PathBuf> = files.filter(is_other).collect();
        files.sort_unstable();
        let with = |file: &PathBuf| Self {
            files: vec![(common.clone(), false), (file.clone(), true)],
            ..self.clone()
        };
        files.iter().map(|file| (file.clone(), with(file))).collect()
    }
}

/// A configuration and where each of its values came from.
#[derive(Clone, Debug)]
pub struct Effective {
    config: Config,
    settings: Settings,
}

/// Every key with its value and its origin.
type Settings = BTreeMap<String, (Value, Origin)>;

impl Effective {
    /// Reads all sources.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let mut effective = Self::default();
        let mut problems = Vec::new();
        for (file, required) in &sources.files {
            match std::fs::read_to_string(file) {
                Ok(text) => problems.extend(effective.read_file(file, &text)),
                Err(error) if error.kind() == ErrorKind::NotFound && !required => {}
                Err(error) => problems.push(unreadable(file, &error)),
            }
        }
        for (name, text) in &sources.environment {
            problems.extend(effective.read_variable(name, text));
        }
        if sources.observe {
            let origin = Origin::Flag("--observe");
            problems.extend(effective.set("block.enabled", &Value::Boolean(false), &origin));
        }
        if problems.is_empty() { Ok(effective) } else { Err(ConfigError(problems)) }
    }

    pub const fn config(&self) -> &Config {
        &self.config
    }

    pub fn into_config(self) -> Config {
        self.config
    }

    /// Returns every key with its value, as in a file, and its origin.
    pub fn settings(&self) -> impl Iterator<Item = (&str, &Value, &Origin)> {
        self.settings.iter().map(|(key, (value, origin))| (key.as_str(), value, origin))
    }

    /// Every changed key, with its value and the value before.
    pub fn changes_since(&self, before: &Self) -> Vec<String> {
        let changed = self.settings.iter().filter_map(|(key, (value, _))| {
            let former = before.settings.get(key).map(|(former, _)| former);
            let former = former.filter(|former| *former != value)?;
            Some(format!("{key} = {value} (was {former})"))
        });
        changed.collect()
    }

    /// Applies a file. Returns what is wrong, in the order of lines.
    fn read_file(&mut self, file: &Path, text: &str) -> Vec<String> {
        let document = Document::parse(text);
        let mut problems = Vec::new();
        for (name, content) in document.entries() {
            let line = document.line_at(name.span().start);
            let section = name.get_ref().as_ref();
            let written = document.written(content.span());
            let what = match content.get_ref() {
                DeValue::Table(keys) if is_section(section) => {
                    for (key, value) in keys {
                        let name = format!("{section}.{}", key.get_ref());
                        let line = document.line_at(key.span().start);
                        problems.extend(self.read_key(&document, file, &name, line, value));
                    }
                    continue;
                }
                _ if is_section(section) => {
                    format!("{section} is a section; write [{section}], and its keys below it")
                }
                DeValue::Table(_) => hints::unknown_section(section),
                _ => hints::key_without_section(section, written, |section| {
                    document.line_of_section(section)
                }),
            };
            problems.push(Problem { line, what });
        }
        // A syntax error explains what else is wrong on its line.
        let syntax = document.problems();
        problems.retain(|problem| syntax.iter().all(|error| error.line != problem.line));
        problems.extend_from_slice(syntax);
        if let Some(last) = document.last_reliable_line() {
            problems.retain(|problem| problem.line <= last);
        }
        problems.sort_by_key(|problem| problem.line);
        let file = file.display();
        problems.iter().map(|Problem { line, what }| format!("{file}:{line}: {what}")).collect()
    }

    fn read_key<'a>(
        &mut self,
        document: &Document<'a>,
        file: &Path,
        key: &str,
        line: usize,
        value: &Spanned<DeValue<'a>>,
    ) -> Vec<Problem> {
        let Some(expected) = expected(key) else {
            return vec![Problem { line, what: hints::unknown_key(key) }];
        };
        let broken = document.broken_words(value);
        if !broken.is_empty() {
            let is_list = matches!(value.get_ref(), DeValue::Array(_));
            let problem = |(line, word)| {
                let what = self.explain_wrong(key, expected, word, is_list);
                Problem { line, what }
            };
            return broken.into_iter().map(problem).collect();
        }
        let Ok(read) = Value::deserialize(ValueDeserializer::from(value.clone())) else {
            // A number that is too large for any key.
            let word = document.written(value.span());
            return vec![Problem { line, what: self.explain_wrong(key, expected, word, false) }];
        };
        if self.accept(key, &read, &Origin::File(file.to_owned(), line)) {
            return Vec::new();
        }
        let line_of = |index: Option<usize>| {
            let item = value.get_ref().as_array().and_then(|items| items.get(index?));
            item.map_or(line, |item| document.line_at(item.span().start))
        };
        let problems = self.explain_all(key, expected, &read).into_iter();
        problems.map(|(index, what)| Problem { line: line_of(index), what }).collect()
    }

    fn read_variable(&mut self, name: &str, text: &str) -> Vec<String> {
        // A program that is not tcptracker may have variables that begin with TCPTRACKER_. Only those
        // that name a section and a key are settings.
        let Some(rest) = name.strip_prefix(PREFIX) else { return Vec::new() };
        let origin = Origin::Environment(name.to_owned());
        let Some((section, key)) = rest.split_once("__") else {
            let Some((section, key)) = rest.split_once('_') else { return Vec::new() };
            if expected(&format!("{section}.{key}").to_ascii_lowercase()).is_none() {
                return Vec::new();
            }
            return vec![format!(
                "{origin}: two underscores stand for the dot; write {PREFIX}{section}__{key}"
            )];
        };
        let key = format!("{section}.{key}").to_ascii_lowercase();
        let value = match (value_of(text), self.settings.get(&key)) {
            // A list needs neither brackets nor quotes.
            (Value::String(_), Some((Value::Array(_), _))) if !text.starts_with(['"', '\'']) => {
                let items = text.split(',').map(|item| Value::String(item.trim().to_owned()));
                Value::Array(items.collect())
            }
            (value, _) => value,
        };
        self.set(&key, &value, &origin)
    }

    /// Sets a value that is not from a file. Returns what is wrong.
    fn set(&mut self, key: &str, value: &Value, origin: &Origin) -> Vec<String> {
        let Some(expected) = expected(key) else {
            return vec![format!("{origin}: {}", hints::unknown_key(key))];
        };
        if self.accept(key, value, origin) {
            return Vec::new();
        }
        let problems = self.explain_all(key, expected, value).into_iter();
        problems.map(|(_, what)| format!("{origin}: {what}")).collect()
    }

    /// Sets a value if it is valid.
    fn accept(&mut self, key: &str, value: &Value, origin: &Origin) -> bool {
        let Some((config, settings)) = self.with(key, value, origin) else { return false };
        *self = Self { config, settings };
        true
    }

    fn would_accept(&self, key: &str, value: &Value) -> bool {
        self.with(key, value, &Origin::Default).is_some()
    }

    fn with(&self, key: &str, value: &Value, origin: &Origin) -> Option<(Config, Settings)> {
        let mut settings = self.settings.clone();
        settings.insert(key.to_owned(), (value.clone(), origin.clone()));
        let config = Config::deserialize(table_of(&settings)).ok()?;
        Some((config, settings))
    }

    /// Explains each wrong item of a list, with its index, or else the value.
    fn explain_all(
        &self,
        key: &str,
        expected: &str,
        value: &Value,
    ) -> Vec<(Option<usize>, String)> {
        let items = value.as_array().into_iter().flatten().enumerate();
        let wrong = items.filter(|(_, item)| !self.would_accept(key, &list_of(item)));
        let mut problems: Vec<(Option<usize>, String)> = wrong
            .map(|(index, item)| {
                (Some(index), self.explain_wrong(key, expected, &item.to_string(), true))
            })
            .collect();
        if problems.is_empty() {
            problems.push((None, self.explain_wrong(key, expected, &value.to_string(), false)));
        }
        problems
    }

    /// Says what a key takes and what it got, and what to write if that can be guessed.
    fn explain_wrong(&self, key: &str, expected: &str, written: &str, is_item: bool) -> String {
        let is_quoted = written.starts_with(['"', '\'']);
        if key == "exempt.networks"
            && is_quoted
            && let Some(why) = explain_wrong_network(written.trim_matches(['"', '\'']))
        {
            return format!("{key}: {why}");
        }
        let found = if written.is_empty() { "nothing" } else { &quotable(written) };
        // An example shows the quotes.
        let needs_quotes = !is_quoted && expected.contains('"') && !expected.contains("such as");
        let quotes = if needs_quotes { " in quotes" } else { "" };
        let valid = hints::likely_values(written).into_iter().find(|value| {
            self.would_accept(key, &if is_item { list_of(value) } else { value.clone() })
        });
        let advice = valid.map(|value| format!("; write {value}")).unwrap_or_default();
        format!("{key}: expected {expected}{quotes}, found {found}{advice}")
    }
}

fn list_of(item: &Value) -> Value {
    Value::Array(vec![item.clone()])
}

impl Default for Effective {
    #[expect(clippy::expect_used, reason = "only for defaults, which a test constructs")]
    fn default() -> Self {
        let default = |key: &Key| (key.name.to_owned(), (value_of(key.default), Origin::Default));
        let settings: Settings = KEYS.iter().map(default).collect();
        let config = Config::deserialize(table_of(&settings)).expect("all defaults are valid");
        Self { config, settings }
    }
}

/// A value as TOML writes it, or else a string without quotes.
fn value_of(text: &str) -> Value {
    text.parse().unwrap_or_else(|_| Value::String(text.to_owned()))
}

fn table_of(settings: &Settings) -> Table {
    let mut table = Table::new();
    for (name, (value, _)) in settings {
        let Some((section, key)) = name.split_once('.') else { continue };
        let section = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
        if let Value::Table(keys) = section {
            keys.insert(key.to_owned(), value.clone());
        }
    }
    table
}

/// Why a file cannot be read. The service does not run as root, so it needs permission for a file that
/// root wrote.
fn unreadable(file: &Path, error: &std::io::Error) -> String {
    let failed = format!("cannot read {}: {error}", file.display());
    match (error.kind(), file.parent()) {
        (ErrorKind::InvalidData, _) => format!("{failed}; save it as UTF-8"),
        // If not even its metadata can be read, the directory is the obstacle.
        (ErrorKind::PermissionDenied, Some(directory)) if file.metadata().is_err() => {
            format!(
                "{failed}; allow all users to enter the directory: chmod a+x {}",
                directory.display()
            )
        }
        (ErrorKind::PermissionDenied, _) => {
            format!("{failed}; allow all users to read it: chmod a+r {}", file.display())
        }
        _ => failed,
    }
}

/// What is wrong with an address or network that should be exempt. None if it is too long for one.
fn explain_wrong_network(text: &str) -> Option<String> {
    let text = text.trim();
    // RFC 1035: a host name has at most 253 characters, in labels of letters, digits and hyphens.
    let is_name = text.len() <= 253
        && text.contains(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if is_name {
        let name = quotable(text);
        return Some(format!(
            "\"{name}\" is a host name, and host names are not supported; write its address, such as \
             \"192.0.2.7\""
        ));
    }
    let error = parse_network(text).err().filter(|_| text.len() <= LONGEST_NETWORK)?;
    Some(printable(&error.to_string()).into_owned())
}

fn is_section(name: &str) -> bool {
    SECTIONS.iter().any(|(section, _)| *section == name)
}
