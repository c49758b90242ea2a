//! The command line: commands, their arguments and their help texts.
//!
//! Owns these texts; the completions and tcptracker(1) are generated from them. Must not run anything.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgGroup, Args, Parser, Subcommand, ValueHint};
use ipnet::IpNet;
use serde::de::{DeserializeOwned, IntoDeserializer, value};

use crate::cli::interfaces::default_interface;
use crate::config::{BlockDuration, Per, PrefixLength, Preset, Threshold, WindowSpan};
use crate::types::{IfName, parse_network, printable};

/// Detects TCP port scans and blocks the scanner in the kernel.
#[derive(Parser)]
#[command(name = "tcptracker", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "Start the service with `systemctl enable --now tcptracker@eth0`. \
                        See tcptracker(1) and tcptracker.toml(5).")]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Watch an interface and block scanners, in the foreground
    ///
    /// The service unit runs this command. It runs until SIGTERM or SIGINT (Ctrl-C), and then removes
    /// its firewall rules. SIGHUP reloads the configuration.
    Run(Run),
    /// List the blocked addresses
    ///
    /// Shows when each block started, when it ends, its offence and its reason. If several instances
    /// run, all are listed, with a column for the interface.
    List(Select),
    /// Show the counters since the service started
    ///
    /// enforced and dropped_packets are as of the last check of the firewall, usually less than a second
    /// ago. `tcptracker why` asks the kernel, so it may show more packets.
    Stats(Select),
    /// Show why an address is blocked or not, and how to unblock it
    ///
    /// Shows the probes, the rule, when the block started and when it ends, how many packets the
    /// kernel has dropped since, and the commands that unblock the address and exempt it.
    Why(Why),
    /// Show scans, blocks and unblocks as they happen
    ///
    /// Waits for the service if it does not run yet, and continues after a restart. Ctrl-C ends it.
    Watch(Select),
    /// Block addresses or networks
    ///
    /// Requires root, membership in group tcptracker, or polkit authorization.
    #[command(alias = "ban")]
    Block(Block),
    /// Unblock addresses or networks
    ///
    /// Requires root, membership in group tcptracker, or polkit authorization. The address is exempt
    /// from automatic blocking for block.grace_after_unblock.
    #[command(alias = "unban")]
    Unblock(Unblock),
    /// Reload the configuration of the running service
    ///
    /// The same as `systemctl reload tcptracker@eth0`. No packet and no block is lost. An invalid
    /// configuration changes nothing and is reported here.
    Reload(Reload),
    /// Show what the detector would have reported on capture files
    ///
    /// Needs no privileges and no running service.
    Replay(Replay),
    /// Check the configuration, and show each value and its origin
    ///
    /// The exit status is 78 if the configuration is invalid.
    Config(ShowConfig),
    /// Check the system and suggest fixes
    ///
    /// Run as root; checks that need privileges are skipped otherwise. With --self-test, the service
    /// is started and scanned in two temporary network namespaces; the host's own network and
    /// firewall are not touched.
    Doctor(Doctor),
}

#[derive(Args)]
pub struct Run {
    /// The network interface to watch, or "any"
    #[arg(short, long, value_hint = ValueHint::Other)]
    pub interface: IfName,
    /// Report scans without blocking
    #[arg(long)]
    pub observe: bool,
    /// Read this file instead of the files in /etc/tcptracker
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
    #[arg(value_parser = parse_network, value_hint = ValueHint::Other)]
    pub address: IpNet,
    /// Explain how far the address is from a block: which of its failures count, and which do not
    #[arg(long)]
    pub pending: bool,
    #[command(flatten)]
    pub select: Select,
}

#[derive(Args)]
pub struct Block {
    /// Addresses, or networks such as 192.0.2.0/24
    #[arg(value_name = "ADDRESS", required = true, value_parser = parse_network, value_hint = ValueHint::Other)]
    pub addresses: Vec<IpNet>,
    /// How long, such as 30m, 1h or 7d, or forever (the default): until unblocked
    #[arg(long = "for", value_name = "TIME", default_value = "forever", hide_default_value = true,
        value_parser = duration::<BlockDuration>,
        value_hint = ValueHint::Other)]
    pub duration: BlockDuration,
    /// The reason, which is shown wherever the block is shown
    #[arg(long, value_name = "TEXT", default_value = "manual", value_hint = ValueHint::Other)]
    pub reason: String,
    /// Only the instance on this network interface
    #[arg(short, long, value_hint = ValueHint::Other)]
    pub interface: Option<IfName>,
}

