//! `tcptracker doctor --self-test`: starts, scans and stops the service in namespaces of its own.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;
use std::time::Duration;

use ipnet::IpNet;
use zbus::connection::Builder;

use crate::cli::CliError;
use crate::cli::client::{Instance, Purpose, connect_to, instances};
use crate::cli::doctor::lab;
use crate::cli::doctor::lab::{is_answered, wait_for};
use crate::cli::doctor::{Finding, Verdict, line};
use crate::cli::output::{Style, counted, on_terminal, print_json, print_styled, styled};
use crate::types::Moment;

const SERVICE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const SCANNER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// Another address of the scanner: one that a user has unblocked is not blocked again at once.
const FAST_SCANNER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);

/// The ports that it tries, none of which has a listener.
const FAST_PORTS: Range<u16> = 8000..8300;

/// A port with a listener.
const OPEN: u16 = 7000;

/// Ports without a listener. With the open one, they are as many as a scan needs.
const CLOSED: [u16; 3] = [7001, 7002, 7003];

/// How long to wait before a SYN counts as dropped: its first retransmission comes after 1 s.
const SILENCE: Duration = Duration::from_millis(1300);

/// The length of the block that is left to expire, in seconds.
const SHORT_BLOCK: u64 = 2;

/// What a step has found, or why it has failed.
type Outcome = Result<String, String>;

pub fn run(json: bool) -> Result<(), CliError> {
    if !lab::is_inside() {
        if !rustix::process::geteuid().is_root() {
            let sentence = "the self-test creates namespaces; run it as root: \
                            sudo tcptracker doctor --self-test";
            return Err(CliError::SelfTest(sentence.to_owned()));
        }
        return Err(CliError::SelfTest(lab::enter(json)));
    }
    let mut report = Report { json, findings: Vec::new() };
    let outcome = zbus::block_on(steps(&mut report));
    if json {
        print_json(&report.findings)?;
    }
    match outcome {
        Ok(()) if json || !on_terminal() => Ok(()),
        Ok(()) => print_styled(&format!(
            "\n{}\n",
            styled(Style::Green, "The service works on this machine.")
        )),
        Err(error) => Err(error),
    }
}

/// Prints each step when it is done.
struct Report {
    json: bool,
    findings: Vec<Finding>,
}

impl Report {
    fn step(&mut self, check: &'static str, outcome: Outcome) -> Result<(), CliError> {
        let finding = match outcome {
            Ok(found) => Finding::ok(found).of(check),
            Err(found) => {
                let remedy = "`tcptracker doctor` checks the requirements";
                Finding::failed(found, remedy).of(check)
            }
        };
        if !self.json {
            print_styled(&line(&finding))?;
        }
        let failed = finding.result == Verdict::Failed;
        self.findings.push(finding);
        if failed { Err(CliError::Shown) } else { Ok(()) }
    }
}

async fn steps(report: &mut Report) -> Result<(), CliError> {
    let begun = Moment::now();
    let _bus = match lab::make() {
        Ok(bus) => bus,
        Err(error) => return report.step("namespaces", Err(error)),
    };
    let made = format!("created for a service and a scanner in {}", since(begun));
    report.step("namespaces", Ok(made))?;
    let begun = Moment::now();
    let service = match lab::start_service() {
        Ok(service) => service,
        Err(error) => return report.step("start", Err(error)),
    };
    report.step("start", Ok(format!("ready in {}", since(begun))))?;
    let Ok(_listener) = TcpListener::bind((SERVICE, OPEN)) else {
        return report.step("connect", Err(format!("cannot listen on {SERVICE}")));
    };
    let instance = match instance().await {
        Ok(instance) => instance,
        Err(error) => return report.step("bus", Err(error)),
    };
    report.step("connect", connect())?;
    report.step("detection", detection(&instance).await)?;
    report.step("drop", drops(&instance).await)?;
    report.step("release", release(&instance).await)?;
    report.step("expiry", expiry(&instance).await)?;
    report.step("speed", speed(&instance).await)?;
    let begun = Moment::now();
    let stopped = lab::stop(service).and_then(|()| nothing_left());
    let stopped = stopped.map_err(|error| format!("{error}; {}", lab::last_log_line()));
    let found = |()| format!("stopped in {}; no rule and no chain is left", since(begun));
    report.step("stop", stopped.map(found))
}

async fn instance() -> Result<Instance, String> {
    let explain = |error: crate::cli::client::ClientError| error.to_string();
    let builder = Builder::address(lab::BUS);
    let connection = connect_to(builder).await.map_err(explain)?;
    let mut instances = instances(&connection, None, Purpose::Look).await.map_err(explain)?;
    instances.pop().ok_or_else(|| "the service is not on the bus".to_owned())
}

fn to(port: u16) -> SocketAddr {
    SocketAddr::from((SERVICE, port))
}

