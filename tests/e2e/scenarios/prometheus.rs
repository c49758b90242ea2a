//! Monitoring with a real Prometheus: metrics, the shipped alert rules and the shipped dashboard.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::lab::{ATTACKER, Lab, VICTIM};
use crate::prometheus::Prometheus;
use crate::service::Service;
use crate::tools::await_that;

/// Metric names that scripts and dashboards rely on.
const CONTRACT: [&str; 16] = [
    "tcptracker_new_connections",
    "tcptracker_connections_total",
    "tcptracker_scans_total",
    "tcptracker_blocks_total",
    "tcptracker_unblocks_total",
    "tcptracker_blocked",
    "tcptracker_enforced",
    "tcptracker_dropped_packets_total",
    "tcptracker_sources",
    "tcptracker_sources_evicted_total",
    "tcptracker_capture_packets_total",
    "tcptracker_capture_dropped_total",
    "tcptracker_capture_gap_seconds_total",
    "tcptracker_block_latency_seconds",
    "tcptracker_state",
    "tcptracker_build_info",
];

fn start_and_scan(lab: &Lab) -> Service {
    let mut service = lab.start();
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line(&format!("WARN blocked {ATTACKER}"));
    service
}

#[test]
fn scan_is_scraped_and_degraded_state_fires_an_alert() {
    let lab = Lab::new();
    let mut service = lab.start();
    let prometheus = Prometheus::start(&lab);
    prometheus.await_value(r#"up{job="tcptracker", interface="eth0"}"#, 1.0);
    prometheus.await_value(r#"tcptracker_state{state="enforcing"}"#, 1.0);
    prometheus.await_value("tcptracker_scans_total{kind=\"vertical\"}", 0.0);

    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line(&format!("WARN blocked {ATTACKER}"));
    prometheus.await_value(r#"tcptracker_scans_total{kind="vertical"}"#, 1.0);
    prometheus.await_value(r#"tcptracker_blocks_total{cause="scan"}"#, 1.0);
    prometheus.await_value(r#"tcptracker_enforced{family="ipv4"}"#, 1.0);
    prometheus.await_value("tcptracker_block_latency_seconds_count", 1.0);
    await_that("no alert while healthy", || prometheus.alerts().is_empty());

    lab.victim.ip("link set eth0 down");
    let degraded = || prometheus.alerts().iter().any(|alert| alert == "TcptrackerDegraded");
    await_that("an alert while degraded", degraded);
    lab.victim.ip("link set eth0 up");
    await_that("no alert after recovery", || prometheus.alerts().is_empty());

    assert_eq!(service.stop().code(), Some(0));
    await_that("an alert after the stop", || prometheus.alerts() == ["TcptrackerDown"]);
}

/// Every shipped expression has a value, and every metric appears in at least one expression.
#[test]
fn dashboard_and_alerts_use_every_metric_and_no_unknown_one() {
    let lab = Lab::new();
    let mut service = start_and_scan(&lab);
    let prometheus = Prometheus::start(&lab);
    let (_, text) = lab.victim.http_get(8081, "/metrics");
    let exported: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    for name in CONTRACT {
        assert!(exported.contains(name), "{name} is not exported");
    }

    let mut shown = BTreeSet::new();
    for expression in panel_expressions() {
        // A rate needs two scrapes, and is empty if a scrape came too late.
        let has_value = || !prometheus.values(&expression).is_empty();
        await_that(&format!("{expression} has a value"), has_value);
        shown.extend(names_in(&expression, &exported));
    }
    for rule in alert_rules(&prometheus) {
        assert_eq!(rule["health"], "ok", "{rule}");
        let used = names_in(rule["query"].as_str().unwrap(), &exported);
        // TcptrackerDown uses only `up`.
        assert!(!used.is_empty() || rule["name"] == "TcptrackerDown", "{rule}");
        shown.extend(used);
        for annotation in ["summary", "description"] {
            assert!(rule["annotations"][annotation].is_string(), "no {annotation}: {rule}");
        }
    }
    let hidden: Vec<_> = exported.difference(&shown).collect();
    assert_eq!(hidden, Vec::<&&str>::new(), "metrics in no panel and no alert");
    assert_eq!(service.stop().code(), Some(0));
}

fn alert_rules(prometheus: &Prometheus) -> Vec<Value> {
    // Wait until Prometheus has evaluated every rule at least once.
    let mut rules = Vec::new();
    await_that("all rules are evaluated", || {
        let data = prometheus.query_api("rules", "");
        rules.clone_from(data["groups"][0]["rules"].as_array().unwrap());
        rules.iter().all(|rule| rule["health"] != "unknown")
    });
    assert!(rules.len() > 10, "{rules:?}");
    rules
}

/// Returns the metrics in an expression and fails if one is not exported.
#[track_caller]
fn names_in<'a>(expression: &str, exported: &BTreeSet<&'a str>) -> Vec<&'a str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words.filter(|word| ["tcptracker_", "process_"].iter().any(|p| word.starts_with(p)));
    let exported_as = |word: &str| {
        let parts = ["", "_bucket", "_sum", "_count"];
        let names = parts.iter().filter_map(|part| exported.get(word.strip_suffix(part)?));
        names.copied().next()
    };
    ours.map(|word| exported_as(word).unwrap_or_else(|| panic!("no {word}: {expression}")))
        .collect()
}

fn dashboard() -> Value {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/grafana/tcptracker.json");
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

/// The dashboard's expressions, with Grafana's variables filled in.
fn panel_expressions() -> Vec<String> {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let filled_in = |expression: &str| {
        let filled = expression.replace("$instance", ".*");
        let filled = filled.replace("$__rate_interval", "5s").replace("$__range", "5s");
        assert!(!filled.contains('$'), "{filled}");
        filled
    };
    let panel_expressions: Vec<String> =
        targets.map(|target| filled_in(target["expr"].as_str().unwrap())).collect();
    assert!(panel_expressions.len() > 20, "{panel_expressions:?}");
    panel_expressions
}

/// Without Grafana: checks for duplicate IDs, overlapping panels and missing fields.
#[test]
fn dashboard_has_a_valid_layout() {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap();
    let variables: Vec<&str> = dashboard["templating"]["list"]
        .as_array()
        .unwrap()
        .iter()
        .map(|variable| variable["name"].as_str().unwrap())
        .collect();
    assert_eq!(variables, ["datasource", "instance"]);
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "duplicate id: {panel}");
        let at = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{panel}");
        for cell in (at("x")..at("x") + at("w"))
            .flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y)))
        {
            assert!(taken.insert(cell), "overlapping panel: {panel}");
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(["stat", "timeseries"].contains(&panel["type"].as_str().unwrap()), "{panel}");
        for text in ["title", "description"] {
            assert!(panel[text].as_str().is_some_and(|text| !text.is_empty()), "{panel}");
        }
        let references: BTreeSet<&str> = panel["targets"]
            .as_array()
            .unwrap()
            .iter()
            .map(|target| {
                assert_eq!(target["datasource"]["uid"], "${datasource}", "{panel}");
                target["refId"].as_str().unwrap()
            })
            .collect();
        assert_eq!(references.len(), panel["targets"].as_array().unwrap().len(), "{panel}");
    }
}
