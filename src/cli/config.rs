//! `tcptracker config`: the effective configuration.

use serde::Serialize;

use crate::cli::CliError;
use crate::cli::output::{Style, print_json, print_styled, styled};
use crate::config::{Effective, Origin, Sources};
use crate::types::printable;

/// A key in the JSON output. Its names are stable.
#[derive(Serialize)]
struct Setting<'a> {
    key: &'a str,
    value: &'a toml::Value,
    origin: String,
    #[serde(skip)]
    is_default: bool,
}

/// Prints each key with its value, as in a configuration file, and its origin.
pub fn run(sources: &Sources, json: bool) -> Result<(), CliError> {
    let effective = Effective::load(sources)?;
    let settings: Vec<Setting<'_>> = effective
        .settings()
        .map(|(key, value, origin)| {
            let is_default = *origin == Origin::Default;
            Setting { key, value, origin: origin.to_string(), is_default }
        })
        .collect();
    if json {
        return print_json(&settings);
    }
    let written: Vec<String> =
        settings.iter().map(|setting| format!("{} = {}", setting.key, setting.value)).collect();
    let width = written.iter().map(|line| line.chars().count()).max().unwrap_or(0);
    let lines = written.iter().zip(&settings);
    // On a terminal, defaults are dim, so that values that were set stand out.
    let text: String = lines
        .map(|(line, setting)| {
            let line = printable(&format!("{line:<width$}  # {}", setting.origin)).into_owned();
            (if setting.is_default { styled(Style::Dim, &line) } else { line }) + "\n"
        })
        .collect();
    print_styled(&text)
}
