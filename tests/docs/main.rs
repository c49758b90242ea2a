//! Generated files in the repository: completions, man pages, the commented default configuration,
//! and the table of keys in README.md. The tests compare each file with the code that generates it.
//!
//! `make docs` (`WRITE_DOCS=1`) writes the files instead.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that cannot go on fails; it starts shells and readers of manuals"
)]

mod completions;
mod keys;
mod manual;
mod roff;
mod shells;

use std::path::Path;

use clap_complete::Shell;
use tcptracker::internals::{Effective, Flags, Origin, Sources};

/// Compares a file of the repository with its generated text, or writes it.
#[track_caller]
fn assert_up_to_date(name: &str, text: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    if std::env::var_os("WRITE_DOCS").is_some() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, text).unwrap();
        return;
    }
    let found = std::fs::read_to_string(&file).unwrap_or_default();
    let first_difference = || {
        let mut lines = found.lines().zip(text.lines()).enumerate();
        lines.find(|(_, (found, wanted))| found != wanted)
    };
    assert!(
        found == text,
        "{name} is outdated: run `make docs`; first difference: {:?}",
        first_difference()
    );
}

#[test]
fn completions_are_up_to_date() {
    let shells = [
        (Shell::Bash, "tcptracker.bash"),
        (Shell::Zsh, "_tcptracker"),
        (Shell::Fish, "tcptracker.fish"),
    ];
    for (shell, name) in shells {
        assert_up_to_date(&format!("packaging/completions/{name}"), &completions::script(shell));
    }
}

#[test]
fn command_manual_is_up_to_date() {
    assert_up_to_date("packaging/man/tcptracker.1", &manual::page());
}

#[test]
fn configuration_manual_is_up_to_date() {
    assert_up_to_date("packaging/man/tcptracker.toml.5", &keys::page());
}

#[test]
fn readme_key_table_is_up_to_date() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = std::fs::read_to_string(readme).unwrap();
    let start = text.find(keys::README_HEADING).unwrap();
    let end = start + text[start..].find("\n\n").unwrap() + 1;
    assert_up_to_date(
        "README.md",
        &format!("{}{}{}", &text[..start], keys::readme_table(), &text[end..]),
    );
}

/// The shipped file changes nothing, even with every key uncommented.
#[test]
fn shipped_configuration_matches_the_defaults() {
    let shipped = keys::default_file();
    assert_up_to_date("packaging/tcptracker.toml", &shipped);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tcptracker.toml");
    let uncommented: String = shipped
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(key) if !key.starts_with(' ') => format!("{key}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let defaults = Effective::default();
    for (text, sets_every_key) in [(&shipped, false), (&uncommented, true)] {
        std::fs::write(&file, text).unwrap();
        let sources = Sources::new(None, Some(&file), [], Flags::default());
        let read = Effective::load(&sources).unwrap();
        assert_eq!(read.config, defaults.config);
        for (key, _, origin) in read.settings() {
            assert_eq!(matches!(origin, Origin::File(..)), sets_every_key, "{key}");
        }
    }
}
