//! The command line interface.
//!
//! Owns exit codes and the printing of errors. All commands but `run`, `config`, `replay` and `doctor`
//! must talk to the running service over D-Bus, and read nothing else of it.

pub mod arguments;
pub mod client;
pub mod config;
pub mod control;
pub mod doctor;
pub mod interfaces;
pub mod list;
pub mod output;
pub mod replay;
pub mod stats;
pub mod table;
pub mod time;
pub mod units;
pub mod watch;
pub mod why;

use std::collections::HashSet;
use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory;

use crate::api::log_output::Stderr;
use crate::cli::arguments::{Arguments, Command};
use crate::cli::client::ClientError;
use crate::config::{ConfigError, Sources};
use crate::service;
use crate::service::DaemonError;
use crate::system::capture::saved::SavedError;
use crate::system::service_manager;
use crate::types::IfName;

const FAILED: u8 = 1;
/// clap exits with the same code.
const USAGE: u8 = 2;
/// The configuration is invalid (`EX_CONFIG`, sysexits.h).
const CONFIGURATION: u8 = 78;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// A request to the service failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A capture file could not be read, or not completely.
    #[error(transparent)]
    Saved(#[from] SavedError),
    /// The service ended with an error.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    #[error(transparent)]
    Configuration(#[from] ConfigError),
    #[error("there is no capture file to replay; write: tcptracker replay FILE")]
    NoFile,
    #[error("cannot write the output: {0}")]
    Output(std::io::Error),
    /// The self-test could not start.
    #[error("{0}")]
    SelfTest(String),
    /// The output has already shown what failed.
    #[error("")]
    Shown,
}

impl CliError {
    /// Prints all failures of several instances but the last, and returns that one.
    fn of_all(mut failures: Vec<ClientError>, asked: usize) -> Result<(), Self> {
        let texts: Vec<String> = failures.iter().map(ToString::to_string).collect();
        for failure in &mut failures {
            let text = failure.to_string();
            if texts.iter().filter(|other| **other == text).count() < asked {
                failure.name_interface();
            }
        }
        let mut shown = HashSet::new();
        failures.retain(|failure| shown.insert(failure.to_string()));
        let Some(last) = failures.pop() else { return Ok(()) };
        for failure in &failures {
            output::print_error(failure);
        }
        Err(last.into())
    }

    const fn exit_code(&self) -> u8 {
        match self {
            Self::Configuration(_)
            | Self::Client(ClientError::Configuration(_))
            | Self::Daemon(DaemonError::Configuration(_) | DaemonError::Memory(_)) => CONFIGURATION,
            Self::NoFile => USAGE,
            _ => FAILED,
        }
    }
}

/// Returns the command definitions, for completions and the manual.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Parses the command line and runs the command.
pub fn main() -> ExitCode {
    let arguments = match arguments::parse(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(error) => {
            // If standard error is closed, there is nowhere to report it.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match handle(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader has closed the pipe, as `head` does.
        Err(CliError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            if let CliError::Daemon(error) = &error {
                // `systemctl status` shows it, and so do other commands when the unit has failed.
                service_manager::status(&error.to_string().replace('\n', "; "));
                // A service must end even if nothing reads its errors.
                output::print_error_to(&mut Stderr, error);
            } else {
                output::print_error(&error);
            }
            ExitCode::from(error.exit_code())
        }
    }
}

fn handle(command: Command) -> Result<(), CliError> {
    match command {
        Command::Run(run) => {
            let sources = sources(Some(&run.interface), run.config.as_deref());
            Ok(service::run(&run.interface, &sources.with_observe(run.observe))?)
        }
        Command::List(select) => list::run(&select),
        Command::Stats(select) => stats::run(&select),
        Command::Why(why) => why::run(&why),
        Command::Watch(select) => watch::run(&select),
        Command::Block(block) => control::block(&block),
        Command::Unblock(unblock) => control::unblock(&unblock),
        Command::Reload(reload) => control::reload(&reload),
        Command::Doctor(doctor) => doctor::run(&doctor, &sources(None, doctor.config.as_deref())),
        Command::Replay(replay) => replay::run(&replay, &sources(None, replay.config.as_deref())),
        Command::Config(show) => {
            let sources = sources(show.interface.as_ref(), show.config.as_deref());
            config::run(&sources.with_observe(show.observe), show.json)
        }
    }
}

fn sources(interface: Option<&IfName>, file: Option<&Path>) -> Sources {
    // A variable that is not UTF-8 cannot be one of tcptracker's.
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    Sources::new(interface, file).with_environment(environment)
}
