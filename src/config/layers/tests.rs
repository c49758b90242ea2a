//! Which source wins, where each value came from, and what the messages about wrong ones say.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::Target;
use crate::config::reference::KEYS;

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
    Effective::load(
        &Sources::within(directory.path(), Some(&interface))
            .with_environment(environment)
            .with_observe(observe),
    )
}

/// The problems of a file, without its name.
fn problems(file: &str) -> Vec<String> {
    let error = load(&[("tcptracker.toml", file)], &[], false).expect_err(file);
    let without_directory = |problem: String| {
        let (_, rest) = problem.split_once("tcptracker.toml:").unwrap_or(("", &problem));
        rest.to_owned()
    };
    error.0.into_iter().map(without_directory).collect()
}

#[test]
fn reference_lists_exactly_the_existing_keys() {
    let effective = Effective::default();
    let keys: Vec<&str> = effective.settings().map(|(key, ..)| key).collect();
    let mut expected: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
    expected.sort_unstable();
    assert_eq!(keys, expected);
}

#[test]
fn written_defaults_are_read_as_the_defaults() {
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
fn later_layer_wins_and_each_value_keeps_its_origin() {
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
    let config = effective.config();
    assert_eq!(config.detection.ports.get(), 7);
    assert_eq!(config.detection.window.get(), Duration::from_secs(120));
    assert!(!config.block.enabled);
    assert_eq!(config.firewall.target, Target::Reject);
    assert_eq!(config.metrics.listen, None);
    assert_eq!(config.exempt.networks.len(), 2);
    let origin = |key| effective.settings[key].1.to_string();
    assert!(origin("detection.ports").ends_with("eth0.toml:2"));
    assert!(origin("detection.window").ends_with("tcptracker.toml:3"));
    assert_eq!(origin("block.enabled"), "flag --observe");
    assert_eq!(origin("firewall.target"), "environment TCPTRACKER_FIREWALL__TARGET");
    assert_eq!(origin("log.rate"), "default");
}

#[test]
fn wrong_values_are_reported_with_line_and_expectation() {
    for (file, expected) in [
        (
            "[detection]\n\nwindow = \"sixty\"\n",
            r#"3: detection.window: expected a length of time from "1s" to "1d", such as "60s", found "sixty""#,
        ),
        (
            "[block]\nenabled = no",
            "2: block.enabled: expected true or false, found no; write false",
        ),
        (
            "[block]\nenabled = True",
            "2: block.enabled: expected true or false, found True; write true",
        ),
        (
            "[block]\nenabled = \"yes\"",
            "2: block.enabled: expected true or false, found \"yes\"; write true",
        ),
        ("[block]\nenabled = 7", "2: block.enabled: expected true or false, found 7"),
        ("[block]\nenabled =", "2: block.enabled: expected true or false, found nothing"),
        (
            "[detection]\npreset = balanced",
            r#"2: detection.preset: expected "classic" or "balanced" in quotes, found balanced; write "balanced""#,
        ),
        (
            "[firewall]\ntarget = \"reject\"",
            r#"2: firewall.target: expected "DROP" or "REJECT", found "reject"; write "REJECT""#,
        ),
        (
            "[firewall]\nhooks = [INPUT]",
            r#"2: firewall.hooks: expected a list of "INPUT" and "FORWARD" in quotes, found INPUT; write "INPUT""#,
        ),
        (
            "[detection]\nports = \"10\"",
            "2: detection.ports: expected a whole number from 1 to 64, found \"10\"; write 10",
        ),
        (
            "[detection]\nports = 99999999999999999999",
            "2: detection.ports: expected a whole number from 1 to 64, found 99999999999999999999",
        ),
        (
            "[exempt]\nnetworks = 10.0.0.0/8",
            r#"2: exempt.networks: expected a list of addresses and networks, such as ["192.0.2.7", "10.0.0.0/8"], found 10.0.0.0/8; write ["10.0.0.0/8"]"#,
        ),
        (
            "[metrics]\nlisten = off",
            r#"2: metrics.listen: expected "off", or an address and port, such as "127.0.0.1:8081", found off; write "off""#,
        ),
    ] {
        assert_eq!(problems(file), [expected], "{file}");
    }
}

#[test]
fn unknown_keys_and_sections_get_a_hint() {
    for (file, expected) in [
        (
            "[detection]\nport = 3\n",
            "2: unknown key detection.port; did you mean detection.ports? (`tcptracker config` lists all keys)",
        ),
        (
            "[block]\nports = 3\n",
            "2: unknown key block.ports; ports belongs to [detection] (`tcptracker config` lists all keys)",
        ),
        ("[block]\nzzz = 3\n", "2: unknown key block.zzz (`tcptracker config` lists all keys)"),
        ("[blok]\nenabled = true\nx = 1\n", "1: unknown section [blok]; did you mean [block]?"),
        ("[detecton]\n", "1: unknown section [detecton]; did you mean [detection]?"),
        (
            "[zzz]\n",
            "1: unknown section [zzz]; the sections are [detection], [exempt], [block], [firewall], [log], [metrics], [bus]",
        ),
        ("ports = 10\n", "1: ports belongs to [detection]; write detection.ports = 10"),
        (
            "ports = 10\n[log]\n[detection]\n",
            "1: ports belongs to [detection]; move it below [detection] (line 3)",
        ),
        (
            "enabled = no\n[bus]\n",
            "1: enabled belongs to [block] or [bus]; write block.enabled = no or move it below [bus] (line 2)",
        ),
        (
            "prots = 10\n",
            "1: unknown key prots; did you mean detection.ports? (`tcptracker config` lists all keys)",
        ),
        ("detection = 3\n", "1: detection is a section; write [detection], and its keys below it"),
        (
            "[[detection]]\nports = 3\n",
            "1: detection is a section; write [detection], and its keys below it",
        ),
    ] {
        assert_eq!(problems(file), [expected], "{file}");
    }
}

#[test]
fn advice_for_a_key_without_section_is_valid_toml() {
    load(&[("tcptracker.toml", "detection.ports = 10\n[log]\nrate = 5\n")], &[], false).unwrap();
    load(&[("tcptracker.toml", "detection.ports = 10\ndetection.per = \"pair\"\n")], &[], false)
        .unwrap();
}

#[test]
fn syntax_errors_are_explained() {
    for (file, expected) in [
        (
            "[detection]\nports = 3\nports = 4\n",
            "3: detection.ports is set on line 2 already; remove one of them",
        ),
        (
            "log.rate = 3\n# x\nlog.rate = 4\n",
            "3: log.rate is set on line 1 already; remove one of them",
        ),
        (
            "detection = {ports = 3, ports = 4}\n",
            "1: detection.ports is set on line 1 already; remove one of them",
        ),
        (
            "[detection]\nports = 3\n[block]\n[detection]\nwindow = \"1m\"\n",
            "4: [detection] is on line 1 already; write its keys there",
        ),
        ("[detection\nports = 3\n", "1: expected ] after [detection; write [detection]"),
        ("detection]\nports = 3\n", "1: expected [ before detection]; write [detection]"),
        ("[detection]\nports 10\n", "2: expected = after ports; write ports = 10"),
        ("[detection]\nports: 10\n", "2: expected = after ports; write ports = 10"),
        ("[detection]\nports\n", "2: ports has no value; write ports = VALUE"),
        ("; office\n[detection]\n", "1: a comment begins with #; write # office"),
        ("// office\n", "1: a comment begins with #; write # office"),
        ("[log] rate = 5\n", "1: a section has a line of its own; write rate = 5 below it"),
        (
            "[block]\ndurations = \"1h\", \"4h\"\n",
            "2: block.durations: unexpected , \"4h\" after the value; put a list in brackets, and # before a comment",
        ),
        (
            "[exempt]\nnetworks = [\n  \"10.0.0.0/8\"\n  \"192.0.2.7\"\n]\n",
            "4: exempt.networks: expected a comma before \"192.0.2.7\"",
        ),
        (
            "[firewall]\nhooks = [\"INPUT\",, \"FORWARD\"]\n",
            "2: firewall.hooks: expected an item before the comma; remove the comma",
        ),
        (
            "[exempt]\nnetworks = [\"10.0.0.0/8\",\n  \"192.0.2.7\"\n[block]\nenabled = true\n",
            "2: exempt.networks: the list has no end; write ] after its last item",
        ),
        (
            "detection = {ports = 3\n",
            "1: detection.ports: the table has no end; write } after its last item",
        ),
        (
            "[detection]\npreset = \"balanced\n[block]\n",
            "2: detection.preset: the string has no end; write \" after it",
        ),
        (
            "[metrics]\nlisten = 'off\n",
            "2: metrics.listen: the string has no end; write ' after it",
        ),
        (
            "[detection]\nwindow = \"a\\qb\"\n",
            r"2: detection.window: a backslash begins an escape; write \\ for a backslash itself",
        ),
        (
            "[]\nports = 3\n",
            "1: []: not TOML: unquoted keys cannot be empty, expected letters, numbers, `-`, `_`",
        ),
    ] {
        assert_eq!(problems(file), [expected], "{file}");
    }
}

#[test]
fn problems_are_reported_in_the_order_of_lines() {
    let file = "[log]\nrate = 0\n[blok]\nx = 1\n[detection]\nwindow = 60s\nport = 3\n[block]\nenabled = no\nenabled = yes\n";
    let lines: Vec<String> =
        problems(file).iter().map(|p| p.split(':').next().unwrap().to_owned()).collect();
    assert_eq!(lines, ["2", "3", "6", "7", "9", "10"]);
}

#[test]
fn problems_below_a_missing_bracket_are_left_out() {
    let file = "[log]\nrate = 0\n[exempt]\nnetworks = [\n\"office 1\"\n[log]\nrat = 5\nrate = no\n";
    let lines: Vec<String> =
        problems(file).iter().map(|p| p.split(':').next().unwrap().to_owned()).collect();
    assert_eq!(lines, ["2", "4"]);
    // The keys below belong to a section that the parser has not seen.
    assert_eq!(problems("detection]\nports = 0\nrate = 0\n").len(), 1);
}

#[test]
fn text_of_the_file_is_printed_safely() {
    let file = format!(
        "[detection]\npreset = \"\u{1b}[31m\u{202e}\"\n\"p\\u001bq\" = 1\nper = \"{}\"\n",
        "x".repeat(5000)
    );
    // TOML does not allow a control character in a string.
    for file in [file.replace('\u{1b}', "\\u001b"), file] {
        for problem in problems(&file) {
            assert!(problem.chars().all(|c| matches!(c, ' '..='~')), "{problem:?}");
            assert!(problem.len() < 400, "{problem}");
        }
    }
}

#[test]
fn invalid_values_are_refused() {
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
        "[block]\ndurations = [\"101y\"]",
        "[block]\nmax_per_minute = 0",
        "[firewall]\nhooks = [\"OUTPUT\"]",
        "[firewall]\nhooks = []",
        "[metrics]\nlisten = \"localhost\"",
        "[bus]\nenabled = \"yes\"",
    ] {
        assert!(problems(bad)[0].contains(": expected "), "{bad}");
    }
}

