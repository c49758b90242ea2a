//! A real Prometheus that scrapes the service and evaluates the shipped rules.

use std::path::Path;
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::lab::Lab;
use crate::tools::{await_that, run};

const UNPACKED: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/prometheus");
const PORT: u16 = 9090;

/// A running Prometheus on the victim. Killed on drop.
pub struct Prometheus<'a> {
    lab: &'a Lab,
    process: Child,
}

impl<'a> Prometheus<'a> {
    /// Starts Prometheus. It scrapes and evaluates twice a second, and alerts fire without their
    /// `for:` delay.
    pub fn start(lab: &'a Lab) -> Self {
        let program = Path::new(UNPACKED).join("usr/bin/prometheus");
        assert!(program.exists(), "prometheus is not unpacked in {UNPACKED}; run: make prometheus");
        let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/prometheus");
        let shipped = |name| std::fs::read_to_string(packaging.join(name)).unwrap();

        let rules = shipped("tcptracker.rules.yml");
        let is_wait = |line: &&str| line.trim_start().starts_with("for: ");
        let without_delays: Vec<&str> = rules.lines().filter(|line| !is_wait(line)).collect();
        std::fs::write(lab.path("rules.yml"), without_delays.join("\n")).unwrap();
        let config = format!(
            "global: {{ scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms }}\n\
             rule_files: [rules.yml]\n{}",
            shipped("scrape.yml")
        );
        std::fs::write(lab.path("prometheus.yml"), config).unwrap();

        let option = |name: &str, value: &Path| format!("--{name}={}", value.display());
        let process = lab
            .victim
            .command(program)
            .arg(option("config.file", &lab.path("prometheus.yml")))
            .arg(option("storage.tsdb.path", &lab.path("prometheus")))
            .arg(format!("--web.listen-address=127.0.0.1:{PORT}"))
            .arg("--log.level=error")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let started = Self { lab, process };
        // Prometheus answers queries with "Service Unavailable" until it has opened its storage.
        let victim = &lab.victim;
        await_that("Prometheus is ready", || {
            victim.serves(PORT) && victim.http_get(PORT, "/-/ready").0 == 200
        });
        started
    }

    /// Queries the API and returns the data of the answer.
    #[track_caller]
    pub fn query_api(&self, endpoint: &str, query: &str) -> Value {
        let mut curl = self.lab.victim.command("curl");
        curl.args(["-sG", "--data-urlencode", &format!("query={query}")]);
        let answer = run(curl.arg(format!("http://127.0.0.1:{PORT}/api/v1/{endpoint}"))).ok();
        let mut answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        answer["data"].take()
    }

    /// Evaluates an expression and returns its current values.
    #[track_caller]
    pub fn values(&self, expression: &str) -> Vec<f64> {
        let data = self.query_api("query", expression);
        let value = |series: &Value| series["value"][1].as_str().unwrap().parse().unwrap();
        data["result"].as_array().unwrap().iter().map(value).collect()
    }

    /// Waits until this is the only value of an expression.
    #[track_caller]
    pub fn await_value(&self, expression: &str, value: f64) {
        await_that(&format!("{expression} is {value}"), || self.values(expression) == [value]);
    }

    /// Returns the names of the firing alerts.
    pub fn alerts(&self) -> Vec<String> {
        let data = self.query_api("alerts", "");
        let firing = data["alerts"].as_array().unwrap().iter().filter(|a| a["state"] == "firing");
        firing.map(|alert| alert["labels"]["alertname"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
