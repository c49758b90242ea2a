//! How far a source is from a block: the reply of `Pending`, and what is printed of it.
//!
//! `tcptracker replay --why` prints the same.

use std::collections::HashMap;
use std::time::Duration;

use ipnet::IpNet;
use serde::Serialize;
use zbus::OwnedVariant;

use crate::cli::CliError;
use crate::cli::arguments::Why;
use crate::cli::client::{Purpose, ask};
use crate::cli::output::{Style, counted, on_terminal, print, print_json, styled};
use crate::cli::table::Table;
use crate::cli::time::exact;
use crate::cli::why::evidence::Reply;
use crate::types::{IfName, Pending, printable, show_network};

/// How far a source is from a block. Its keys are stable; times are Unix seconds.
#[derive(Serialize)]
pub struct Explained {
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<IfName>,
    address: String,
    rules: Vec<RuleProgress>,
    failures: Vec<Failure>,
}

/// How close a source has come to a rule.
#[derive(Serialize)]
struct RuleProgress {
    rule: String,
    /// The host whose ports count. Null: the host itself, or all hosts.
    host: Option<String>,
    /// The ports that count now.
    count: u32,
    threshold: u32,
    window: u64,
}

/// A failure, and whether it counts.
#[derive(Serialize)]
struct Failure {
    host: Option<String>,
    port: u16,
    time: f64,
    outcome: String,
    decision: String,
}

pub fn run(arguments: &Why) -> Result<(), CliError> {
    let (network, select) = (arguments.address, &arguments.select);
    let only = select.interface.as_ref();
    let answers = ask(only, Purpose::Look, async |instance| instance.pending(network).await)?;
    let all: Vec<Explained> = answers
        .answered
        .into_iter()
        .map(|(interface, reply)| Explained::from_bus(interface, network, reply))
        .collect();
    if select.json {
        print_json(&all)?;
    } else {
        all.iter().try_for_each(Explained::print)?;
    }
    CliError::of_all(answers.failures, answers.asked)
}

impl Explained {
    fn from_bus(interface: IfName, asked: IpNet, reply: HashMap<String, OwnedVariant>) -> Self {
        let mut reply = Reply(reply);
        let mut texts = |key| reply.take::<Vec<String>>(key).unwrap_or_default().into_iter();
        let (rules, rule_hosts) = (texts("rules"), texts("rule_hosts"));
        let (hosts, outcomes, decisions) = (texts("hosts"), texts("outcomes"), texts("decisions"));
        let mut numbers = |key| reply.take::<Vec<u32>>(key).unwrap_or_default().into_iter();
        let (counts, thresholds) = (numbers("counts"), numbers("thresholds"));
        let windows = reply.take::<Vec<u64>>("windows").unwrap_or_default().into_iter();
        let ports = reply.take::<Vec<u16>>("ports").unwrap_or_default().into_iter();
        let times = reply.take::<Vec<f64>>("times").unwrap_or_default().into_iter();
        let host = |host: String| Some(host).filter(|host| !host.is_empty());
        let rules = rules.zip(rule_hosts).zip(counts.zip(thresholds).zip(windows)).map(
            |((rule, of), ((count, threshold), window))| RuleProgress {
                rule,
                host: host(of),
                count,
                threshold,
                window,
            },
        );
        let failures = hosts.zip(ports.zip(times)).zip(outcomes.zip(decisions)).map(
            |((of, (port, time)), (outcome, decision))| Failure {
                host: host(of),
                port,
                time,
                outcome,
                decision,
            },
        );
        Self {
            interface: Some(interface),
            address: show_network(&asked),
            rules: rules.collect(),
            failures: failures.collect(),
        }
    }

    /// Makes an explanation of a replay, in which moments are Unix times.
    pub fn of_replay(source: IpNet, pending: &Pending) -> Self {
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let seconds = |nanos| Duration::from_nanos(nanos).as_secs_f64();
        let rules = pending.progress.iter().map(|progress| RuleProgress {
            rule: progress.rule.sentence(progress.threshold, progress.span),
            host: progress.host.map(|host| host.to_string()),
            count: number(progress.count),
            threshold: number(progress.threshold),
            window: progress.span.as_secs(),
        });
        let failures = pending.failures.iter().map(|judged| Failure {
            host: judged.host.map(|host| host.to_string()),
            port: judged.attempt.port.0,
            time: seconds(judged.attempt.moment.as_nanos()),
            outcome: judged.attempt.outcome.as_str().to_owned(),
            decision: judged.decision.as_str().to_owned(),
        });
        Self {
            interface: None,
            address: show_network(&source),
            rules: rules.collect(),
            failures: failures.collect(),
        }
    }

    /// Prints a table on a terminal, and otherwise a fact per line.
    pub fn print(&self) -> Result<(), CliError> {
        if !on_terminal() {
            return print(&self.lines());
        }
        print(&styled(Style::Bold, &printable(&format!("{}\n", self.headline()))))?;
        for progress in &self.rules {
            print(&printable(&format!("  {}\n", progress.sentence())))?;
        }
        let mut table = Table::new(["HOST", "PORT", "TIME", "OUTCOME", "DECISION"]);
        for Failure { host, port, time, outcome, decision } in &self.failures {
            let host = host.clone().unwrap_or_default();
            table.row(vec![
                host,
                port.to_string(),
                exact(*time),
                outcome.clone(),
                decision.clone(),
            ]);
        }
        if self.failures.is_empty() { Ok(()) } else { table.print() }
    }

    fn headline(&self) -> String {
        let on = self.interface.as_ref().map_or_else(String::new, |on| format!(" on {on}"));
        let missing = self.rules.iter().map(RuleProgress::missing).min();
        match missing {
            None => format!("no failure of {} counts{on}", self.address),
            Some(0) => format!("{} exceeds a rule{on}", self.address),
            Some(more) => {
                let ports = counted(more.into(), "more port");
                format!("{} is {ports} away from a block{on}", self.address)
            }
        }
    }

    fn lines(&self) -> String {
        let mut lines = vec![format!("pending\t{}", self.headline())];
        lines.extend(self.rules.iter().map(|progress| format!("rule\t{}", progress.sentence())));
        lines.extend(self.failures.iter().map(|failure| {
            let Failure { host, port, time, outcome, decision } = failure;
            let host = host.as_deref().unwrap_or("-");
            format!("failure\t{host}\t{port}\t{}\t{outcome}\t{decision}", exact(*time))
        }));
        lines.join("\n") + "\n"
    }
}

impl RuleProgress {
    fn missing(&self) -> u32 {
        (self.threshold + 1).saturating_sub(self.count)
    }

    fn sentence(&self) -> String {
        let Self { rule, host, count, threshold, .. } = self;
        let of_host = host.as_ref().map_or_else(String::new, |host| format!(" on {host}"));
        format!("{count} of {}{of_host}: {rule}", threshold + 1)
    }
}
