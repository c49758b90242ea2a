//! `tcptracker why`: why an address is blocked or not, and what to do about it.

pub mod evidence;
pub mod exempt;
pub mod pending;

use std::fmt::Write as _;
use std::time::Duration;

use ipnet::IpNet;

use crate::cli::CliError;
use crate::cli::arguments::Why;
use crate::cli::client::{ClientError, Purpose, ask};
use crate::cli::output::{
    Style, counted, on_terminal, print, print_json, print_styled, styled, width, wrapped,
};
use crate::cli::table::Table;
use crate::cli::time::{absolute, ago, ahead, exact, now, short};
use crate::cli::why::evidence::Evidence;
use crate::types::{parse_network, printable, show_network};

/// The width of the labels.
const LABEL: usize = 9;

/// The maximum line width: longer lines are hard to read.
const WIDEST: usize = 100;

pub fn run(arguments: &Why) -> Result<(), CliError> {
    if arguments.pending {
        return pending::run(arguments);
    }
    let (network, select) = (arguments.address, &arguments.select);
    let only = select.interface.as_ref();
    let answers = ask(only, Purpose::Look, async |instance| instance.why(network).await)?;
    let known: Vec<Evidence> = answers
        .answered
        .into_iter()
        .filter_map(|(interface, answer)| Some(Evidence::from_bus(&interface, network, answer?)))
        .collect();
    if select.json {
        print_json(&known)?;
    } else if on_terminal() {
        for (at, evidence) in known.iter().enumerate() {
            print(if at > 0 { "\n" } else { "" })?;
            print_styled(&summary(evidence, network))?;
            if !evidence.probes.is_empty() {
                print("\n")?;
                probes(evidence).print()?;
            }
            print(&advice(evidence, network))?;
        }
    } else {
        known.iter().try_for_each(|evidence| print(&lines(evidence)))?;
    }
    if known.is_empty() && answers.failures.is_empty() {
        return Err(ClientError::NothingKnown(network).into());
    }
    CliError::of_all(answers.failures, answers.asked)
}

/// Returns the headline and the facts below it.
fn summary(evidence: &Evidence, network: IpNet) -> String {
    let (asked, interface) = (show_network(&network), &evidence.interface);
    let address = if asked == evidence.address {
        asked
    } else {
        format!("{asked}, in {},", evidence.address)
    };
    let state = match (&evidence.exempt, evidence.blocked) {
        (Some(_), _) => "never blocked",
        (None, true) => "blocked",
        (None, false) => "not blocked",
    };
    let style = if evidence.blocked { Style::Red } else { Style::Green };
    let headline = format!("{address} is {state} on {interface}");
    let mut text = styled(style, &printable(&headline)) + "\n\n";
    let room = width().min(WIDEST).saturating_sub(LABEL + 2).max(20);
    for (label, fact) in facts(evidence) {
        for (at, line) in wrapped(&printable(&fact), room).into_iter().enumerate() {
            let label = if at == 0 { label } else { "" };
            let label = styled(Style::Dim, &format!("{label:<LABEL$}"));
            let _ = writeln!(text, "  {label}{line}");
        }
    }
    text
}

/// Returns what is known, each with its label.
fn facts(evidence: &Evidence) -> Vec<(&'static str, String)> {
    let now = now();
    let both = |time: u64, relative: String| format!("{} ({relative})", absolute(time));
    let since = evidence.since.filter(|_| evidence.blocked);
    let until = evidence.blocked.then(|| match evidence.until {
        Some(until) => both(until, ahead(until, now)),
        None => "unblocked".to_owned(),
    });
    let offence = match (evidence.offences, evidence.blocked) {
        (0, _) => None,
        (count, true) => Some(ordinal(count)),
        (count, false) => Some(format!("{count} so far")),
    };
    let dropped = evidence.dropped.map(|count| match count {
        0 => "nothing yet".to_owned(),
        count => format!("{} so far", counted(count, "packet")),
    });
    let grace = evidence.grace_until.map(|until| {
        format!("unblocked manually; no automatic block before {}", both(until, ahead(until, now)))
    });
    let decoy = evidence
        .decoy
        .then(|| "possible decoy: other sources tried the same ports at the same time".to_owned());
    let facts = [
        ("exempt", evidence.exempt.clone()),
        ("reason", evidence.reason.clone()),
        ("rule", evidence.rule.clone()),
        ("since", since.map(|since| both(since, ago(since, now)))),
        ("until", until),
        ("offence", offence),
        ("dropped", dropped),
        ("grace", grace),
        ("decoy", decoy),
    ];
    let known = facts.into_iter().filter_map(|(label, fact)| Some((label, fact?)));
    known.filter(|(_, fact)| !fact.is_empty()).collect()
}

fn ordinal(count: u32) -> String {
    let ending = match (count % 10, count % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    };
    format!("{count}{ending}")
}

fn probes(evidence: &Evidence) -> Table {
    let outcomes = evidence.probes.iter().any(|probe| probe.outcome.is_some());
    let mut heading = vec!["PORT", "TIME", "AFTER"];
    if outcomes {
        heading.push("OUTCOME");
    }
    let mut table = Table::new(heading);
    let first = evidence.probes.first().map_or(0.0, |probe| probe.time);
    for probe in &evidence.probes {
        let after = Duration::try_from_secs_f64(probe.time - first).unwrap_or_default();
        let mut cells = vec![probe.port.to_string(), exact(probe.time), short(after)];
        if outcomes {
            cells.push(probe.outcome.clone().unwrap_or_default());
        }
        table.row(cells);
    }
    table
}

/// Returns the commands that unblock the address and exempt it.
fn advice(evidence: &Evidence, network: IpNet) -> String {
    if evidence.exempt.is_some() {
        return String::new();
    }
    let mut text = String::new();
    if evidence.blocked {
        let _ = writeln!(text, "\nUnblock it:\n  sudo tcptracker unblock {}", evidence.address);
    }
    // If a network is blocked, exempt only the address that was asked for.
    let exempt = match parse_network(&evidence.address) {
        Ok(blocked) if blocked.contains(&network) => network,
        Ok(blocked) => blocked,
        Err(_) => network,
    };
    text + &exempt::instructions(&evidence.interface, &show_network(&exempt))
}

/// Returns the output for a pipe: one fact per line.
fn lines(evidence: &Evidence) -> String {
    let Ok(serde_json::Value::Object(facts)) = serde_json::to_value(evidence) else {
        return String::new();
    };
    let mut text = String::new();
    for (name, value) in &facts {
        let value = match (name.as_str(), value) {
            (_, serde_json::Value::Null | serde_json::Value::Array(_)) => continue,
            (_, serde_json::Value::String(value)) => value.clone(),
            ("since" | "until" | "grace_until", value) => {
                value.as_u64().map(absolute).unwrap_or_default()
            }
            (_, value) => value.to_string(),
        };
        let _ = writeln!(text, "{name}\t{value}");
    }
    for probe in &evidence.probes {
        let outcome = probe.outcome.as_deref().unwrap_or("unknown");
        let _ = writeln!(text, "probe\t{}\t{}\t{outcome}", probe.port, exact(probe.time));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinals_have_their_ending() {
        for (count, text) in
            [(1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (22, "22nd")]
        {
            assert_eq!(ordinal(count), text);
        }
    }
}
