//! How to exempt a network: which line of which configuration file to change, and to what.
//!
//! Reads the files as the service on an interface does. Must not change them.

use std::path::{Path, PathBuf};

use toml::Value;
use toml::de::{DeTable, DeValue};

use crate::config::layers::DIRECTORY;
use crate::config::{Effective, Flags, Origin, Sources};
use crate::types::IfName;

const KEY: &str = "exempt.networks";

/// A change of a file: where, and the text to write there.
#[derive(Debug, PartialEq, Eq)]
struct Edit {
    place: Place,
    text: String,
}

#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// From the first line to the last one, which may be the same.
    Replace(usize, usize),
    Below(usize),
    End,
}

/// Returns what to do so that the instance on an interface never blocks a network.
pub fn instructions(interface: &IfName, network: &str) -> String {
    instructions_within(Path::new(DIRECTORY), interface, network)
}

fn instructions_within(directory: &Path, interface: &IfName, network: &str) -> String {
    let reload = format!("sudo systemctl reload {}", interface.unit());
    let sources = Sources::within(directory, Some(interface), None, [], Flags::default());
    let Ok(effective) = Effective::load(&sources) else {
        return format!(
            "\nNever block it: first correct the configuration, which is invalid:\n  \
             tcptracker config -i {interface}\n"
        );
    };
    let setting = effective.settings().find(|(key, ..)| *key == KEY);
    let (mut networks, file) = match setting {
        Some((_, Value::Array(networks), Origin::File(file, _))) => {
            (networks.clone(), file.clone())
        }
        _ => (Vec::new(), directory.join("tcptracker.toml")),
    };
    let new = Value::String(network.to_owned());
    if networks.contains(&new) {
        return format!("\nNever block it: {} lists it already, so:\n  {reload}\n", file.display());
    }
    networks.push(new);
    let edit = edit_of(&read(&file), &Value::Array(networks).to_string());
    let (is_there, file) = (file.exists(), file.display());
    let place = match edit.place {
        Place::Replace(first, last) if first == last => {
            format!("in {file}, replace line {first} with")
        }
        Place::Replace(first, last) => format!("in {file}, replace lines {first} to {last} with"),
        Place::Below(line) => format!("in {file}, insert below line {line}"),
        Place::End if is_there => format!("add at the end of {file}"),
        Place::End => format!("create {file} with"),
    };
    let text: String = edit.text.lines().map(|line| format!("  {line}\n")).collect();
    format!("\nNever block it: {place}\n{text}and then:\n  {reload}\n")
}

fn read(file: &PathBuf) -> String {
    std::fs::read_to_string(file).unwrap_or_default()
}

/// Returns the edit of a valid file that sets the key to a value.
fn edit_of(file: &str, value: &str) -> Edit {
    let at_the_end = || Edit { place: Place::End, text: format!("[exempt]\nnetworks = {value}") };
    let Ok(tables) = DeTable::parse(file) else { return at_the_end() };
    let sections = tables.get_ref();
    let Some((section, content)) = sections.iter().find(|(name, _)| name.get_ref() == "exempt")
    else {
        return at_the_end();
    };
    let DeValue::Table(keys) = content.get_ref() else { return at_the_end() };
    if let Some((key, old)) = keys.iter().find(|(name, _)| name.get_ref() == "networks") {
        // Dotted keys and inline tables have text in front of the key; lines may end in a comment.
        let (first, last) = (line_of(file, key.span().start), line_of(file, old.span().end));
        let before = &file[start_of_line(file, key.span().start)..old.span().start];
        let after = file[old.span().end..].lines().next().unwrap_or_default();
        return Edit {
            place: Place::Replace(first, last),
            text: format!("{before}{value}{after}"),
        };
    }
    let (line, start) =
        (line_of(file, section.span().start), start_of_line(file, section.span().start));
    if file[start..].trim_start().starts_with('[') {
        return in_section(file, line, value);
    }
    let span = content.span();
    if file[span.start..].starts_with('{') {
        let separator = if keys.is_empty() { " " } else { "," };
        let (before, after) = (&file[start..=span.start], &file[span.start + 1..]);
        let after = after.lines().next().unwrap_or_default();
        return Edit {
            place: Place::Replace(line, line),
            text: format!("{before} networks = {value}{separator}{after}"),
        };
    }
    Edit { place: Place::Below(line), text: format!("exempt.networks = {value}") }
}

/// The section has a header in this line, and no such key. The shipped file has it in a comment.
fn in_section(file: &str, header: usize, value: &str) -> Edit {
    let text = format!("networks = {value}");
    let of_section = file.lines().enumerate().skip(header);
    let mut of_section = of_section.take_while(|(_, line)| !line.trim_start().starts_with('['));
    let commented = of_section.find(|(_, line)| {
        let key = line.trim_start().strip_prefix('#').map(str::trim_start);
        key.and_then(|key| key.strip_prefix("networks"))
            .is_some_and(|rest| rest.trim_start().starts_with('='))
    });
    let place = match commented {
        Some((at, _)) => Place::Replace(at + 1, at + 1),
        None => Place::Below(header),
    };
    Edit { place, text }
}

