//! Compares replay with an exact, slow oracle on real captures: found sources and the nanosecond of
//! each scan.
//!
//! The captures are not part of the project. If `TCPTRACKER_CORPUS` names their directory (`make
//! corpus`), the test compares every capture with the oracle's answer. Otherwise the test compares
//! nothing, and only the property tests cover the detector.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may stop where it stands, and starts the program it tests"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Source and time, in nanoseconds, of the first scan of each source.
type Found = BTreeMap<String, u64>;

fn replay(file: &Path, per: &str) -> Result<Found, String> {
    let output = Command::new(env!("CARGO_BIN_EXE_tcptracker"))
        .args(["replay", "--json", "--ports", "3", "--window", "60s", "--ipv6-prefix", "128"])
        .args(["--per", per])
        .arg(file)
        .env("TCPTRACKER_DETECTION__STEALTH", "false")
        .output()
        .unwrap();
    let mut found = Found::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let scan: Value = serde_json::from_str(line).unwrap();
        let source = scan["source"].as_str().unwrap().to_owned();
        found.entry(source).or_insert(scan["time_ns"].as_u64().unwrap());
    }
    if output.status.success() {
        Ok(found)
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

fn expected(answer: &Value, time: &str) -> Found {
    let sources = answer["sources"].as_array().unwrap().iter();
    sources
        .filter_map(|source| Some((source["src"].as_str()?.to_owned(), source[time].as_u64()?)))
        .collect()
}

#[test]
fn replay_equals_the_oracle_on_every_capture() {
    let named = std::env::var_os("TCPTRACKER_CORPUS").filter(|folder| !folder.is_empty());
    let Some(corpus) = named else {
        println!("TCPTRACKER_CORPUS is not set: nothing to compare");
        return;
    };
    let corpus = Path::new(&corpus);
    let answers = std::fs::read_to_string(corpus.join("expected.jsonl")).unwrap();
    let (mut compared, mut scans, mut different) = (0, 0, Vec::new());
    for line in answers.lines() {
        let answer: Value = serde_json::from_str(line).unwrap();
        let name = answer["file"].as_str().unwrap();
        for (per, time) in [("source", "t1"), ("pair", "t2")] {
            let expected = expected(&answer, time);
            match replay(&corpus.join(name), per) {
                Ok(found) if found == expected => {}
                // A file without probes may be unreadable.
                Err(_) if answer["syns"].as_u64() == Some(0) => {}
                found => {
                    different.push(format!("{name} per {per}: {found:?}, expected {expected:?}"));
                }
            }
            compared += 1;
            scans += expected.len();
        }
    }
    println!("{compared} comparisons, {scans} scans, {} differences", different.len());
    assert!(compared > 0, "expected.jsonl is empty");
    assert!(different.is_empty(), "{}", different.join("\n"));
}
