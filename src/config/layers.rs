//! Where the configuration comes from, and which source wins.
//!
//! Owns the order of the layers (defaults, files, environment, flags; the later wins) and the origin
//! of every value. Every value of every layer is checked, also one that a later layer overrides, and
//! all that is wrong is told at once: nothing starts half-configured.

use std::collections::BTreeMap;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::Config;
use super::reference::{KEYS, expected};
use crate::interface::InterfaceName;

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
        interface: Option<&InterfaceName>,
        explicit: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: Flags,
    ) -> Self {
        Self::within(Path::new(DIRECTORY), interface, explicit, environment, flags)
    }

    fn within(
        directory: &Path,
        interface: Option<&InterfaceName>,
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
                Err(error) => problems.push(format!("cannot read {}: {error}", file.display())),
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
                problems.push(unknown(section_name, &origin));
                continue;
            };
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
        // Other variables may begin like ours; those with a section in them are meant for us.
        let Some((section, key)) = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once("__"))
        else {
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
        match Config::deserialize(table_of(&changed)) {
            Ok(config) => *self = Self { config, settings: changed },
            Err(_) => problems.push(format!("{origin}: {key}: expected {expected}, found {value}")),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Listen, Target};
    use std::time::Duration;

    fn load(
        files: &[(&str, &str)],
        environment: &[(&str, &str)],
        observe: bool,
    ) -> Result<Effective, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        let environment =
            environment.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        let interface = "eth0".parse().unwrap();
        let flags = Flags { observe };
        Effective::load(&Sources::within(
            directory.path(),
            Some(&interface),
            None,
            environment,
            flags,
        ))
    }

    fn problem(file: &str) -> String {
        let ConfigError(problems) = load(&[("tcptracker.toml", file)], &[], false).unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems[0].clone()
    }

    #[test]
    fn every_key_says_what_it_takes_and_nothing_else_does() {
        let effective = Effective::default();
        let keys: Vec<&str> = effective.settings().map(|(key, ..)| key).collect();
        let mut expected: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
        expected.sort_unstable();
        assert_eq!(keys, expected);
    }

    #[test]
    fn the_defaults_survive_being_written_down() {
        let effective = Effective::default();
        let config = Config::deserialize(table_of(&effective.settings)).unwrap();
        assert_eq!(config, Config::default());
        let shown: BTreeMap<&str, String> =
            effective.settings().map(|(key, value, _)| (key, value.to_string())).collect();
        assert_eq!(shown["detection.window"], r#""60s""#);
        assert_eq!(shown["block.durations"], r#"["1h", "4h", "1d", "1w"]"#);
        assert_eq!(shown["firewall.hooks"], r#"["INPUT", "FORWARD"]"#);
    }

    #[test]
    fn the_later_layer_wins_and_each_value_knows_where_it_came_from() {
        let effective = load(
            &[
                (
                    "tcptracker.toml",
                    "[detection]\nports = 5\nwindow = \"2m\"\n\n[block]\nenabled = true\n",
                ),
                ("eth0.toml", "[detection]\nports = 7\n"),
            ],
            &[
                ("TCPTRACKER_FIREWALL__TARGET", "REJECT"),
                ("TCPTRACKER_EXEMPT__NETWORKS", "10.0.0.0/8, 192.0.2.1"),
                ("TCPTRACKER_METRICS__LISTEN", "off"),
                ("TCPTRACKER_CORPUS", "/somewhere"),
            ],
            true,
        )
        .unwrap();
        let config = &effective.config;
        assert_eq!(config.detection.ports.get(), 7);
        assert_eq!(config.detection.window.get(), Duration::from_secs(120));
        assert!(!config.block.enabled);
        assert_eq!(config.firewall.target, Target::Reject);
        assert_eq!(config.metrics.listen, Listen::Off);
        assert_eq!(config.exempt.networks.len(), 2);
        let origin = |key| effective.settings[key].1.to_string();
        assert!(origin("detection.ports").ends_with("eth0.toml:2"));
        assert!(origin("detection.window").ends_with("tcptracker.toml:3"));
        assert_eq!(origin("block.enabled"), "flag --observe");
        assert_eq!(origin("firewall.target"), "environment TCPTRACKER_FIREWALL__TARGET");
        assert_eq!(origin("log.rate"), "default");
    }

    #[test]
    fn what_is_wrong_names_file_line_and_what_was_expected() {
        let error = problem("[detection]\n\nwindow = \"sixty\"\n");
        assert!(error.contains("tcptracker.toml:3: detection.window: expected a length of time"));
        assert!(error.ends_with(r#"found "sixty""#), "{error}");

        let error = problem("[detection]\nport = 3\n");
        assert!(error.contains(":2: unknown key detection.port; did you mean detection.ports?"));
        let error = problem("detection = 3\n");
        assert!(error.contains(":1: unknown key detection"), "{error}");
        let error = problem("[detection]\nports = = 3\n");
        assert!(error.contains("tcptracker.toml:2: "), "{error}");
    }

    #[test]
    fn values_out_of_bounds_are_refused() {
        for bad in [
            "[detection]\nports = 0",
            "[detection]\nports = 65",
            "[detection]\nports = -1",
            "[detection]\nports = \"3\"",
            "[detection]\nwindow = \"0s\"",
            "[detection]\nwindow = \"2d\"",
            "[detection]\nwindow = 60",
            "[detection]\npreset = \"clasic\"",
            "[detection]\nipv6_prefix = 129",
            "[exempt]\nnetworks = [\"10.0.0.1/8\"]",
            "[exempt]\nnetworks = \"10.0.0.0/8\"",
            "[block]\ndurations = []",
            "[block]\ndurations = [\"0s\"]",
            "[block]\nmax_per_minute = 0",
            "[firewall]\nhooks = [\"OUTPUT\"]",
            "[firewall]\nhooks = []",
            "[metrics]\nlisten = \"localhost\"",
            "[bus]\nenabled = \"yes\"",
        ] {
            assert!(problem(bad).contains(": expected "), "{bad}");
        }
    }

    #[test]
    fn every_problem_of_every_layer_is_told() {
        let ConfigError(problems) = load(
            &[("tcptracker.toml", "[block]\nenabled = 1\nx = 2"), ("eth0.toml", "[log]\nrate = 0")],
            &[("TCPTRACKER_BUS__ENABLED", "maybe"), ("TCPTRACKER_BUS__NAME", "x")],
            true,
        )
        .unwrap_err();
        assert_eq!(problems.len(), 5, "{problems:#?}");
    }

    #[test]
    fn an_explicit_file_must_exist() {
        let missing = Path::new("/nonexistent/tcptracker.toml");
        let sources = Sources::new(None, Some(missing), [], Flags::default());
        let error = Effective::load(&sources).unwrap_err().to_string();
        assert!(error.contains("cannot read /nonexistent/tcptracker.toml"), "{error}");
    }
}
