//! Writes the completions and the man pages from the command definitions: `make docs`.
//!
//! Runs at build time only and is in no package. The texts are made by the modules that
//! `tests/docs` checks.
#![forbid(unsafe_code)]

#[path = "../../tests/docs/completions.rs"]
mod completions;
#[path = "../../tests/docs/generated.rs"]
mod generated;
#[expect(dead_code, reason = "only the tests need the commented configuration and the table")]
#[path = "../../tests/docs/keys.rs"]
mod keys;
#[path = "../../tests/docs/manual.rs"]
mod manual;
#[path = "../../tests/docs/roff.rs"]
mod roff;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(directory), None) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: generate-docs DIRECTORY");
        return ExitCode::from(2);
    };
    match generated::write(Path::new(&directory)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot write {}: {error}", directory.display());
            ExitCode::FAILURE
        }
    }
}
