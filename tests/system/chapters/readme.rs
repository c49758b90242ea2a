//! Runs the examples of the README.

use crate::site::Site;

const README: &str = include_str!("../../../README.md");

/// Runs all busctl examples in order and compares their output, apart from times.
pub fn bus_examples_print_what_is_shown(site: &Site) {
    let (_, section) = README.split_once("\n## D-Bus\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let mut variables = String::new();
    let mut compared = 0;
    for example in section.split("\n$ ").skip(1) {
        let (command, shown) = example.split_once('\n').unwrap_or((example, ""));
        let (shown, _) = shown.split_once("```").unwrap_or((shown, ""));
        let command = command.trim_start_matches("sudo ");
        if command.starts_with("B=") {
            variables = format!("{command}; ");
            continue;
        }
        let outcome = site.machine.run(&format!("{variables}{command}"));
        assert_eq!(words(&(outcome.out + &outcome.err)), words(shown), "{command}");
        compared += 1;
    }
    assert!(compared >= 6, "too few examples in the README: {section}");
}

/// Splits text into words and replaces Unix times by a placeholder.
fn words(text: &str) -> Vec<String> {
    let is_time = |word: &str| word.len() == 10 && word.bytes().all(|byte| byte.is_ascii_digit());
    text.split_whitespace()
        .map(|word| if is_time(word) { "TIME".to_owned() } else { word.to_owned() })
        .collect()
}