#[test]
fn wrong_items_of_a_list_are_reported_with_their_lines() {
    let file = "[exempt]\nnetworks = [\"10.0.0.0/8\",\n\"10.0.0.1/8\",\n\"office.example\", 5]";
    let host_bits = parse_network("10.0.0.1/8").unwrap_err();
    let expected = [
        &format!("3: exempt.networks: {host_bits}"),
        "4: exempt.networks: \"office.example\" is a host name, and host names are not supported; write \
         its address, such as \"192.0.2.7\"",
        "4: exempt.networks: expected a list of addresses and networks, such as [\"192.0.2.7\", \
         \"10.0.0.0/8\"], found 5",
    ];
    assert_eq!(problems(file), expected);
    let error = problems("[block]\ndurations = [\"1h\", \"soon\"]");
    assert!(error[0].ends_with(", found \"soon\""), "{error:?}");
}

#[test]
fn variable_with_one_underscore_is_reported() {
    let error = load(&[], &[("TCPTRACKER_BLOCK_ENABLED", "false")], true).unwrap_err().to_string();
    assert_eq!(
        error,
        "environment TCPTRACKER_BLOCK_ENABLED: two underscores stand for the dot; write \
         TCPTRACKER_BLOCK__ENABLED"
    );
    // Kubernetes sets variables of this kind for a service called tcptracker-metrics.
    let others = [("TCPTRACKER_CORPUS", "x"), ("TCPTRACKER_METRICS_PORT", "tcp://192.0.2.1:80")];
    load(&[], &others, true).unwrap();
}