fn connect() -> Outcome {
    if is_answered(to(OPEN), lab::PATIENCE)? {
        Ok(format!("port {OPEN} answers {SCANNER}"))
    } else {
        Err(format!("port {OPEN} does not answer {SCANNER}, which has not scanned yet"))
    }
}

async fn detection(instance: &Instance) -> Outcome {
    let [before @ .., last] = CLOSED;
    for port in before {
        is_answered(to(port), lab::PATIENCE)?;
    }
    let begun = Moment::now();
    is_answered(to(last), SILENCE)?;
    await_blocked(instance, true).await?;
    Ok(format!("{SCANNER} was blocked {} after its fourth port", since(begun)))
}

/// Polls the service until the scanner is blocked, or not.
async fn await_blocked(instance: &Instance, wanted: bool) -> Result<(), String> {
    await_block(instance, SCANNER, wanted).await
}

async fn await_block(instance: &Instance, source: Ipv4Addr, wanted: bool) -> Result<(), String> {
    let begun = Moment::now();
    while !Moment::now().is_past(begun, lab::PATIENCE) {
        let blocks = instance.list().await.map_err(|error| error.to_string())?;
        let is_blocked = blocks.iter().any(|(address, ..)| *address == source.to_string());
        if is_blocked == wanted {
            return Ok(());
        }
    }
    let not = if wanted { "not blocked" } else { "still blocked" };
    Err(format!("{source} is {not} after {}", since(begun)))
}

async fn drops(instance: &Instance) -> Outcome {
    if is_answered(to(OPEN), SILENCE)? {
        return Err(format!("{SCANNER} is blocked, but port {OPEN} answers it"));
    }
    let begun = Moment::now();
    let mut dropped = 0;
    while dropped == 0 && !Moment::now().is_past(begun, lab::PATIENCE) {
        let counters = instance.stats().await.map_err(|error| error.to_string())?;
        dropped = counters.get("dropped_packets").copied().unwrap_or(0);
    }
    match dropped {
        0 => Err("the kernel has counted no dropped packets".to_owned()),
        count => Ok(format!("no answer; the kernel has dropped {}", counted(count, "packet"))),
    }
}

async fn release(instance: &Instance) -> Outcome {
    let begun = Moment::now();
    let unblocked = instance.unblock(IpNet::from(std::net::IpAddr::V4(SCANNER))).await;
    if !unblocked.map_err(|error| error.to_string())? {
        return Err(format!("{SCANNER} was no longer blocked"));
    }
    let taken = since(begun);
    if is_answered(to(OPEN), lab::PATIENCE)? {
        Ok(format!("unblocked in {taken}; port {OPEN} answers again"))
    } else {
        Err(format!("{SCANNER} is unblocked, but port {OPEN} does not answer"))
    }
}

async fn expiry(instance: &Instance) -> Outcome {
    let network = IpNet::from(std::net::IpAddr::V4(SCANNER));
    let begun = Moment::now();
    let blocked = instance.block(network, SHORT_BLOCK, "self-test").await;
    blocked.map_err(|error| error.to_string())?;
    let unblocked = wait_for(|| is_answered(to(OPEN), Duration::from_millis(100)).unwrap_or(false));
    unblocked.ok_or_else(|| format!("a block of {SHORT_BLOCK} s has not expired"))?;
    let taken = since(begun);
    await_blocked(instance, false).await?;
    Ok(format!("a block of {SHORT_BLOCK} s expired after {taken}"))
}

/// Measures how soon a fast scan is blocked. How much the scanner learns before depends on the machine, so
/// that it cannot fail.
async fn speed(instance: &Instance) -> Outcome {
    let latency = || lab::metric("tcptracker_block_latency_seconds_sum ");
    let before = latency()?;
    let learned = lab::count_learned(FAST_SCANNER, SERVICE, FAST_PORTS)?;
    await_block(instance, FAST_SCANNER, true).await?;
    let micros = (latency()? - before) * 1e6;
    Ok(format!(
        "{FAST_SCANNER} learned {learned} of {} ports; the kernel blocked it {micros:.0} µs after the probe",
        FAST_PORTS.len()
    ))
}

/// Checks with iptables, independently of the service, that it has removed its rules.
fn nothing_left() -> Result<(), String> {
    let rules = iptables::new(false).and_then(|iptables| iptables.list_table("filter"));
    if rules.map_err(|error| error.to_string())?.iter().any(|rule| rule.contains("tcptracker")) {
        Err("rules were left".to_owned())
    } else {
        Ok(())
    }
}

fn since(begun: Moment) -> String {
    let span = Moment::now().since(begun);
    match span.as_millis() {
        0..10 => format!("{:.1} ms", span.as_secs_f64() * 1e3),
        10..1000 => format!("{} ms", span.as_millis()),
        _ => format!("{:.1} s", span.as_secs_f64()),
    }
}
