//! What is wrong with a command line, in a sentence as all others.
//!
//! Owns how clap's errors look. Help and version stay as clap has them.

use std::error::Error;
use std::process::ExitCode;

use clap::error::ErrorKind;

use crate::cli::{USAGE, output};

/// Says it, or shows the help that was asked for.
pub fn answer(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // To whom nothing can be printed nothing can be said either.
            let _ = error.print();
            if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS }
        }
        _ => {
            output::say(&sentence(error));
            ExitCode::from(USAGE)
        }
    }
}

/// clap writes paragraphs: what is wrong, perhaps what was meant, perhaps what would be right.
fn sentence(error: &clap::Error) -> String {
    // What begins with the wrong text says all.
    let own = error.source().map(ToString::to_string).filter(|own| own.starts_with('"'));
    if let Some(own) = own {
        return own;
    }
    let text = error.render().to_string();
    let mut paragraphs = text
        .split("\n\n")
        .map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "));
    let first = paragraphs.next().unwrap_or_default();
    let wrong = first.strip_prefix("error: ").unwrap_or(&first).to_owned();
    let advice = paragraphs.find_map(|paragraph| {
        let tip = paragraph.strip_prefix("tip: ").map(str::to_owned);
        tip.or_else(|| paragraph.strip_prefix("Usage: ").map(|right| format!("write: {right}")))
    });
    match advice {
        Some(advice) => format!("{wrong}; {advice}"),
        None => wrong,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::arguments::Arguments;

    #[test]
    fn a_wrong_command_line_is_told_in_one_sentence() {
        for (line, told) in [
            (
                "block 10.0.0.300",
                "\"10.0.0.300\" is neither an address nor a network; write 192.0.2.7, 192.0.2.0/24 or \
                 2001:db8::/32",
            ),
            (
                "block 10.0.0.1 --for 1x",
                "invalid value '1x' for '--for <TIME>': expected a length of time of at least 1s, such as \
                 30m, 1h or 7d",
            ),
            (
                "unblock",
                "the following required arguments were not provided: <ADDRESS|--all>; write: tcptracker \
                 unblock <ADDRESS|--all>",
            ),
            ("lst", "unrecognized subcommand 'lst'; a similar subcommand exists: 'list'"),
            (
                "list --jsn",
                "unexpected argument '--jsn' found; a similar argument exists: '--json'",
            ),
            ("list all", "unexpected argument 'all' found; write: tcptracker list [OPTIONS]"),
            (
                "replay --per host x",
                "invalid value 'host' for '--per <PER>' [possible values: source, pair]",
            ),
        ] {
            let words = std::iter::once("tcptracker").chain(line.split(' '));
            let Err(error) = Arguments::try_parse_from(words) else { panic!("{line} is taken") };
            assert_eq!(sentence(&error), told, "{line}");
        }
    }
}
