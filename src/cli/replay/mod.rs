//! `tcptracker replay`: what the detector would have reported on capture files.
//!
//! Owns the command; [`trials`] runs the detectors, [`report`] makes the output. Must not need privileges
//! or a running service.

mod guess;
mod reader;
mod report;
mod trials;

use std::path::{Path, PathBuf};

use crate::cli::CliError;
use crate::cli::arguments::{Compared, Replay};
use crate::cli::output::{on_terminal, print, print_error, print_json_line};
use crate::cli::replay::report::{comparison, listing, print_lines, summary_line};
use crate::cli::replay::trials::Trials;
use crate::cli::why::pending::Explained;
use crate::config::{DetectionConfig, Effective, Preset, Sources};
use crate::system::capture::saved::{SavedCapture, name_of};
use crate::types::printable;

pub fn run(arguments: &Replay, sources: &Sources) -> Result<(), CliError> {
    let mut rule = Effective::load(sources)?.into_config().detection;
    rule.preset = arguments.preset.unwrap_or(rule.preset);
    rule.ports = arguments.ports.unwrap_or(rule.ports);
    rule.window = arguments.window.unwrap_or(rule.window);
    rule.per = arguments.per.unwrap_or(rule.per);
    rule.ipv6_prefix = arguments.ipv6_prefix.unwrap_or(rule.ipv6_prefix);
    let first = match &arguments.compare {
        Some(Compared::File(file)) => Some(file),
        _ => None,
    };
    let mut failure = None;
    let files: Vec<&PathBuf> = first.into_iter().chain(&arguments.files).collect();
    if files.is_empty() {
        return Err(CliError::NoFile);
    }
    let several = files.len() > 1;
    for file in files {
        // An unreadable file does not prevent the replay of the others.
        if let Err(error) = replay(file, several, arguments, &rule) {
            if let Some(CliError::Saved(earlier)) = failure.replace(error) {
                print_error(&earlier);
            }
            if matches!(failure, Some(CliError::Output(_))) {
                break;
            }
        }
    }
    failure.map_or(Ok(()), Err)
}

fn replay(
    file: &Path,
    several: bool,
    arguments: &Replay,
    rule: &DetectionConfig,
) -> Result<(), CliError> {
    let capture = SavedCapture::open(file)?;
    let rule_of = |preset, ports| DetectionConfig { preset, ports, ..rule.clone() };
    let (rules, presets): (Vec<_>, bool) = match &arguments.compare {
        Some(Compared::Thresholds(list)) => {
            (list.iter().map(|ports| rule_of(Preset::Classic, *ports)).collect(), false)
        }
        Some(_) => {
            ([Preset::Classic, Preset::Balanced].map(|p| rule_of(p, rule.ports)).to_vec(), true)
        }
        None => (vec![rule.clone()], false),
    };
    let compared = arguments.compare.is_some();
    let mut trials = Trials::new(rules, rule, arguments.local.clone());
    if let Some(source) = arguments.why {
        trials.watch(source);
    }
    let damage = trials.read(capture, &name_of(file)).err();

    for warning in trials.contents().warnings(&name_of(file)) {
        print_error(&warning);
    }
    let path = file.display().to_string();
    if arguments.json {
        print_lines(&path, trials.each(), compared && !presets, presets)?;
    } else {
        let summary = summary_line(&name_of(file), rule, &trials);
        // Piped output contains only rows. With several files, each row names its file.
        if on_terminal() {
            print(&(printable(&summary) + "\n"))?;
        } else {
            print_error(&summary);
        }
        let of_file = (several && !on_terminal()).then_some(path.as_str());
        if compared {
            comparison(trials.each(), presets, of_file).print()?;
        } else if let [trial] = trials.each() {
            listing(trial, of_file).print()?;
        }
    }
    if let Some((source, pending)) = trials.watched() {
        let explained = Explained::of_replay(source, pending);
        if arguments.json { print_json_line(&explained)? } else { explained.print()? }
    }
    damage.map_or(Ok(()), |error| Err(error.into()))
}
