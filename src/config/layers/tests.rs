//! Which source wins, where each value came from, and what is said of wrong ones.

use std::time::Duration;

use super::*;
use crate::config::{Listen, Target};

fn load(
    files: &[(&str, &str)],
    environment: &[(&str, &str)],
    observe: bool,
) -> Result<Effective, ConfigError> {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    let environment =
        environment.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    let interface = "eth0".parse().unwrap();
    let flags = Flags { observe };
    Effective::load(&Sources::within(directory.path(), Some(&interface), None, environment, flags))
}

fn problem(file: &str) -> String {
    let ConfigError(problems) = load(&[("tcptracker.toml", file)], &[], false).unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems[0].clone()
}

#[test]
fn every_key_says_what_it_takes_and_nothing_else_does() {
    let effective = Effective::default();
    let keys: Vec<&str> = effective.settings().map(|(key, ..)| key).collect();
    let mut expected: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
    expected.sort_unstable();
    assert_eq!(keys, expected);
}

#[test]
fn the_defaults_survive_being_written_down() {
    let effective = Effective::default();
    let config = Config::deserialize(table_of(&effective.settings)).unwrap();
    assert_eq!(config, Config::default());
    let shown: BTreeMap<&str, String> =
        effective.settings().map(|(key, value, _)| (key, value.to_string())).collect();
    assert_eq!(shown["detection.window"], r#""60s""#);
    assert_eq!(shown["block.durations"], r#"["1h", "4h", "1d", "1w"]"#);
    assert_eq!(shown["firewall.hooks"], r#"["INPUT", "FORWARD"]"#);
}

#[test]
fn the_later_layer_wins_and_each_value_knows_where_it_came_from() {
    let effective = load(
        &[
            (
                "tcptracker.toml",
                "[detection]\nports = 5\nwindow = \"2m\"\n\n[block]\nenabled = true\n",
            ),
            ("eth0.toml", "[detection]\nports = 7\n"),
        ],
        &[
            ("TCPTRACKER_FIREWALL__TARGET", "REJECT"),
            ("TCPTRACKER_EXEMPT__NETWORKS", "10.0.0.0/8, 192.0.2.1"),
            ("TCPTRACKER_METRICS__LISTEN", "off"),
            ("TCPTRACKER_CORPUS", "/somewhere"),
        ],
        true,
    )
    .unwrap();
    let config = &effective.config;
    assert_eq!(config.detection.ports.get(), 7);
    assert_eq!(config.detection.window.get(), Duration::from_secs(120));
    assert!(!config.block.enabled);
    assert_eq!(config.firewall.target, Target::Reject);
    assert_eq!(config.metrics.listen, Listen::Off);
    assert_eq!(config.exempt.networks.len(), 2);
    let origin = |key| effective.settings[key].1.to_string();
    assert!(origin("detection.ports").ends_with("eth0.toml:2"));
    assert!(origin("detection.window").ends_with("tcptracker.toml:3"));
    assert_eq!(origin("block.enabled"), "flag --observe");
    assert_eq!(origin("firewall.target"), "environment TCPTRACKER_FIREWALL__TARGET");
    assert_eq!(origin("log.rate"), "default");
}

#[test]
fn what_is_wrong_names_file_line_and_what_was_expected() {
    let error = problem("[detection]\n\nwindow = \"sixty\"\n");
    assert!(error.contains("tcptracker.toml:3: detection.window: expected a length of time"));
    assert!(error.ends_with(r#"found "sixty""#), "{error}");

    let error = problem("[detection]\nport = 3\n");
    assert!(error.contains(":2: unknown key detection.port; did you mean detection.ports?"));
    for text in ["detection = 3\n", "[[detection]]\nports = 3\n"] {
        let error = problem(text);
        assert!(error.ends_with(":1: detection is a section, written [detection]"), "{error}");
    }
    let error = problem("[detecton]\n");
    assert!(error.contains(":1: unknown key detecton"), "{error}");
    let error = problem("[detection]\nports = = 3\n");
    assert!(error.contains("tcptracker.toml:2: "), "{error}");
}

#[test]
fn values_out_of_bounds_are_refused() {
    for bad in [
        "[detection]\nports = 0",
        "[detection]\nports = 65",
        "[detection]\nports = -1",
        "[detection]\nports = \"3\"",
        "[detection]\nwindow = \"0s\"",
        "[detection]\nwindow = \"2d\"",
        "[detection]\nwindow = 60",
        "[detection]\npreset = \"clasic\"",
        "[detection]\nipv6_prefix = 129",
        "[exempt]\nnetworks = \"10.0.0.0/8\"",
        "[block]\ndurations = []",
        "[block]\ndurations = [\"0s\"]",
        "[block]\nmax_per_minute = 0",
        "[firewall]\nhooks = [\"OUTPUT\"]",
        "[firewall]\nhooks = []",
        "[metrics]\nlisten = \"localhost\"",
        "[bus]\nenabled = \"yes\"",
    ] {
        assert!(problem(bad).contains(": expected "), "{bad}");
    }
}

/// Of a long list nobody wants to look for it.
#[test]
fn of_a_list_what_is_wrong_in_it_is_named() {
    let file = "[exempt]\nnetworks = [\"10.0.0.0/8\", \"10.0.0.1/8\", \"office\", 5]";
    let ConfigError(told) = load(&[("tcptracker.toml", file)], &[], false).unwrap_err();
    let expected = [
        "\"10.0.0.1/8\" has bits set after its prefix length; did you mean the network 10.0.0.0/8 \
         or the address 10.0.0.1?",
        "\"office\" is neither an address nor a network; write 192.0.2.7, 192.0.2.0/24 or \
         2001:db8::/32",
        "expected a list of addresses and networks, such as [\"192.0.2.7\", \"10.0.0.0/8\"], found 5",
    ];
    assert_eq!(told.len(), expected.len(), "{told:#?}");
    for (told, expected) in told.iter().zip(expected) {
        assert!(
            told.ends_with(&format!("tcptracker.toml:2: exempt.networks: {expected}")),
            "{told}"
        );
    }
    let error = problem("[block]\ndurations = [\"1h\", \"soon\"]");
    assert!(error.ends_with(", found \"soon\""), "{error}");
}

#[test]
fn a_variable_with_one_underscore_is_not_passed_over() {
    let error = load(&[], &[("TCPTRACKER_BLOCK_ENABLED", "false")], true).unwrap_err().to_string();
    assert_eq!(
        error,
        "environment TCPTRACKER_BLOCK_ENABLED: two underscores stand for the dot, as in \
         TCPTRACKER_BLOCK__ENABLED"
    );
    // Kubernetes sets such for a service of the name tcptracker-metrics.
    let others = [("TCPTRACKER_CORPUS", "x"), ("TCPTRACKER_METRICS_PORT", "tcp://192.0.2.1:80")];
    load(&[], &others, true).unwrap();
}

#[test]
fn every_problem_of_every_layer_is_told() {
    let ConfigError(problems) = load(
        &[("tcptracker.toml", "[block]\nenabled = 1\nx = 2"), ("eth0.toml", "[log]\nrate = 0")],
        &[("TCPTRACKER_BUS__ENABLED", "maybe"), ("TCPTRACKER_BUS__NAME", "x")],
        true,
    )
    .unwrap_err();
    assert_eq!(problems.len(), 5, "{problems:#?}");
}

#[test]
fn an_explicit_file_must_exist() {
    let missing = Path::new("/nonexistent/tcptracker.toml");
    let sources = Sources::new(None, Some(missing), [], Flags::default());
    let error = Effective::load(&sources).unwrap_err().to_string();
    assert!(error.contains("cannot read /nonexistent/tcptracker.toml"), "{error}");
}
