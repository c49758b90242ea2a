//! `tcptracker doctor`: whether what the service needs is there, and how to mend what is not.
//!
//! Looks only; `--self-test` tries it all out where it can do no harm.

pub mod bus;
pub mod configuration;
pub mod lab;
pub mod self_test;
pub mod system;

use serde::Serialize;

use crate::cli::CliError;
use crate::cli::arguments::Doctor;
use crate::cli::output::{Style, on_terminal, print, print_json, styled, width, wrapped};
use crate::config::Sources;

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// The service runs without, but somebody should know.
    Warning,
    /// The service cannot do its work.
    Failed,
    /// Not to be seen by this user.
    Unknown,
}

/// What a check has found. The keys stay as they are.
#[derive(Serialize)]
pub struct Finding {
    check: &'static str,
    result: Verdict,
    found: String,
    /// What to do about it.
    remedy: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, result: Verdict::Ok, found: found.into(), remedy: None }
    }

    fn bad(
        check: &'static str,
        result: Verdict,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { check, result, found: found.into(), remedy: Some(remedy.into()) }
    }

    fn failed(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::bad(check, Verdict::Failed, found, remedy)
    }

    fn warning(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::bad(check, Verdict::Warning, found, remedy)
    }

    fn not_seen(check: &'static str) -> Self {
        let (found, remedy) = if rustix::process::geteuid().is_root() {
            ("cannot be seen without these privileges", "give them, and look again")
        } else {
            ("cannot be seen without root", "sudo tcptracker doctor")
        };
        Self::bad(check, Verdict::Unknown, found, remedy)
    }
}

pub fn run(arguments: &Doctor, sources: &Sources) -> Result<(), CliError> {
    if arguments.self_test {
        return self_test::run(arguments.json);
    }
    let (mut findings, config) = configuration::examine(sources);
    findings.extend(system::examine(&config));
    findings.extend(bus::examine(&config));
    if arguments.json {
        print_json(&findings)?;
    } else {
        for finding in &findings {
            print(&line(finding))?;
        }
        print(&summary(&findings))?;
    }
    let sound = findings.iter().all(|finding| finding.result != Verdict::Failed);
    if sound { Ok(()) } else { Err(CliError::Shown) }
}

const CHECK_WIDTH: usize = 14;
const RESULT_WIDTH: usize = 9;

fn line(finding: &Finding) -> String {
    let (word, style) = match finding.result {
        Verdict::Ok => ("ok", Style::Green),
        Verdict::Warning => ("warning", Style::Yellow),
        Verdict::Failed => ("FAILED", Style::Red),
        Verdict::Unknown => ("unknown", Style::Dim),
    };
    if !on_terminal() {
        let remedy = finding.remedy.as_deref().unwrap_or_default();
        let found = finding.found.replace('\n', "; ");
        return format!("{word}\t{}\t{found}\t{remedy}\n", finding.check);
    }
    let indent = CHECK_WIDTH + RESULT_WIDTH;
    let room = width().saturating_sub(indent).max(20);
    let mut text = String::new();
    let head = format!(
        "{}{:<CHECK_WIDTH$}",
        styled(style, &format!("{word:<RESULT_WIDTH$}")),
        finding.check
    );
    let found = finding.found.lines().flat_map(|line| wrapped(line, room));
    for (at, part) in found.enumerate() {
        let before = if at == 0 { head.clone() } else { " ".repeat(indent) };
        text.push_str(&format!("{before}{part}\n"));
    }
    for (at, part) in wrapped(finding.remedy.as_deref().unwrap_or_default(), room.saturating_sub(3))
        .iter()
        .enumerate()
    {
        if !part.is_empty() {
            let arrow = if at == 0 { "-> " } else { "   " };
            text.push_str(&format!(
                "{}{}\n",
                " ".repeat(indent),
                styled(Style::Bold, &format!("{arrow}{part}"))
            ));
        }
    }
    text
}

fn summary(findings: &[Finding]) -> String {
    if !on_terminal() {
        return String::new();
    }
    let count = |verdict| findings.iter().filter(|finding| finding.result == verdict).count();
    match (count(Verdict::Failed), count(Verdict::Unknown)) {
        (0, 0) => format!("\n{}\n", styled(Style::Green, "The service has what it needs.")),
        (0, _) => "\nNothing is missing as far as this user can see.\n".to_owned(),
        (1, _) => format!("\n{}\n", styled(Style::Red, "One thing has to be mended.")),
        (count, _) => {
            format!("\n{}\n", styled(Style::Red, &format!("{count} things have to be mended.")))
        }
    }
}