fn line_of(text: &str, offset: usize) -> usize {
    text[..offset].matches('\n').count() + 1
}

fn start_of_line(text: &str, offset: usize) -> usize {
    text[..offset].rfind('\n').map_or(0, |end| end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Applies an edit as a user would.
    fn applied(file: &str, edit: &Edit) -> String {
        let mut lines: Vec<&str> = file.lines().collect();
        let (from, to) = match edit.place {
            Place::Replace(first, last) => (first - 1, last),
            Place::Below(line) => (line, line),
            Place::End => (lines.len(), lines.len()),
        };
        lines.splice(from..to, edit.text.lines());
        lines.iter().map(|line| format!("{line}\n")).collect()
    }

    #[test]
    fn edited_file_is_valid_and_keeps_the_rest() {
        for (file, place) in [
            ("", Place::End),
            ("[detection]\nports = 5\n", Place::End),
            ("[exempt]\nnetworks = []\n", Place::Replace(2, 2)),
            ("[exempt]\nnetworks = [\"10.0.0.0/8\"] # us\n[log]\n", Place::Replace(2, 2)),
            (
                "[exempt]\nnetworks = [\n  \"10.0.0.0/8\",\n]\nautomatic = false\n",
                Place::Replace(2, 4),
            ),
            ("[exempt]\n\n# Never blocked.\n#networks = []\n\n[block]\n", Place::Replace(4, 4)),
            ("[exempt]\nautomatic = false\n[block]\n# networks = 1\n", Place::Below(1)),
            ("exempt.automatic = false\n[log]\n", Place::Below(1)),
            (
                "exempt.networks = [\"10.0.0.0/8\"]\nexempt.automatic = false\n",
                Place::Replace(1, 1),
            ),
            ("log = {}\nexempt = { automatic = false } # x\n", Place::Replace(2, 2)),
            ("exempt = {}\n", Place::Replace(1, 1)),
            ("exempt = { networks = [], automatic = false }\n", Place::Replace(1, 1)),
        ] {
            let edit = edit_of(file, "[\"192.0.2.1\"]");
            assert_eq!(edit.place, place, "{file}: {edit:?}");
            let text = applied(file, &edit);
            let mut before: toml::Table = file.parse().unwrap();
            let section = before.entry("exempt").or_insert_with(|| toml::Table::new().into());
            let networks = Value::Array(vec!["192.0.2.1".into()]);
            section.as_table_mut().unwrap().insert("networks".to_owned(), networks);
            let after: toml::Table = text.parse().unwrap_or_else(|error| panic!("{error}: {text}"));
            assert_eq!(after, before, "{text}");
            // Comments on the edited line stay.
            assert_eq!(file.contains("# us"), text.contains("# us"), "{text}");
        }
    }

    #[test]
    fn instructions_name_the_file_that_decides() {
        let directory = tempfile::tempdir().unwrap();
        let interface = "eth0".parse().unwrap();
        let shown = || instructions_within(directory.path(), &interface, "192.0.2.1");
        let write =
            |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        let reload = "and then:\n  sudo systemctl reload tcptracker@eth0\n";
        let common = directory.path().join("tcptracker.toml");
        assert_eq!(
            shown(),
            format!(
                "\nNever block it: create {} with\n  [exempt]\n  networks = [\"192.0.2.1\"]\n{reload}",
                common.display()
            )
        );
        write("tcptracker.toml", "");
        assert!(shown().contains("Never block it: add at the end of "), "{}", shown());
        write("tcptracker.toml", "[exempt]\nnetworks = [\"10.0.0.0/8\"]\n");
        let expected =
            "tcptracker.toml, replace line 2 with\n  networks = [\"10.0.0.0/8\", \"192.0.2.1\"]\n";
        assert!(shown().contains(expected), "{}", shown());
        // The file of the interface replaces the list.
        write("eth0.toml", "[exempt]\nnetworks = [\n\"192.0.2.9\"]\n");
        let expected =
            "eth0.toml, replace lines 2 to 3 with\n  networks = [\"192.0.2.9\", \"192.0.2.1\"]\n";
        assert!(shown().contains(expected), "{}", shown());
        write("eth0.toml", "[exempt]\nnetworks = [\"192.0.2.1\"]\n");
        assert!(shown().contains("eth0.toml lists it already"), "{}", shown());
        write("eth0.toml", "[exempt\n");
        assert!(shown().contains("tcptracker config -i eth0"), "{}", shown());
    }
}
