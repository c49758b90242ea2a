//! The command line: what a user types, and what comes back.
//!
//! Owns exit codes and the printing of errors. Everything but `run`, `config`, `replay` and `doctor`
//! talks to the running service only, over D-Bus.

pub mod arguments;
pub mod client;
pub mod config;
pub mod control;
pub mod doctor;
pub mod list;
pub mod output;
pub mod replay;
pub mod stats;
pub mod table;
pub mod time;
pub mod usage;
pub mod watch;
pub mod why;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::cli::arguments::{Arguments, Command};
use crate::cli::client::ClientError;
use crate::config::{ConfigError, Flags, Sources};
use crate::service;
use crate::service::DaemonError;
use crate::system::capture::saved::SavedError;
use crate::types::ifname::IfName;

/// Something did not work.
const FAILED: u8 = 1;
/// The command line was wrong.
const USAGE: u8 = 2;
/// The configuration was wrong (`EX_CONFIG`, sysexits.h).
const CONFIGURATION: u8 = 78;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The service did not do it, or is not there.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A capture file could not be read, or not to its end.
    #[error(transparent)]
    Saved(#[from] SavedError),
    /// The service ended.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// The configuration is wrong.
    #[error(transparent)]
    Configuration(#[from] ConfigError),
    /// There is nothing to replay.
    #[error("which capture file? tcptracker replay FILE")]
    NoFile,
    /// Output went nowhere.
    #[error("cannot write the output: {0}")]
    Output(std::io::Error),
    /// The self-test could not begin.
    #[error("{0}")]
    SelfTest(String),
    /// What failed has been shown already.
    #[error("")]
    Shown,
}

impl CliError {
    /// What went wrong with some instances: all is said, and the last decides the exit code.
    fn of_all(mut failures: Vec<ClientError>) -> Result<(), Self> {
        // All say the same where the user may not.
        failures.dedup_by_key(|failure| failure.to_string());
        let Some(last) = failures.pop() else { return Ok(()) };
        for failure in &failures {
            output::say(failure);
        }
        Err(last.into())
    }

    const fn exit_code(&self) -> u8 {
        match self {
            Self::Configuration(_)
            | Self::Client(ClientError::Configuration(_))
            | Self::Daemon(DaemonError::Configuration(_)) => CONFIGURATION,
            Self::NoFile => USAGE,
            _ => FAILED,
        }
    }
}

/// All that may be typed, for completions and the manual.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Reads the command line and does what it says.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage::answer(&error),
    };
    match handle(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output has seen enough.
        Err(CliError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            output::say(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

fn handle(command: Command) -> Result<(), CliError> {
    match command {
        Command::Run(run) => {
            let flags = Flags { observe: run.observe };
            let sources = sources(Some(&run.interface), run.config.as_deref(), flags);
            Ok(service::run(&run.interface, &sources)?)
        }
        Command::List(select) => list::run(&select),
        Command::Stats(select) => stats::run(&select),
        Command::Why(why) => why::run(&why),
        Command::Watch(select) => watch::run(&select),
        Command::Block(block) => control::block(&block),
        Command::Unblock(unblock) => control::unblock(&unblock),
        Command::Reload(reload) => control::reload(&reload),
        Command::Doctor(doctor) => {
            let sources = sources(None, doctor.config.as_deref(), Flags::default());
            doctor::run(&doctor, &sources)
        }
        Command::Replay(replay) => {
            let sources = sources(None, replay.config.as_deref(), Flags::default());
            replay::run(&replay, &sources)
        }
        Command::Config(show) => {
            let flags = Flags { observe: show.observe };
            let sources = sources(show.interface.as_ref(), show.config.as_deref(), flags);
            config::run(&sources, show.json)
        }
    }
}

fn sources(interface: Option<&IfName>, file: Option<&std::path::Path>, flags: Flags) -> Sources {
    // A variable that is not text cannot be one of ours.
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    Sources::new(interface, file, environment, flags)
}
