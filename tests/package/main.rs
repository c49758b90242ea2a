//! What is installed beside the program: the unit, the message catalog, and that all ways to install agree.
//!
//! Asks the programs whose files these are (systemd-analyze, systemd-escape, journalctl) and changes nothing
//! outside a directory of its own. The packages themselves: `make packages`.
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

/// The tree.
fn tree() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file of the tree.
#[track_caller]
fn read(name: &str) -> String {
    std::fs::read_to_string(tree().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// What a program prints, who has to succeed.
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
