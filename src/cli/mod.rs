//! The command line: what a user types, and what comes back.
//!
//! Owns arguments, exit codes and the printing of errors. Everything but `run` and `config` talks to
//! the running service, over D-Bus only.

mod client;
mod config;
mod control;
mod list;
mod output;
mod replay;
mod stats;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;

use crate::capture::SavedError;
use crate::config::{ConfigError, Flags, Per, PrefixLength, Sources, Span, Threshold, WindowSpan};
use crate::daemon::{self, DaemonError};
use crate::interface::InterfaceName;
use crate::network::{InvalidAddress, parse_network};
use client::ClientError;

/// Something did not work.
const FAILED: u8 = 1;
/// The command line was wrong; clap's own code as well.
const USAGE: u8 = 2;
/// The configuration was wrong (`EX_CONFIG`, sysexits.h).
const CONFIGURATION: u8 = 78;

/// Sees TCP connection attempts, recognises port scans, drops the scanner in the kernel.
#[derive(Parser)]
#[command(name = "tcptracker", version, max_term_width = 100, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Watch an interface and block scanners, in the foreground (what the service unit starts)
    Run(Run),
    /// List what is blocked
    List(Select),
    /// Show what was counted since the start
    Stats(Select),
    /// Block an address or network by hand
    Block(Block),
    /// Let an address or network in again
    Unblock(Unblock),
    /// Show what the detector would have done on a capture file
    Replay(Replay),
    /// Show the effective configuration and where each value comes from
    Config(ShowConfig),
}

#[derive(Args)]
struct Run {
    /// The network interface to watch, or "any"
    #[arg(short, long)]
    interface: InterfaceName,
    /// Report scans, never block
    #[arg(long)]
    observe: bool,
    /// Read this file instead of those in /etc/tcptracker
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Args)]
struct Select {
    /// Only the instance on this network interface
    #[arg(short, long)]
    interface: Option<InterfaceName>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Block {
    /// An address, or a network such as 192.0.2.0/24
    address: String,
    /// For how long, such as 30m, 1h or 7d; without it, until unblocked
    #[arg(long = "for", value_name = "TIME", value_parser = length_of_time)]
    duration: Option<Duration>,
    /// Why: shown wherever the block is
    #[arg(long, default_value = "by hand")]
    reason: String,
    /// Only through the instance on this network interface
    #[arg(short, long)]
    interface: Option<InterfaceName>,
}

#[derive(Args)]
struct Unblock {
    /// An address, or a network such as 192.0.2.0/24
    #[arg(required_unless_present = "all")]
    address: Option<String>,
    /// Everything that is blocked
    #[arg(long, conflicts_with = "address")]
    all: bool,
    /// Only by the instance on this network interface
    #[arg(short, long)]
    interface: Option<InterfaceName>,
}

#[derive(Args)]
struct Replay {
    /// Capture files (pcap or pcapng, plain or gzip), each on its own; "-" is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Put thresholds side by side
    #[arg(long, value_name = "PORTS,...", value_delimiter = ',', value_parser = threshold)]
    compare: Option<Vec<Threshold>>,
    /// More than this many distinct ports make a scan (detection.ports)
    #[arg(long, value_parser = threshold, conflicts_with = "compare")]
    ports: Option<Threshold>,
    /// Within this time (detection.window)
    #[arg(long, value_name = "TIME", value_parser = window)]
    window: Option<WindowSpan>,
    /// Count per source, or per source and destination (detection.per)
    #[arg(long, value_enum)]
    per: Option<PerArgument>,
    /// Count IPv6 sources as networks of this length (detection.ipv6_prefix)
    #[arg(long, value_name = "LENGTH", value_parser = prefix_length)]
    ipv6_prefix: Option<PrefixLength>,
    /// An own address or network: what it sends is outbound. May be given several times
    #[arg(long, value_name = "NET", value_parser = address)]
    local: Vec<IpNet>,
    /// Read this file instead of those in /etc/tcptracker
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
}

/// As `detection.per`.
#[derive(Clone, Copy, clap::ValueEnum)]
enum PerArgument {
    Source,
    Pair,
}

impl From<PerArgument> for Per {
    fn from(argument: PerArgument) -> Self {
        match argument {
            PerArgument::Source => Self::Source,
            PerArgument::Pair => Self::Pair,
        }
    }
}

#[derive(Args)]
struct ShowConfig {
    /// As it is for this network interface
    #[arg(short, long)]
    interface: Option<InterfaceName>,
    /// Read this file instead of those in /etc/tcptracker
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum CliError {
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
    /// Output went nowhere.
    #[error("cannot write the output: {0}")]
    Output(std::io::Error),
}

impl CliError {
    const fn exit_code(&self) -> u8 {
        match self {
            Self::Configuration(_) | Self::Daemon(DaemonError::Configuration(_)) => CONFIGURATION,
            Self::Client(ClientError::InvalidAddress(_)) => USAGE,
            Self::Client(_) | Self::Saved(_) | Self::Daemon(_) | Self::Output(_) => FAILED,
        }
    }
}

/// Reads the command line and does what it says.
pub fn main() -> ExitCode {
    match carry_out(Arguments::parse().command) {
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

fn carry_out(command: Command) -> Result<(), CliError> {
    match command {
        Command::Run(run) => {
            let flags = Flags { observe: run.observe };
            let sources = sources(Some(&run.interface), run.config.as_deref(), flags);
            Ok(daemon::run(&run.interface, &sources)?)
        }
        Command::List(select) => list::run(select.interface.as_ref(), select.json),
        Command::Stats(select) => stats::run(select.interface.as_ref(), select.json),
        Command::Block(block) => control::block(&block),
        Command::Unblock(unblock) => control::unblock(&unblock),
        Command::Replay(replay) => {
            let sources = sources(None, replay.config.as_deref(), Flags::default());
            replay::run(&replay, &sources)
        }
        Command::Config(show) => {
            let sources =
                sources(show.interface.as_ref(), show.config.as_deref(), Flags::default());
            config::run(&sources, show.json)
        }
    }
}

fn sources(
    interface: Option<&InterfaceName>,
    file: Option<&std::path::Path>,
    flags: Flags,
) -> Sources {
    // A variable that is not text cannot be one of ours.
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    Sources::new(interface, file, environment, flags)
}

fn address(text: &str) -> Result<IpNet, InvalidAddress> {
    parse_network(text)
}

fn threshold(text: &str) -> Result<Threshold, String> {
    number(text)
}

fn prefix_length(text: &str) -> Result<PrefixLength, String> {
    number(text)
}

fn number<T: TryFrom<u64, Error = &'static str>>(text: &str) -> Result<T, String> {
    let expected = |what: &str| format!("expected {what}");
    T::try_from(text.parse().unwrap_or(u64::MAX)).map_err(expected)
}

fn window(text: &str) -> Result<WindowSpan, String> {
    let expected = "expected a length of time from 1s to 1d, such as 60s";
    Span::try_from(text.to_owned())
        .ok()
        .and_then(|span| WindowSpan::try_from(span).ok())
        .ok_or_else(|| expected.to_owned())
}

fn length_of_time(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration >= Duration::from_secs(1) => Ok(duration),
        _ => Err("expected a length of time of at least 1s, such as 30m, 1h or 7d".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }
}
