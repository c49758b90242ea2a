//! Checks the instances: those on the bus, those that should be, and their metrics.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use zbus::Connection;

use crate::cli::client::{Instance, Purpose, ask_each, instances};
use crate::cli::doctor::Finding;
use crate::cli::interfaces::{listed, start_command};
use crate::cli::units;
use crate::config::{Effective, Sources};
use crate::types::IfName;

/// How long a connection to the metrics port may take. On this host, it takes less than a millisecond.
const PATIENCE: Duration = Duration::from_secs(1);

/// Checks the instances. Their configuration is in `file`, or in the usual files.
pub async fn examine(connection: &Connection, file: Option<&Path>) -> Vec<Finding> {
    let mut findings: Vec<Finding> = units::not_running(connection)
        .await
        .iter()
        .map(|unit| {
            let [problem, remedy] = unit.explain();
            Finding::failed(problem, remedy)
        })
        .collect();
    // An error here means that no instance is running.
    let asked = instances(connection, None, Purpose::Look).await.unwrap_or_default();
    let running: Vec<IfName> = asked.iter().map(|one| one.interface().clone()).collect();
    if running.is_empty() && findings.is_empty() {
        return vec![Finding::warning("none is running", start_command(None)).of("instance")];
    }
    let answers = ask_each(&asked, Instance::state).await;
    let answered = answers.answered.iter().map(|(interface, (state, version))| {
        let found = format!("{interface}: {state}");
        if state == "degraded" {
            let remedy = "`journalctl -t tcptracker -p warning` and /health show the cause";
            return Finding::failed(found, remedy);
        }
        if version != env!("CARGO_PKG_VERSION") {
            let found = format!(
                "{found}; it runs version {version}, but {} is installed",
                env!("CARGO_PKG_VERSION")
            );
            return Finding::warning(found, format!("systemctl restart {}", interface.unit()));
        }
        Finding::ok(found)
    });
    findings.extend(answered);
    findings.extend(answers.failures.iter().map(|error| {
        let remedy = "if it stays that way: systemctl restart 'tcptracker@*'";
        Finding::failed(error.to_string(), remedy)
    }));
    let findings = findings.into_iter().map(|finding| finding.of("instance"));
    findings.chain(metrics(&running, file)).collect()
}

/// Checks the metrics addresses of the running instances, as configured in the files.
fn metrics(running: &[IfName], file: Option<&Path>) -> Vec<Finding> {
    let mut by_address: BTreeMap<SocketAddr, Vec<IfName>> = BTreeMap::new();
    for interface in running {
        let sources = Sources::new(Some(interface), file);
        // An invalid file has a finding of its own.
        let Ok(effective) = Effective::load(&sources) else { continue };
        if let Some(address) = effective.config().metrics.listen {
            by_address.entry(address).or_default().push(interface.clone());
        }
    }
    by_address
        .into_iter()
        .map(|(address, interfaces)| metrics_at(address, &interfaces).of("metrics"))
        .collect()
}

fn metrics_at(address: SocketAddr, interfaces: &[IfName]) -> Finding {
    if let [_, second, ..] = interfaces {
        let found = format!(
            "{} are configured for {address}: only one of them can serve metrics there",
            listed(interfaces)
        );
        let remedy = format!(
            "set another metrics.listen in /etc/tcptracker/{second}.toml, then: systemctl restart {}",
            second.unit()
        );
        return Finding::warning(found, remedy);
    }
    let names = listed(interfaces);
    if TcpStream::connect_timeout(&reachable(address), PATIENCE).is_ok() {
        return Finding::ok(format!("{names}: served on {address}"));
    }
    let found = format!("{names}: not served on {address}, as configured in the files");
    let remedy = "`journalctl -t tcptracker -g metrics` shows the cause";
    Finding::warning(found, remedy)
}

/// Replaces a wildcard address, to which nothing can connect, by loopback.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::cli::doctor::Verdict;

    #[test]
    fn metrics_address_is_checked() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut address = listener.local_addr().unwrap();
        let [eth0, eth1]: [IfName; 2] = ["eth0", "eth1"].map(|name| name.parse().unwrap());
        let served = metrics_at(address, std::slice::from_ref(&eth0));
        assert_eq!(served.found, format!("eth0: served on {address}"));
        let shared = metrics_at(address, &[eth0.clone(), eth1]);
        assert_eq!(shared.result, Verdict::Warning);
        assert!(shared.remedy.unwrap().contains("/etc/tcptracker/eth1.toml"), "{}", shared.found);
        address.set_ip("0.0.0.0".parse().unwrap());
        assert_eq!(metrics_at(address, std::slice::from_ref(&eth0)).result, Verdict::Ok);
        drop(listener);
        assert_eq!(metrics_at(address, &[eth0]).result, Verdict::Warning);
    }
}
