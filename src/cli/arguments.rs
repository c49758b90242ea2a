//! What may be typed: commands, their arguments and their help.
//!
//! Owns the words; completions and tcptracker(1) are made from them. Does nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueHint};
use ipnet::IpNet;

use crate::config::{Per, PrefixLength, Preset, Span, Threshold, WindowSpan};
use crate::types::ifname::IfName;
use crate::types::network::{InvalidAddress, parse_network};

/// Sees TCP connection attempts, recognises port scans, drops the scanner in the kernel.
#[derive(Parser)]
#[command(name = "tcptracker", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "The service is started with `systemctl enable --now tcptracker@eth0`; \
                        see tcptracker(1), tcptracker.toml(5).")]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Watch an interface and block scanners, in the foreground (what the service unit starts)
    ///
    /// Runs until SIGTERM or SIGINT (Ctrl-C), and takes its firewall rules down. SIGHUP reads the
    /// configuration again.
    Run(Run),
    /// List what is blocked
    ///
    /// Every block with its beginning, its end, the offence it is for, and the reason. Where several
    /// instances run, all are listed, with a column for the interface.
    List(Select),
    /// Show what was counted since the start
    Stats(Select),
    /// Show why an address is blocked, or not, and how to let it in
    ///
    /// The probes that were seen, the rule they broke, since when and until when the address is
    /// blocked, what the kernel has dropped since, and what to type to let it in and to keep it in.
    Why(Why),
    /// Show scans, blocks and unblocks as they happen
    ///
    /// Goes on when the service restarts, and waits for it when it does not run yet. Ctrl-C ends it.
    Watch(Select),
    /// Block an address or network by hand
    ///
    /// For root, members of group tcptracker, and whom polkit authorises.
    Block(Block),
    /// Let an address or network in again
    ///
    /// For root, members of group tcptracker, and whom polkit authorises. It is not blocked again for a
    /// while, whatever it does (block.grace_after_unblock), except by hand.
    Unblock(Unblock),
    /// Make the running service read its configuration again
    ///
    /// What `systemctl reload tcptracker@eth0` does. No packet and no block is lost; a wrong
    /// configuration changes nothing, and is told here.
    Reload(Reload),
    /// Show what the detector would have done on a capture file
    ///
    /// Needs neither privilege nor a running service.
    Replay(Replay),
    /// Show the effective configuration and where each value comes from
    Config(ShowConfig),
    /// Check what the service needs, and say how to mend what fails
    ///
    /// Best run as root: what cannot be seen otherwise is not checked, and said so. With --self-test
    /// two throw-away network namespaces are made, the service is started in one and scanned from the
    /// other; this host's network and firewall are left alone.
    Doctor(Doctor),
}

#[derive(Args)]
pub struct Run {
    /// The network interface to watch, or "any"
    #[arg(short, long, value_hint = ValueHint::Other)]
    pub interface: IfName,
    /// Report scans, never block
    #[arg(long)]
    pub observe: bool,
    /// Read this file instead of those in /etc/tcptracker
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
}

