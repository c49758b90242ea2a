//! What the README says, carried out as it stands there.

use crate::site::Site;

const README: &str = include_str!("../../../README.md");

/// All examples with busctl, in their order, and what they print but for times.
pub fn what_it_says_of_the_bus(site: &Site) {
    let (_, section) = README.split_once("\n## D-Bus\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let mut given = String::new();
    let mut compared = 0;
    for example in section.split("\n$ ").skip(1) {
        let (command, shown) = example.split_once('\n').unwrap_or((example, ""));
        let (shown, _) = shown.split_once("```").unwrap_or((shown, ""));
        let command = command.trim_start_matches("sudo ");
        if command.starts_with("B=") {
            given = format!("{command}; ");
            continue;
        }
        let outcome = site.machine.run(&format!("{given}{command}"));
        assert_eq!(words(&(outcome.out + &outcome.err)), words(shown), "{command}");
        compared += 1;
    }
    assert!(compared >= 6, "the README has other examples now: {section}");
}

/// Words, and for the seconds since 1970 what stands for any.
fn words(text: &str) -> Vec<String> {
    let is_time = |word: &str| word.len() == 10 && word.bytes().all(|byte| byte.is_ascii_digit());
    text.split_whitespace()
        .map(|word| if is_time(word) { "TIME".to_owned() } else { word.to_owned() })
        .collect()
}
