//! Where the configuration comes from, and which source wins.
//!
//! Owns the order of the layers (defaults, files, environment, flags; the later wins) and the origin
//! of every value. Every value of every layer is checked, also one that a later layer overrides, and
//! all that is wrong is told at once: nothing starts half-configured.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use crate::config::Config;
use crate::config::reference::{KEYS, SECTIONS, expected};
use crate::types::ifname::IfName;
use crate::types::network::{InvalidAddress, parse_network};

/// Where the service's files are.
pub const DIRECTORY: &str = "/etc/tcptracker";
const COMMON_FILE: &str = "tcptracker.toml";
const PREFIX: &str = "TCPTRACKER_";

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody has set it.
    Default,
    /// A file, and the line in it.
    File(PathBuf, usize),
    /// An environment variable.
    Environment(String),
    /// A flag on the command line.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// Everything that is wrong with the configuration, a line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(pub Vec<String>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for ConfigError {}

/// Where to look.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Files, and whether each must exist; the later wins.
    files: Vec<(PathBuf, bool)>,
    environment: Vec<(String, String)>,
    flags: Flags,
}

/// What the command line says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flags {
    /// `--observe`
    pub observe: bool,
}

impl Sources {
    /// The usual places for an interface, or for what all interfaces have in common; an explicit
    /// file stands for both files.
    pub fn new(
        interface: Option<&IfName>,
        explicit: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: Flags,
    ) -> Self {
        Self::within(Path::new(DIRECTORY), interface, explicit, environment, flags)
    }

    pub(crate) fn within(
        directory: &Path,
        interface: Option<&IfName>,
        explicit: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: Flags,
    ) -> Self {
        let files = match explicit {
            Some(file) => vec![(file.to_owned(), true)],
            None => std::iter::once(directory.join(COMMON_FILE))
                .chain(interface.map(|name| directory.join(format!("{name}.toml"))))
                .map(|file| (file, false))
                .collect(),
        };
        Self { files, environment: environment.into_iter().collect(), flags }
    }
}

impl Sources {
    /// All files in the usual place; none where another one stands for them.
    pub fn usual_files(&self) -> Vec<PathBuf> {
        let [(common, false)] = &self.files[..] else { return Vec::new() };
        let others = self.beside().into_iter().map(|(file, _)| file);
        std::iter::once(common.clone()).chain(others).filter(|file| file.exists()).collect()
    }

    /// The files beside the common one, each of which is for one interface, and what is read for that. None
    /// where another file stands for all of them.
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
    /// The values.
    pub config: Config,
    settings: BTreeMap<String, (Value, Origin)>,
}