#[derive(Args)]
pub struct Select {
    /// Only the instance on this network interface
    #[arg(short, long, value_hint = ValueHint::Other)]
    pub interface: Option<IfName>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct Why {
    /// An address, or a network such as 192.0.2.0/24
    #[arg(value_parser = address, value_hint = ValueHint::Other)]
    pub address: IpNet,
    #[command(flatten)]
    pub select: Select,
}

#[derive(Args)]
pub struct Block {
    /// An address, or a network such as 192.0.2.0/24
    #[arg(value_parser = address, value_hint = ValueHint::Other)]
    pub address: IpNet,
    /// For how long, such as 30m, 1h or 7d; without it, until unblocked
    #[arg(long = "for", value_name = "TIME", value_parser = length_of_time, value_hint = ValueHint::Other)]
    pub duration: Option<Duration>,
    /// Why: shown wherever the block is
    #[arg(long, value_name = "TEXT", default_value = "by hand", value_hint = ValueHint::Other)]
    pub reason: String,
    /// Only through the instance on this network interface
    #[arg(short, long, value_hint = ValueHint::Other)]
    pub interface: Option<IfName>,
}

#[derive(Args)]
#[command(group(ArgGroup::new("whom").args(["address", "all"]).required(true)))]
pub struct Unblock {
    /// An address, or a network such as 192.0.2.0/24
    #[arg(value_parser = address, value_hint = ValueHint::Other)]
    pub address: Option<IpNet>,
    /// Everything that is blocked
    #[arg(long)]
    pub all: bool,
    /// Only by the instance on this network interface
    #[arg(short, long, value_hint = ValueHint::Other)]
    pub interface: Option<IfName>,
}

#[derive(Args)]
pub struct Reload {
    /// Only the instance on this network interface
    #[arg(short, long, value_hint = ValueHint::Other)]
    pub interface: Option<IfName>,
}

#[derive(Args)]
pub struct Replay {
    /// Capture files (pcap or pcapng, plain or gzip), each on its own; "-" is standard input
    #[arg(required_unless_present = "compare", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub files: Vec<PathBuf>,
    /// By this preset's rules (detection.preset)
    #[arg(long, value_enum)]
    pub preset: Option<PresetArgument>,
    /// Put thresholds of the classic rule side by side, or without any the presets
    #[arg(long, value_name = "PORTS,...", num_args = 0..=1, default_missing_value = "",
        hide_default_value = true, value_parser = compared)]
    pub compare: Option<Compared>,
    /// More than this many distinct ports make a scan (detection.ports)
    #[arg(long, value_parser = threshold, conflicts_with = "compare", value_hint = ValueHint::Other)]
    pub ports: Option<Threshold>,
    /// Within this time (detection.window)
    #[arg(long, value_name = "TIME", value_parser = window, value_hint = ValueHint::Other)]
    pub window: Option<WindowSpan>,
    /// Count per source, or per source and destination (detection.per)
    #[arg(long, value_enum)]
    pub per: Option<PerArgument>,
    /// Count IPv6 sources as networks of this length (detection.ipv6_prefix)
    #[arg(long, value_name = "LENGTH", value_parser = prefix_length, value_hint = ValueHint::Other)]
    pub ipv6_prefix: Option<PrefixLength>,
    /// An own address or network: what it sends is outbound. May be given several times
    #[arg(long, value_name = "NET", value_parser = address, value_hint = ValueHint::Other)]
    pub local: Vec<IpNet>,
    /// Read this file instead of those in /etc/tcptracker
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Print JSON, one object a line
    #[arg(long)]
    pub json: bool,
}

/// What follows `--compare`.
#[derive(Clone, Debug)]
pub enum Compared {
    /// Nothing.
    Presets,
    /// These thresholds.
    Thresholds(Vec<Threshold>),
    /// Nothing that belongs to it: the first file.
    File(PathBuf),
}

/// As `detection.preset`.
#[derive(Clone, Copy, clap::ValueEnum)]
pub enum PresetArgument {
    Classic,
    Balanced,
}

impl From<PresetArgument> for Preset {
    fn from(argument: PresetArgument) -> Self {
        match argument {
            PresetArgument::Classic => Self::Classic,
            PresetArgument::Balanced => Self::Balanced,
        }
    }
}

/// As `detection.per`.
#[derive(Clone, Copy, clap::ValueEnum)]
pub enum PerArgument {
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
pub struct ShowConfig {
    /// As it is for this network interface
    #[arg(short, long, value_hint = ValueHint::Other)]
    pub interface: Option<IfName>,
    /// As it is with `run --observe`
    #[arg(long)]
    pub observe: bool,
    /// Read this file instead of those in /etc/tcptracker
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct Doctor {
    /// Show detection, drop, release and expiry in throw-away network namespaces (as root)
    #[arg(long)]
    pub self_test: bool,
    /// Read this file instead of those in /etc/tcptracker
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

fn address(text: &str) -> Result<IpNet, InvalidAddress> {
    parse_network(text)
}

fn compared(text: &str) -> Result<Compared, String> {
    if text.is_empty() {
        return Ok(Compared::Presets);
    }
    let is_list = text.starts_with(|c: char| c.is_ascii_digit()) && !Path::new(text).exists();
    if !is_list {
        return Ok(Compared::File(text.into()));
    }
    text.split(',').map(threshold).collect::<Result<_, _>>().map(Compared::Thresholds)
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
