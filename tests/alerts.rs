//! The alert rules, checked with promtool: syntax, and when each alert fires.
//!
//! `tests/e2e` checks with a real Prometheus that the metrics of the rules exist.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that cannot go on fails; it starts a program"
)]

use std::path::Path;
use std::process::Command;

const UNPACKED: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/prometheus");
const RULES: &str = "packaging/prometheus/tcptracker.rules.yml";

fn promtool(arguments: &[&str]) {
    let program = Path::new(UNPACKED).join("usr/bin/promtool");
    assert!(program.exists(), "prometheus is not unpacked in {UNPACKED}; run: make prometheus");
    let output = Command::new(program)
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let output_text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output_text));
}

#[test]
fn rules_are_valid() {
    promtool(&["check", "rules", RULES]);
    promtool(&["check", "config", "packaging/prometheus/scrape.yml"]);
}

#[test]
fn each_alert_fires_only_on_its_condition() {
    promtool(&["test", "rules", "tests/prometheus/tests.yml"]);
    let read = |name| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name));
    let (rules, tests) = (read(RULES).unwrap(), read("tests/prometheus/tests.yml").unwrap());
    let readme = read("README.md").unwrap();
    let alerts: Vec<&str> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 10, "{alerts:?}");
    for alert in alerts {
        let fires = format!(r#"[{{ labels: '{{alertname="{alert}"}}', value: 1 }}]"#);
        assert!(tests.contains(&fires), "no test in which {alert} fires");
        assert!(readme.contains(&format!("`{alert}`")), "README.md does not list {alert}");
    }
}
