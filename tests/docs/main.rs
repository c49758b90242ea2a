//! Texts that are made from the code. Completions and man pages are generated at build time, and are
//! tried here in the shells and readers they are for. The commented default configuration and the table
//! of keys in README.md are in git, and are compared with the code.
//!
//! `make reference` (`WRITE_DOCS=1`) updates those in git.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that cannot go on fails; it starts shells and readers of manuals"
)]

mod completions;
mod generated;
mod keys;
mod manual;
mod roff;
mod shells;

use std::collections::BTreeSet;
use std::path::Path;

use tcptracker::internals::{Effective, Origin, Sources};

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
        "{name} is outdated: run `make reference`; first difference: {:?}",
        first_difference()
    );
}

/// `make install`, and so each package, takes every generated file.
#[test]
fn the_makefile_installs_every_generated_file() {
    let makefile = Path::new(env!("CARGO_MANIFEST_DIR")).join("Makefile");
    let makefile = std::fs::read_to_string(makefile).unwrap();
    let installed: BTreeSet<&str> = makefile
        .lines()
        .filter_map(|line| line.trim().strip_prefix("$(DOCS)/")?.split_once(':'))
        .map(|(name, _)| name)
        .collect();
    let files = generated::files();
    assert_eq!(installed, files.iter().map(|(name, _)| *name).collect());
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
        let sources = Sources::new(None, Some(&file));
        let read = Effective::load(&sources).unwrap();
        assert_eq!(read.config(), defaults.config());
        for (key, _, origin) in read.settings() {
            assert_eq!(matches!(origin, Origin::File(..)), sets_every_key, "{key}");
        }
    }
}
