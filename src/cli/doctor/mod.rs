//! `tcptracker doctor`: checks what the service needs, and suggests fixes.
//!
//! Must not change anything; `--self-test` works in namespaces of its own.

pub mod bus;
pub mod configuration;
pub mod instances;
pub mod lab;
pub mod scheduling;
pub mod self_test;
pub mod system;

use serde::Serialize;

use crate::cli::CliError;
use crate::cli::arguments::Doctor;
use crate::cli::output::{
    Style, counted, on_terminal, print_json, print_styled, styled, width, wrapped,
};
use crate::config::Sources;
use crate::types::printable;

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// The service runs, but something needs attention.
    Warning,
    /// The service cannot run, or cannot block.
    Failed,
    /// This user may not check it.
    Unknown,
}

/// The finding of a check, in the JSON output. Its keys are stable.
#[derive(Serialize)]
pub struct Finding {
    check: &'static str,
    result: Verdict,
    found: String,
    /// What to do. None if no action is needed.
    remedy: Option<String>,
}

impl Finding {
    fn ok(found: impl Into<String>) -> Self {
        Self { check: "", result: Verdict::Ok, found: found.into(), remedy: None }
    }

    fn bad(result: Verdict, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check: "", result, found: found.into(), remedy: Some(remedy.into()) }
    }

    fn failed(found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::bad(Verdict::Failed, found, remedy)
    }

    fn warning(found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::bad(Verdict::Warning, found, remedy)
    }

    fn unknown() -> Self {
        let (found, remedy) = if rustix::process::geteuid().is_root() {
            ("cannot be checked without these capabilities", "add them, and check again")
        } else {
            ("only root can check this", "sudo tcptracker doctor")
        };
        Self::bad(Verdict::Unknown, found, remedy)
    }

    fn of(self, check: &'static str) -> Self {
        Self { check, ..self }
    }
}

pub fn run(arguments: &Doctor, sources: &Sources) -> Result<(), CliError> {
    if arguments.self_test {
        return self_test::run(arguments.json);
    }
    let (findings, config) = configuration::examine(sources);
    let findings = findings.into_iter().map(|finding| finding.of("configuration"));
    let mut findings: Vec<Finding> = findings.collect();
    findings.extend(system::examine(&config));
    findings.push(scheduling::examine().of("scheduling"));
    findings.extend(bus::examine(&config, arguments.config.as_deref()));
    if arguments.json {
        print_json(&findings)?;
    } else {
        for finding in &findings {
            print_styled(&line(finding))?;
        }
        print_styled(&summary(&findings))?;
    }
    let has_failed = findings.iter().any(|finding| finding.result == Verdict::Failed);
    if has_failed { Err(CliError::Shown) } else { Ok(()) }
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
        let remedy = printable(finding.remedy.as_deref().unwrap_or_default());
        let found = finding.found.replace('\n', "; ");
        return format!("{word}\t{}\t{}\t{remedy}\n", finding.check, printable(&found));
    }
    let indent = CHECK_WIDTH + RESULT_WIDTH;
    let room = width().saturating_sub(indent).max(20);
    let head = format!("{word:<RESULT_WIDTH$}");
    let mut head = format!("{}{:<CHECK_WIDTH$}", styled(style, &head), finding.check);
    let mut text = String::new();
    for part in finding.found.lines().flat_map(|line| wrapped(&printable(line), room)) {
        text += &format!("{head}{part}\n");
        head = " ".repeat(indent);
    }
    let remedy = wrapped(&printable(finding.remedy.as_deref().unwrap_or_default()), room - 3);
    let mut arrow = "-> ";
    for part in remedy.iter().filter(|part| !part.is_empty()) {
        text += &format!("{head}{}\n", styled(Style::Bold, &format!("{arrow}{part}")));
        arrow = "   ";
    }
    text
}

fn summary(findings: &[Finding]) -> String {
    if !on_terminal() {
        return String::new();
    }
    let count =
        |verdict| findings.iter().map(|finding| u64::from(finding.result == verdict)).sum::<u64>();
    let (failed, unknown) = (count(Verdict::Failed), count(Verdict::Unknown));
    let text = match (failed, unknown) {
        (0, 0) => styled(Style::Green, "No check has failed."),
        (0, _) => {
            "No check has failed; run `sudo tcptracker doctor` for the unknown ones.".to_owned()
        }
        _ => styled(Style::Red, &format!("{} failed.", counted(failed, "check"))),
    };
    format!("\n{text}\n")
}
