//! Installed files: the unit, the message catalog, and the targets `install` and `uninstall`.
//!
//! The tests use systemd-analyze, systemd-escape and journalctl, and change nothing outside a
//! temporary directory. `make packages` checks the packages themselves.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that cannot go on fails; it starts the programs it asks"
)]

mod catalog;
mod installed;
mod unit;

use std::path::Path;
use std::process::Command;

/// The root of the repository.
fn tree() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Reads a file of the repository.
#[track_caller]
fn read(name: &str) -> String {
    std::fs::read_to_string(tree().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Runs a program that must succeed and returns its output.
#[track_caller]
fn output(command: &mut Command) -> String {
    let program = command.get_program().display().to_string();
    let output = command.output().unwrap_or_else(|error| {
        panic!("cannot run {program}: {error}; `make test-deps` installs it")
    });
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{program}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}
