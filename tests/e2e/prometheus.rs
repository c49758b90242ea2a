//! A real Prometheus, which scrapes the service with the rules that are shipped.

use std::path::Path;
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::lab::Lab;
use crate::tools::{await_that, run};

const UNPACKED: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/prometheus");
const PORT: u16 = 9090;

/// A running Prometheus on the victim. Dropped, it is killed.
pub struct Prometheus<'a> {
    lab: &'a Lab,
    process: Child,
}

impl<'a> Prometheus<'a> {
    /// Starts it. It scrapes and judges twice a second, and no alert waits to be sure.
    pub fn start(lab: &'a Lab) -> Self {
        let program = Path::new(UNPACKED).join("usr/bin/prometheus");
        assert!(program.exists(), "prometheus is not unpacked in {UNPACKED}; run: make prometheus");
        let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/prometheus");
        let shipped = |name| std::fs::read_to_string(packaging.join(name)).unwrap();

        let rules = shipped("tcptracker.rules.yml");
        let is_wait = |line: &&str| line.trim_start().starts_with("for: ");
        let hasty: Vec<&str> = rules.lines().filter(|line| !is_wait(line)).collect();
        std::fs::write(lab.path("rules.yml"), hasty.join("\n")).unwrap();
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
        // It serves before it has opened its store, and until then answers queries with "Service Unavailable".
        let victim = &lab.victim;
        await_that("Prometheus is ready", || {
            victim.serves(PORT) && victim.http_get(PORT, "/-/ready").0 == 200
        });
        started
    }

    /// The data of an answer of its API.
    #[track_caller]
    pub fn ask(&self, endpoint: &str, query: &str) -> Value {
        let mut curl = self.lab.victim.command("curl");
        curl.args(["-sG", "--data-urlencode", &format!("query={query}")]);
        let answer = run(curl.arg(format!("http://127.0.0.1:{PORT}/api/v1/{endpoint}"))).ok();
        let mut answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        answer["data"].take()
    }

    /// The values of an expression at the moment.
    #[track_caller]
    pub fn values(&self, expression: &str) -> Vec<f64> {
        let data = self.ask("query", expression);
        let value = |series: &Value| series["value"][1].as_str().unwrap().parse().unwrap();
        data["result"].as_array().unwrap().iter().map(value).collect()
    }

    /// Waits until an expression has this value, and no other.
    #[track_caller]
    pub fn await_value(&self, expression: &str, value: f64) {
        await_that(&format!("{expression} is {value}"), || self.values(expression) == [value]);
    }

    /// The alerts that fire.
    pub fn alerts(&self) -> Vec<String> {
        let data = self.ask("alerts", "");
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
