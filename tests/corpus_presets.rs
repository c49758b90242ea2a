//! Both presets on real captures: found scanners, missed scanners and false positives.
//!
//! Runs only if `TCPTRACKER_CORPUS` names the captures. The truth files there name the scanners and
//! the benign sources; every source in the directory `benign` is benign.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may stop where it stands, and starts the program it tests"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Captures whose scanners the `balanced` preset need not find, with the reason.
const BELOW_EVERY_RULE: [(&str, &str); 3] = [
    ("exact3", "three ports: the rules begin at four"),
    ("dist_20x3", "three ports of each source: only reported, as a distributed scan"),
    ("udp_mix", "UDP"),
];
/// Captures with benign sources that look exactly like scanners, with the reason.
const INDISTINGUISHABLE: [(&str, &str); 2] = [
    ("decoy", "forged beside the scanner's own probes"),
    ("spoof_dns", "forged: all that arrives is a scan"),
];

#[derive(Default)]
struct Row {
    found: usize,
    missed: Vec<String>,
    wrong: Vec<String>,
    probes: Vec<u64>,
}

/// Source to the number of the firing probe and the reason.
type Found = BTreeMap<String, (u64, String)>;

fn replay(file: &Path, preset: &str) -> Found {
    let output = Command::new(env!("CARGO_BIN_EXE_tcptracker"))
        .args(["replay", "--json", "--ipv6-prefix", "128", "--preset", preset])
        .arg(file)
        .output()
        .unwrap();
    let mut found = Found::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let scan: Value = serde_json::from_str(line).unwrap();
        if scan["blocks"] == false {
            continue;
        }
        let source = scan["source"].as_str().unwrap().to_owned();
        let outcomes = scan.get("outcomes").map_or_else(String::new, |o| format!(" {o}"));
        let rule = scan["rule"].as_str().unwrap_or("more than 3 ports");
        let why = format!("{rule}: ports {}{outcomes}", scan["ports"]);
        found.entry(source).or_insert((scan["probe"].as_u64().unwrap(), why));
    }
    found
}

/// Suite, file, scanners and benign sources of each capture.
fn truth(corpus: &Path) -> Vec<(&'static str, String, Vec<String>, Vec<String>)> {
    let mut all = Vec::new();
    for list in ["truth.tsv", "truth-slow.tsv"] {
        for line in std::fs::read_to_string(corpus.join("gen").join(list)).unwrap().lines() {
            let columns: Vec<&str> = line.split('\t').collect();
            let names = |column: usize| -> Vec<String> {
                let named = columns.get(column).filter(|text| !text.starts_with(['-', 'a']));
                named.map_or_else(Vec::new, |text| text.split(',').map(str::to_owned).collect())
            };
            let (file, how) = (columns[0], columns.get(4).copied().unwrap_or_default());
            let stealth = ["-sF", "-sN", "-sX", "-sM", "-sA", "SYNFIN", " -f "];
            let suite = match columns[1] {
                "benign" => "benign",
                "slowscan" => "slow",
                _ if file.starts_with("horiz") || file.starts_with("block_") => "sweep",
                _ if stealth.iter().any(|flag| how.contains(flag)) => "stealth",
                _ => "vertical",
            };
            all.push((suite, format!("gen/{file}"), names(2), names(3)));
        }
    }
    let mut benign: Vec<_> = std::fs::read_dir(corpus.join("benign/ndpi")).unwrap().collect();
    benign.sort_by_key(|entry| entry.as_ref().unwrap().path());
    for entry in benign {
        let name = entry.unwrap().file_name().into_string().unwrap();
        all.push(("benign", format!("benign/ndpi/{name}"), Vec::new(), Vec::new()));
    }
    all.retain(|(_, file, ..)| corpus.join(file).exists());
    all
}

#[test]
fn balanced_preset_finds_all_scanners_without_false_positives() {
    let named = std::env::var_os("TCPTRACKER_CORPUS").filter(|folder| !folder.is_empty());
    let Some(corpus) = named else {
        println!("TCPTRACKER_CORPUS is not set: nothing to compare");
        return;
    };
    let corpus = Path::new(&corpus);
    let mut table: BTreeMap<(&str, &str), Row> = BTreeMap::new();
    for (suite, file, scanners, benign_sources) in truth(corpus) {
        for preset in ["classic", "balanced"] {
            let row = table.entry((suite, preset)).or_default();
            let found = replay(&corpus.join(&file), preset);
            for scanner in &scanners {
                match found.get(scanner) {
                    Some((probes, _)) => {
                        row.found += 1;
                        row.probes.push(*probes);
                    }
                    None => row.missed.push(format!("{file} {scanner}")),
                }
            }
            // In a capture with scanners, only the listed sources are known to be benign.
            let wrong = found.iter().filter(|(source, _)| {
                !scanners.contains(source) && (suite == "benign" || benign_sources.contains(source))
            });
            row.wrong.extend(wrong.map(|(source, (_, why))| format!("{file} {source}: {why}")));
        }
    }
    println!("suite     preset    found missed wrong  median  worst probe until it fired");
    for ((suite, preset), row) in &mut table {
        row.probes.sort_unstable();
        let median = row.probes.get(row.probes.len() / 2).copied().unwrap_or(0);
        let worst = row.probes.last().copied().unwrap_or(0);
        let (found, missed, wrong) = (row.found, row.missed.len(), row.wrong.len());
        println!("{suite:9} {preset:9} {found:5} {missed:6} {wrong:5} {median:7} {worst:6}");
    }
    for ((suite, preset), row) in &table {
        let lines = row.missed.iter().map(|what| format!("missed {what}"));
        for line in lines.chain(row.wrong.iter().map(|what| format!("wrong  {what}"))) {
            println!("{suite:9} {preset:9} {line}");
        }
    }
    let excused =
        |list: &[(&str, &str)], what: &str| list.iter().any(|(part, _)| what.contains(part));
    let mut below: Vec<&String> = Vec::new();
    for (_, row) in table.iter().filter(|((_, preset), _)| *preset == "balanced") {
        below.extend(row.missed.iter().filter(|what| !excused(&BELOW_EVERY_RULE, what)));
        below.extend(row.wrong.iter().filter(|what| !excused(&INDISTINGUISHABLE, what)));
    }
    assert!(below.is_empty(), "{below:#?}");
}