#[derive(Args)]
#[command(group(ArgGroup::new("target").args(["addresses", "all"]).required(true)))]
pub struct Unblock {
    /// Addresses, or networks such as 192.0.2.0/24
    #[arg(value_name = "ADDRESS", value_parser = parse_network, value_hint = ValueHint::Other)]
    pub addresses: Vec<IpNet>,
    /// All blocked addresses
    #[arg(long)]
    pub all: bool,
    /// Only the instance on this network interface
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
    /// Capture files (pcap or pcapng, plain or gzip), each replayed separately; "-" is standard input
    #[arg(required_unless_present = "compare", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub files: Vec<PathBuf>,
    /// Explain how close this source came to a block: which of its failures counted, and which did not
    #[arg(long, value_name = "ADDRESS", value_parser = parse_network, conflicts_with = "compare",
        value_hint = ValueHint::Other)]
    pub why: Option<IpNet>,
    /// Use the rules of this preset (detection.preset)
    #[arg(long, value_parser = one_of::<Preset>(&["classic", "balanced"]))]
    pub preset: Option<Preset>,
    /// Compare thresholds of the classic rule; without a list, compare the presets
    #[arg(long, value_name = "PORTS,...", num_args = 0..=1, default_missing_value = "",
        hide_default_value = true, value_parser = compared)]
    pub compare: Option<Compared>,
    /// Report a scan at more than this many distinct ports (detection.ports)
    #[arg(long, value_parser = number::<Threshold>, conflicts_with = "compare", value_hint = ValueHint::Other)]
    pub ports: Option<Threshold>,
    /// Count the ports within this time (detection.window)
    #[arg(long, value_name = "TIME", value_parser = duration::<WindowSpan>, value_hint = ValueHint::Other)]
    pub window: Option<WindowSpan>,
    /// Count per source, or per source and destination (detection.per)
    #[arg(long, value_parser = one_of::<Per>(&["source", "pair"]))]
    pub per: Option<Per>,
    /// Count IPv6 sources as networks of this length (detection.ipv6_prefix)
    #[arg(long, value_name = "LENGTH", value_parser = number::<PrefixLength>, value_hint = ValueHint::Other)]
    pub ipv6_prefix: Option<PrefixLength>,
    /// An address or network of the captured host, whose probes are outbound (repeatable)
    #[arg(long, value_name = "NET", value_parser = parse_network, value_hint = ValueHint::Other)]
    pub local: Vec<IpNet>,
    /// Read this file instead of the files in /etc/tcptracker
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Print JSON, one object per line
    #[arg(long)]
    pub json: bool,
}

/// The value of `--compare`.
#[derive(Clone, Debug)]
pub enum Compared {
    Presets,
    Thresholds(Vec<Threshold>),
    /// `--compare` has no value, and the next word is the first capture file.
    File(PathBuf),
}

#[derive(Args)]
pub struct ShowConfig {
    /// Show the configuration for this network interface
    #[arg(short, long, value_hint = ValueHint::Other)]
    pub interface: Option<IfName>,
    /// Show the configuration with `run --observe`
    #[arg(long)]
    pub observe: bool,
    /// Read this file instead of the files in /etc/tcptracker
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct Doctor {
    /// Test detection, blocking, unblocking and expiry in temporary network namespaces (as root)
    #[arg(long)]
    pub self_test: bool,
    /// Read this file instead of the files in /etc/tcptracker
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Reads a word as the configuration does.
fn one_of<T: DeserializeOwned + Clone + Send + Sync + 'static>(
    words: &'static [&'static str],
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(words)
        .try_map(|word| T::deserialize(IntoDeserializer::<value::Error>::into_deserializer(word)))
}

fn compared(text: &str) -> Result<Compared, String> {
    if text.is_empty() {
        return Ok(Compared::Presets);
    }
    let is_list = text.starts_with(|c: char| c.is_ascii_digit()) && !Path::new(text).exists();
    if !is_list {
        return Ok(Compared::File(text.into()));
    }
    text.split(',').map(number).collect::<Result<_, _>>().map(Compared::Thresholds)
}

fn number<T: TryFrom<u64, Error = &'static str>>(text: &str) -> Result<T, String> {
    T::try_from(text.parse().unwrap_or(u64::MAX)).map_err(|what| format!("expected {what}"))
}

fn duration<T: TryFrom<String, Error = &'static str>>(text: &str) -> Result<T, String> {
    if text.parse::<u64>().is_ok() {
        return Err(format!("the unit is missing: write {text}s, {text}m, {text}h or {text}d"));
    }
    T::try_from(text.to_owned()).map_err(|what| format!("expected {what}"))
}

/// Parses the command line.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Arguments, clap::Error> {
    let words = interface_after_command(words.into_iter().collect());
    Arguments::try_parse_from(words).map_err(|error| with_hint(printable_error(error)))
}

/// Escapes the words of the user that an error quotes: they may come from a script.
fn printable_error(mut error: clap::Error) -> clap::Error {
    let quoted = error.context().filter_map(|(kind, value)| match value {
        ContextValue::String(text) => Some((kind, printable(text).into_owned())),
        _ => None,
    });
    for (kind, text) in quoted.collect::<Vec<_>>() {
        error.insert(kind, ContextValue::String(text));
    }
    error
}