impl Effective {
    /// Reads all sources.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let mut effective = Self::default();
        let mut problems = Vec::new();
        for (file, required) in &sources.files {
            match std::fs::read_to_string(file) {
                Ok(text) => effective.read_file(file, &text, &mut problems),
                Err(error) if error.kind() == ErrorKind::NotFound && !required => {}
                Err(error) => problems.push(unreadable(file, &error)),
            }
        }
        for (name, text) in &sources.environment {
            effective.read_variable(name, text, &mut problems);
        }
        if sources.flags.observe {
            let origin = Origin::Flag("--observe");
            effective.set("block.enabled", &Value::Boolean(false), &origin, &mut problems);
        }
        if problems.is_empty() { Ok(effective) } else { Err(ConfigError(problems)) }
    }

    /// Every key with its value, as one would write it into a file, and its origin.
    pub fn settings(&self) -> impl Iterator<Item = (&str, &Value, &Origin)> {
        self.settings.iter().map(|(key, (value, origin))| (key.as_str(), value, origin))
    }

    /// What is another than before: a key, its value and the one it had, each.
    pub fn changes_since(&self, before: &Self) -> Vec<String> {
        let changed = self.settings.iter().filter_map(|(key, (value, _))| {
            let former = before.settings.get(key).map(|(former, _)| former);
            let former = former.filter(|former| *former != value)?;
            Some(format!("{key} = {value} (was {former})"))
        });
        changed.collect()
    }

    fn read_file(&mut self, file: &Path, text: &str, problems: &mut Vec<String>) {
        let place = |offset: usize| Origin::File(file.to_owned(), line_at(text, offset));
        let (places, values) = match (DeTable::parse(text), text.parse::<Table>()) {
            (Ok(places), Ok(values)) => (places, values),
            (Err(error), _) | (_, Err(error)) => {
                let line = place(error.span().map_or(0, |span| span.start));
                problems.push(format!("{line}: {}", error.message().trim()));
                return;
            }
        };
        for (section, content) in places.get_ref() {
            let section_name = section.get_ref().as_ref();
            let DeValue::Table(keys) = content.get_ref() else {
                let origin = place(section.span().start);
                problems.push(if is_section(section_name) {
                    format!("{origin}: {section_name} is a section, written [{section_name}]")
                } else {
                    unknown(section_name, &origin)
                });
                continue;
            };
            // Of another each key is told.
            if keys.is_empty() && !is_section(section_name) {
                let origin = place(section.span().start);
                problems.push(unknown(section_name, &origin));
            }
            for key in keys.keys() {
                let key_name = key.get_ref().as_ref();
                let Some(value) = values.get(section_name).and_then(|keys| keys.get(key_name))
                else {
                    continue;
                };
                let (name, origin) =
                    (format!("{section_name}.{key_name}"), place(key.span().start));
                self.set(&name, value, &origin, problems);
            }
        }
    }

    fn read_variable(&mut self, name: &str, text: &str, problems: &mut Vec<String>) {
        // Other variables may begin like ours; those with a section or a key in them are meant for us.
        let Some(rest) = name.strip_prefix(PREFIX) else { return };
        let Some((section, key)) = rest.split_once("__") else {
            if let Some((section, key)) = rest.split_once('_')
                && expected(&format!("{section}.{key}").to_ascii_lowercase()).is_some()
            {
                problems.push(format!(
                    "environment {name}: two underscores stand for the dot, as in \
                     {PREFIX}{section}__{key}"
                ));
            }
            return;
        };
        let key = format!("{section}.{key}").to_ascii_lowercase();
        let written = format!("value = {text}")
            .parse::<Table>()
            .ok()
            .and_then(|mut table| table.remove("value"));
        let value = match (self.settings.get(&key), written) {
            (_, Some(value)) => value,
            (Some((Value::Array(_), _)), None) => {
                let items = text.split(',').map(|item| Value::String(item.trim().to_owned()));
                Value::Array(items.collect())
            }
            (_, None) => Value::String(text.to_owned()),
        };
        self.set(&key, &value, &Origin::Environment(name.to_owned()), problems);
    }

    fn set(&mut self, key: &str, value: &Value, origin: &Origin, problems: &mut Vec<String>) {
        let Some(expected) = expected(key) else {
            problems.push(unknown(key, origin));
            return;
        };
        let mut changed = self.settings.clone();
        changed.insert(key.to_owned(), (value.clone(), origin.clone()));
        if let Ok(config) = Config::deserialize(table_of(&changed)) {
            *self = Self { config, settings: changed };
            return;
        }
        for wrong in self.wrong_items(key, value) {
            problems.push(match unreadable_network(key, &wrong) {
                Some(why) => format!("{origin}: {key}: {why}"),
                None => format!("{origin}: {key}: expected {expected}, found {wrong}"),
            });
        }
    }

    /// Of a list, what cannot be in it; else the value itself.
    fn wrong_items(&self, key: &str, value: &Value) -> Vec<Value> {
        let is_wrong = |item: &Value| {
            let mut changed = self.settings.clone();
            let alone = Value::Array(vec![item.clone()]);
            changed.insert(key.to_owned(), (alone, Origin::Default));
            Config::deserialize(table_of(&changed)).is_err()
        };
        let items = value.as_array().into_iter().flatten();
        let wrong: Vec<Value> = items.filter(|item| is_wrong(item)).cloned().collect();
        if wrong.is_empty() { vec![value.clone()] } else { wrong }
    }
}

impl Default for Effective {
    fn default() -> Self {
        let config = Config::default();
        let mut settings = BTreeMap::new();
        // A configuration is made of sections of plain values: it always serialises.
        if let Ok(Value::Table(sections)) = Value::try_from(&config) {
            for (section, keys) in sections {
                for (key, value) in keys.as_table().into_iter().flatten() {
                    let name = format!("{section}.{key}");
                    settings.insert(name, (value.clone(), Origin::Default));
                }
            }
        }
        Self { config, settings }
    }
}

fn table_of(settings: &BTreeMap<String, (Value, Origin)>) -> Table {
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

/// Why a file cannot be read. What root has written, the service, which is not root, must be let read.
fn unreadable(file: &Path, error: &std::io::Error) -> String {
    let said = format!("cannot read {}: {error}", file.display());
    if error.kind() != ErrorKind::PermissionDenied {
        return said;
    }
    // Where not even that it is there can be seen, it is its directory.
    match file.parent() {
        Some(directory) if file.metadata().is_err() => {
            format!("{said}; let everybody in: chmod a+x {}", directory.display())
        }
        _ => format!("{said}; let everybody read it: chmod a+r {}", file.display()),
    }
}

/// What is wrong with an address that should never be blocked.
fn unreadable_network(key: &str, item: &Value) -> Option<InvalidAddress> {
    let text = item.as_str().filter(|_| key == "exempt.networks")?;
    parse_network(text).err()
}

fn is_section(name: &str) -> bool {
    SECTIONS.iter().any(|(section, _)| *section == name)
}

fn unknown(key: &str, origin: &Origin) -> String {
    let names = KEYS.iter().map(|key| key.name);
    let closest = names
        .map(|name| (distance(key, name), name))
        .min()
        .filter(|(distance, name)| *distance <= name.len() / 2)
        .map(|(_, name)| format!("; did you mean {name}?"))
        .unwrap_or_default();
    format!("{origin}: unknown key {key}{closest} (`tcptracker config` lists all keys)")
}

/// Levenshtein's distance, for the hint alone.
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.chars().count()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.chars().enumerate() {
            let substituted = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}

fn line_at(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}
