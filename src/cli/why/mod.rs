//! `tcptracker why`: the evidence for one address, and what to do about it.

pub mod evidence;

use std::fmt::Write as _;
use std::time::Duration;

use ipnet::IpNet;

use crate::cli::CliError;
use crate::cli::arguments::Why;
use crate::cli::client::{ClientError, Purpose, ask_each, instances};
use crate::cli::output::{Style, on_terminal, print, print_json, styled, width, wrapped};
use crate::cli::table::Table;
use crate::cli::time::{absolute, ago, ahead, exact, now};
use crate::cli::why::evidence::Evidence;
use crate::config::{Effective, Flags, Origin, Sources};
use crate::types::clock::HumanDuration;
use crate::types::ifname::IfName;
use crate::types::network::{parse_network, show_network};

/// Between a label and what it labels.
const LABEL: usize = 9;

/// A terminal is filled no further: longer lines are hard to read.
const WIDEST: usize = 100;

pub fn run(arguments: &Why) -> Result<(), CliError> {
    let (network, select) = (arguments.address, &arguments.select);
    let answers = zbus::block_on(async {
        let instances = instances(select.interface.as_ref(), Purpose::Look).await?;
        Ok::<_, CliError>(ask_each(&instances, async |instance| instance.why(network).await).await)
    })?;
    let known: Vec<Evidence> = answers
        .told
        .into_iter()
        .filter_map(|(interface, told)| Some(Evidence::from_bus(&interface, network, told?)))
        .collect();
    if select.json {
        print_json(&known)?;
    } else if on_terminal() {
        for (at, evidence) in known.iter().enumerate() {
            print(if at > 0 { "\n" } else { "" })?;
            print(&story(evidence, network))?;
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
    CliError::of_all(answers.failures)
}

/// What is so, in a sentence, and the facts below it.
fn story(evidence: &Evidence, network: IpNet) -> String {
    let now = now();
    let (asked, interface) = (show_network(&network), &evidence.interface);
    let address = if asked == evidence.address {
        asked
    } else {
        format!("{asked}, in {},", evidence.address)
    };
    let headline = match (&evidence.exempt, evidence.blocked) {
        (Some(_), _) => format!("{address} is never blocked on {interface}"),
        (None, true) => format!("{address} is blocked on {interface}"),
        (None, false) => format!("{address} is not blocked on {interface}"),
    };
    let style = if evidence.blocked { Style::Red } else { Style::Green };
    let mut text = styled(style, &headline) + "\n\n";
    let mut fact = |label: &str, what: Option<String>| {
        let Some(what) = what.filter(|what| !what.is_empty()) else { return };
        let room = width().min(WIDEST).saturating_sub(LABEL + 2).max(20);
        for (at, line) in wrapped(&what, room).into_iter().enumerate() {
            let label =
                styled(Style::Dim, &format!("{:<LABEL$}", if at == 0 { label } else { "" }));
            let _ = writeln!(text, "  {label}{line}");
        }
    };
    let clock = |time: u64, relative: String| format!("{} ({relative})", absolute(time));
    fact("exempt", evidence.exempt.clone());
    fact("reason", evidence.reason.clone());
    fact("rule", evidence.rule.clone());
    fact("since", evidence.since.filter(|_| evidence.blocked).map(|at| clock(at, ago(at, now))));
    fact(
        "until",
        evidence.blocked.then(|| match evidence.until {
            Some(at) => clock(at, ahead(at, now)),
            None => "unblocked by hand".to_owned(),
        }),
    );
    fact(
        "offence",
        match (evidence.offences, evidence.blocked) {
            (0, _) => None,
            (count, true) => Some(ordinal(count)),
            (count, false) => Some(format!("{count} so far")),
        },
    );
    fact(
        "dropped",
        evidence.dropped.map(|count| match count {
            0 => "nothing yet".to_owned(),
            1 => "1 packet since".to_owned(),
            count => format!("{count} packets since"),
        }),
    );
    fact(
        "grace",
        evidence.grace_until.map(|at| {
            format!("unblocked by hand; not blocked again before {}", clock(at, ahead(at, now)))
        }),
    );
    fact("decoy", evidence.decoy.then(|| {
        "others tried the same ports at the same time: some of them, this one perhaps, may be forged"
            .to_owned()
    }));
    text
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

/// To the millisecond, while that matters.
fn short(span: Duration) -> String {
    match span.as_secs() {
        0 => format!("{:.1} ms", span.as_secs_f64() * 1e3),
        1..60 => format!("{:.1} s", span.as_secs_f64()),
        seconds => HumanDuration(Duration::from_secs(seconds)).to_string(),
    }
}

/// What to type.
fn advice(evidence: &Evidence, network: IpNet) -> String {
    let mut text = String::new();
    if evidence.exempt.is_some() {
        return text;
    }
    if evidence.blocked {
        let _ =
            writeln!(text, "\nLet it in again:\n  sudo tcptracker unblock {}", evidence.address);
    }
    let (file, networks) = exempt_now(&evidence.interface);
    let mut networks: Vec<String> = networks.iter().map(show_network).collect();
    networks.push(parse_network(&evidence.address).map_or(evidence.address.clone(), |blocked| {
        // Of a blocked network, only who was asked for.
        show_network(if blocked.contains(&network) { &network } else { &blocked })
    }));
    let networks: Vec<String> = networks.iter().map(|one| format!("{one:?}")).collect();
    let _ = write!(
        text,
        "\nNever block it: in {file}\n  [exempt]\n  networks = [{}]\nand then:\n  sudo systemctl reload {}\n",
        networks.join(", "),
        evidence.interface.unit(),
    );
    text
}

/// Who is exempt by the configuration now, and the file in which that stands or would.
fn exempt_now(interface: &IfName) -> (String, Vec<IpNet>) {
    let usual = || (format!("{}/tcptracker.toml", crate::config::layers::DIRECTORY), Vec::new());
    let sources = Sources::new(Some(interface), None, [], Flags::default());
    let Ok(effective) = Effective::load(&sources) else { return usual() };
    let origin = effective.settings().find(|(key, ..)| *key == "exempt.networks");
    match origin.map(|(.., origin)| origin.clone()) {
        Some(Origin::File(file, _)) => {
            (file.display().to_string(), effective.config.exempt.networks)
        }
        _ => usual(),
    }
}

/// For programs without JSON: a fact a line.
fn lines(evidence: &Evidence) -> String {
    let Ok(serde_json::Value::Object(facts)) = serde_json::to_value(evidence) else {
        return String::new();
    };
    let mut text = String::new();
    for (name, value) in &facts {
        match value {
            serde_json::Value::Null | serde_json::Value::Array(_) => {}
            serde_json::Value::String(value) => {
                let _ = writeln!(text, "{name}\t{value}");
            }
            value if matches!(name.as_str(), "since" | "until" | "grace_until") => {
                let time = value.as_u64().map(absolute).unwrap_or_default();
                let _ = writeln!(text, "{name}\t{time}");
            }
            value => {
                let _ = writeln!(text, "{name}\t{value}");
            }
        }
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
    fn numbers_and_units_read_well() {
        for (count, text) in
            [(1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (22, "22nd")]
        {
            assert_eq!(ordinal(count), text);
        }
        assert_eq!(short(Duration::from_millis(12)), "12.0 ms");
        assert_eq!(short(Duration::from_millis(2340)), "2.3 s");
        assert_eq!(short(Duration::from_secs(180)), "3m");
    }
}
