//! tcptracker(1): the commands from their help texts, and the other sections from files.

use clap::{Arg, ArgAction, Command};
use tcptracker::internals::COUNTERS;

use crate::roff::{bold, broken, capital, italic, marked, plain, title};

pub(crate) fn page() -> String {
    let command = tcptracker::cli::command();
    let mut page = title("TCPTRACKER", 1, "User Commands");
    page.push_str(include_str!("manual.head.roff"));
    page.push_str(".SH COMMANDS\n");
    for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        page.push_str(&section(command));
    }
    let rest = include_str!("manual.tail.roff");
    let at = rest.find(".SH ENVIRONMENT").unwrap();
    page.push_str(&rest[..at]);
    page.push_str(&counters());
    page.push_str(&rest[at..]);
    broken(&page)
}

fn counters() -> String {
    let mut text =
        ".SH COUNTERS\nThe values that \\fBstats\\fR shows.\nCounters start at 0 when the service starts.\n".to_owned();
    for (name, meaning) in COUNTERS {
        text.push_str(&format!(".TP\n{}\n{}.\n", bold(name), marked(&capital(meaning))));
    }
    text
}

fn section(command: &Command) -> String {
    let about = command.get_long_about().or_else(|| command.get_about());
    let about = about.map(ToString::to_string).unwrap_or_default();
    let arguments: Vec<&Arg> =
        command.get_arguments().filter(|argument| argument.get_id() != "help").collect();
    let synopsis: Vec<String> = arguments.iter().map(|argument| usage(argument)).collect();
    let name = command.get_name();
    let mut text = format!(".SS {} {}\n", plain(name), synopsis.join(" "));
    for (at, paragraph) in about.split("\n\n").enumerate() {
        let full_stop = if paragraph.ends_with('.') { "" } else { "." };
        text.push_str(if at > 0 { ".PP\n" } else { "" });
        text.push_str(&format!("{}{full_stop}\n", marked(&paragraph.replace('\n', " "))));
    }
    for argument in arguments {
        text.push_str(&format!(".TP\n{}\n{}.\n", term(argument), help(argument)));
    }
    text
}

fn value(argument: &Arg) -> Option<String> {
    let takes_value = matches!(argument.get_action(), ArgAction::Set | ArgAction::Append);
    let named = argument.get_value_names().and_then(|names| names.first());
    takes_value.then(|| {
        named.map_or_else(|| argument.get_id().as_str().to_uppercase(), ToString::to_string)
    })
}

fn repetition(argument: &Arg) -> &'static str {
    if matches!(argument.get_action(), ArgAction::Append) && argument.is_positional() {
        "..."
    } else {
        ""
    }
}

fn usage(argument: &Arg) -> String {
    let value = value(argument);
    let text = match (argument.get_long(), &value) {
        (Some(long), None) => bold(&format!("--{long}")),
        (Some(long), Some(value)) => format!("{} {}", bold(&format!("--{long}")), italic(value)),
        (None, value) => italic(value.as_deref().unwrap_or_default()),
    };
    let text = format!("{text}{}", repetition(argument));
    if argument.is_required_set() { text } else { format!("[{text}]") }
}

fn term(argument: &Arg) -> String {
    let short = argument.get_short().map(|short| bold(&format!("-{short}")));
    let long = argument.get_long().map(|long| bold(&format!("--{long}")));
    let names: Vec<String> = short.into_iter().chain(long).collect();
    let value = value(argument).map(|value| italic(&value));
    let names = (!names.is_empty()).then(|| names.join(", "));
    names.into_iter().chain(value).collect::<Vec<_>>().join(" ")
}

fn help(argument: &Arg) -> String {
    let text = argument.get_help().map(ToString::to_string).unwrap_or_default();
    let mut text = marked(&text.replace('\n', " "));
    let possible: Vec<String> =
        argument.get_possible_values().iter().map(|value| bold(value.get_name())).collect();
    if value(argument).is_some() && !possible.is_empty() {
        text.push_str(&format!(": {}", possible.join(" or ")));
    }
    text
}