/// Moves an `-i eth0` in front of the command to the end: users of other tools type it there.
fn interface_after_command(mut words: Vec<OsString>) -> Vec<OsString> {
    let is_option = |word: &OsString| word == "-i" || word == "--interface";
    if words.get(1).is_some_and(is_option) && words.len() > 3 {
        // "--" ends the options.
        let end = words.iter().position(|word| word == "--").unwrap_or(words.len());
        words[1..end].rotate_left(2);
    }
    words
}

/// Adds a hint for a command of other tools that clap cannot guess.
fn with_hint(mut error: clap::Error) -> clap::Error {
    let is_status = matches!(
        error.get(ContextKind::InvalidSubcommand),
        Some(ContextValue::String(command)) if command == "status"
    );
    let hint = match error.kind() {
        ErrorKind::InvalidSubcommand if is_status => {
            let example =
                default_interface().map_or_else(|| "INTERFACE".to_owned(), |name| name.unit());
            format!(
                "`tcptracker list`, `stats` and `why` show blocks and counters, `systemctl status {example}` \
                 shows the service"
            )
        }
        ErrorKind::InvalidSubcommand if error.get(ContextKind::SuggestedSubcommand).is_none() => {
            "`tcptracker --help` lists the commands".to_owned()
        }
        _ => return error,
    };
    error.remove(ContextKind::SuggestedSubcommand);
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![hint.into()]));
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Arguments, clap::Error> {
        parse(line.split(' ').map(OsString::from))
    }

    fn error_of(line: &str) -> String {
        let Err(error) = parsed(line) else { panic!("{line} is accepted") };
        assert_eq!(error.exit_code(), 2, "{line}");
        error.render().to_string()
    }

    #[test]
    fn command_definitions_are_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }

    #[test]
    fn usage_errors_say_what_to_type() {
        for (line, expected) in [
            ("tcptracker block 10.0.0.300", "write 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32"),
            ("tcptracker block 10.0.0.1 --for 1x", "from 1s to 100y, such as 30m, 1h or 7d"),
            ("tcptracker block 10.0.0.1 --for 5", "the unit is missing: write 5s, 5m, 5h or 5d"),
            ("tcptracker block 10.0.0.1 --for 0s", "from 1s to 100y"),
            ("tcptracker block 10.0.0.1 --for 101y", "from 1s to 100y"),
            ("tcptracker replay --window 60 x", "the unit is missing: write 60s, 60m"),
            ("tcptracker unblock", "Usage: tcptracker unblock <ADDRESS|--all>"),
            ("tcptracker lst", "a similar subcommand exists: 'list'"),
            ("tcptracker frobnicate", "`tcptracker --help` lists the commands"),
            ("tcptracker status", "`tcptracker list`, `stats` and `why` show blocks and counters"),
            ("tcptracker list --jsn", "a similar argument exists: '--json'"),
            ("tcptracker list all", "Usage: tcptracker list [OPTIONS]"),
            ("tcptracker replay --per host x", "[possible values: source, pair]"),
        ] {
            let error = error_of(line);
            assert!(error.contains(expected), "{line}: {error}");
        }
        assert!(
            !error_of("tcptracker status").contains("stats'"),
            "{}",
            error_of("tcptracker status")
        );
    }

    #[test]
    fn usage_errors_quote_safely() {
        for line in [
            "tcptracker x\u{1b}[31m",
            "tcptracker why x\u{1b}[31m",
            "tcptracker list --x\u{1b}[31m",
        ] {
            assert!(!error_of(line).contains('\u{1b}'), "{:?}", error_of(line));
        }
    }

    #[test]
    fn interface_may_precede_the_command() {
        let Ok(Arguments { command: Command::List(select) }) =
            parsed("tcptracker -i eth0 list --json")
        else {
            panic!("not accepted")
        };
        assert_eq!((select.interface.unwrap().as_str(), select.json), ("eth0", true));
        let Ok(Arguments { command: Command::Unblock(unblock) }) =
            parsed("tcptracker --interface eth1 unban 192.0.2.1 192.0.2.2")
        else {
            panic!("not accepted")
        };
        assert_eq!((unblock.interface.unwrap().as_str(), unblock.addresses.len()), ("eth1", 2));
        assert!(parsed("tcptracker -i eth0 run").is_ok());
        assert!(error_of("tcptracker -i eth0").contains("--help"));
        assert!(error_of("tcptracker -i eth0 replay x").contains("unexpected argument '-i'"));
    }

    #[test]
    fn block_is_also_called_ban_and_takes_forever() {
        for (line, duration) in [
            ("tcptracker ban 192.0.2.1 --for 1h", Some(3600)),
            ("tcptracker block 192.0.2.1 --for forever", None),
            ("tcptracker block 192.0.2.1", None),
        ] {
            let Ok(Arguments { command: Command::Block(block) }) = parsed(line) else {
                panic!("{line} is not accepted")
            };
            assert_eq!(block.duration.get().map(|duration| duration.as_secs()), duration, "{line}");
        }
    }
}
