//! The configuration keys as a man page, as a commented file and as a table.

use std::collections::BTreeMap;

use tcptracker::internals::Effective;
use tcptracker::internals::{KEYS, Key, SECTIONS};

use crate::roff::{bold, broken, capital, italic, marked, plain, title};

pub(crate) const README_HEADING: &str = "| key | default | values | meaning |\n";

/// The line width of comments.
const WIDTH: usize = 80;

fn defaults() -> BTreeMap<String, String> {
    let effective = Effective::default();
    effective.settings().map(|(key, value, _)| (key.to_owned(), value.to_string())).collect()
}

fn keys_of(section: &str) -> impl Iterator<Item = (&'static Key, &'static str)> {
    let of_section = move |key: &'static Key| {
        let (found, name) = key.name.split_once('.')?;
        (found == section).then_some((key, name))
    };
    KEYS.iter().filter_map(of_section)
}

pub(crate) fn readme_table() -> String {
    let defaults = defaults();
    let rows = KEYS.iter().map(|key| {
        let default = &defaults[key.name];
        format!("| `{}` | `{default}` | {} | {} |\n", key.name, key.expected, key.meaning)
    });
    format!("{README_HEADING}|---|---|---|---|\n{}", rows.collect::<String>())
}

pub(crate) fn default_file() -> String {
    let defaults = defaults();
    let mut text = comment(
        "Configuration of tcptracker for all interfaces (/etc/tcptracker/tcptracker.toml). \
         /etc/tcptracker/eth0.toml overrides it for eth0. Every key is listed with its default. To \
         change one, remove the # in front of it, then run `systemctl reload tcptracker@eth0`. \
         `tcptracker config` shows every value and its origin. See tcptracker.toml(5).",
    );
    for (section, about) in SECTIONS {
        text.push_str(&format!("\n# {about}\n[{section}]\n"));
        for (key, name) in keys_of(section) {
            text.push_str(&format!("\n{}", comment(&description(key))));
            text.push_str(&format!("#{name} = {}\n", defaults[key.name]));
        }
    }
    text
}

/// The meaning of a key and its expected values, without backticks.
fn description(key: &Key) -> String {
    format!("{} Takes {}.", with_full_stop(&capital(key.meaning)).replace('`', ""), key.expected)
}

fn with_full_stop(text: &str) -> String {
    // The text may already end with a full stop.
    if text.ends_with('.') { text.to_owned() } else { format!("{text}.") }
}

fn comment(text: &str) -> String {
    let mut lines = vec![String::from("#")];
    for word in text.split_whitespace() {
        if lines.last().is_some_and(|line| line.len() + 1 + word.len() > WIDTH) {
            lines.push(String::from("#"));
        }
        let line = lines.last_mut().unwrap();
        line.push(' ');
        line.push_str(word);
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

pub(crate) fn page() -> String {
    let defaults = defaults();
    let mut page = title("TCPTRACKER.TOML", 5, "Configuration of tcptracker");
    page.push_str(include_str!("keys.head.roff"));
    for (section, about) in SECTIONS {
        page.push_str(&format!(".SS {}\n{}\n", plain(&format!("[{section}]")), plain(about)));
        for (key, _) in keys_of(section) {
            page.push_str(&format!(
                ".TP\n{} = {}\n{}\n.br\nTakes {}.\n",
                bold(key.name),
                italic(&defaults[key.name]),
                marked(&with_full_stop(&capital(key.meaning))),
                plain(key.expected),
            ));
        }
    }
    page.push_str(include_str!("keys.tail.roff"));
    broken(&page)
}