#[test]
fn every_problem_of_every_layer_is_reported() {
    let error = load(
        &[("tcptracker.toml", "[block]\nenabled = 1\nx = 2"), ("eth0.toml", "[log]\nrate = 0")],
        &[("TCPTRACKER_BUS__ENABLED", "maybe"), ("TCPTRACKER_BUS__NAME", "x")],
        true,
    )
    .unwrap_err();
    let ConfigError(problems) = error;
    let origins = ["tcptracker.toml:2:", "tcptracker.toml:3:", "eth0.toml:2:", "ENABLED:", "NAME:"];
    assert_eq!(problems.len(), origins.len(), "{problems:#?}");
    for (problem, origin) in problems.iter().zip(origins) {
        assert!(problem.contains(origin), "{problem}");
    }
}

#[test]
fn explicit_file_must_exist() {
    let missing = Path::new("/nonexistent/tcptracker.toml");
    let sources = Sources::new(None, Some(missing));
    let error = Effective::load(&sources).unwrap_err().to_string();
    assert!(error.contains("cannot read /nonexistent/tcptracker.toml"), "{error}");
}

proptest! {
    #[test]
    fn any_file_is_read_or_refused_in_printable_lines(
        parts in prop::collection::vec(
            prop::sample::select(vec![
                "[", "]", "[[", "{", "}", "=", "\"", "'", "\"\"\"", ",", ".", "\n", " ", "#", "\\",
                "detection", "ports", "block", "durations", "x", "3", "1h", "true", "é", "\u{1b}",
                "\u{feff}", "\r", "\u{202e}",
            ]),
            0..40,
        )
    ) {
        let text = parts.concat();
        for problem in Effective::default().read_file(Path::new("file"), &text) {
            prop_assert!(problem.starts_with("file:"), "{problem}");
            prop_assert_eq!(printable(&problem), problem.as_str());
        }
    }
}
