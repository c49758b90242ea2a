//! `tcptracker config`

use serde::Serialize;

use super::CliError;
use super::output::{print, print_json};
use crate::config::{Effective, Sources};

/// A key, as a program reads it. The names stay as they are.
#[derive(Serialize)]
struct Setting<'a> {
    key: &'a str,
    value: &'a toml::Value,
    origin: String,
}

/// Prints what could be put into a file as it stands.
pub(super) fn run(sources: &Sources, json: bool) -> Result<(), CliError> {
    let effective = Effective::load(sources)?;
    let settings: Vec<Setting<'_>> = effective
        .settings()
        .map(|(key, value, origin)| Setting { key, value, origin: origin.to_string() })
        .collect();
    if json {
        return print_json(&settings);
    }
    let written: Vec<String> =
        settings.iter().map(|setting| format!("{} = {}", setting.key, setting.value)).collect();
    let width = written.iter().map(|line| line.chars().count()).max().unwrap_or(0);
    let lines = written.iter().zip(&settings);
    let text: String =
        lines.map(|(line, setting)| format!("{line:<width$}  # {}\n", setting.origin)).collect();
    print(&text)
}
