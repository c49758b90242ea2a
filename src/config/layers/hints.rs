//! What an administrator probably meant.
//!
//! Owns the advice in messages about unknown names and wrong values. Never decides what is valid.

use toml::Value;

use crate::config::reference::{KEYS, SECTIONS};
use crate::types::quotable;

/// Says that there is no such key, and names a similar one or the section of its namesake.
pub fn unknown_key(key: &str) -> String {
    let (section, name) = key.split_once('.').unwrap_or(("", key));
    let hint = if let Some(similar) = similar_key(section, name) {
        format!("; did you mean {similar}?")
    } else if let [owner, ..] = sections_with(name)[..] {
        format!("; {name} belongs to [{owner}]")
    } else {
        String::new()
    };
    format!("unknown key {}{hint} (`tcptracker config` lists all keys)", quotable(key))
}

/// Says that there is no such section, and names a similar one or all.
pub fn unknown_section(name: &str) -> String {
    let names = SECTIONS.map(|(section, _)| section);
    let hint = match closest(name, names) {
        Some(similar) => format!("did you mean [{similar}]?"),
        None => format!("the sections are {}", bracketed(&names).join(", ")),
    };
    format!("unknown section [{}]; {hint}", quotable(name))
}

/// Says where a key belongs that stands outside of all sections, or is unknown. `line_of_section`
/// tells where the file has a section already: TOML does not allow a section in two places.
pub fn key_without_section(
    name: &str,
    written: &str,
    line_of_section: impl Fn(&str) -> Option<usize>,
) -> String {
    let owners = sections_with(name);
    if owners.is_empty() {
        return unknown_key(name);
    }
    let belongs = format!("{name} belongs to {}", bracketed(&owners).join(" or "));
    let advice: Vec<String> = owners
        .iter()
        .map(|section| match line_of_section(section) {
            Some(line) => format!("move it below [{section}] (line {line})"),
            None => format!("write {section}.{name} = {}", quotable(written)),
        })
        .collect();
    format!("{belongs}; {}", advice.join(" or "))
}

/// Values that a wrong one may stand for, the likeliest first.
pub fn likely_values(written: &str) -> Vec<Value> {
    let word = written.trim().trim_matches(['"', '\'', '“', '”']);
    let mut values = Vec::new();
    match word.to_ascii_lowercase().as_str() {
        "yes" | "on" | "true" | "enabled" => values.push(Value::Boolean(true)),
        "no" | "off" | "false" | "disabled" => values.push(Value::Boolean(false)),
        _ => {}
    }
    values.extend(word.parse().map(Value::Integer));
    let spellings = [word.to_owned(), word.to_ascii_lowercase(), word.to_ascii_uppercase()];
    values.extend(spellings.map(Value::String));
    let lists: Vec<Value> = values.iter().map(|value| Value::Array(vec![value.clone()])).collect();
    values.extend(lists);
    values
}

/// A key of the section that is spelt like this one, or any key if there is no such section.
fn similar_key(section: &str, name: &str) -> Option<&'static str> {
    let within = match section {
        "" => None,
        _ => Some(closest(section, SECTIONS.map(|(section, _)| section))?),
    };
    let candidates = KEYS.iter().filter_map(|key| {
        let (section, found) = key.name.split_once('.')?;
        within.is_none_or(|within| within == section).then_some((
            distance(name, found),
            found.len() / 2,
            key.name,
        ))
    });
    let (distance, most, key) = candidates.min()?;
    (distance <= most).then_some(key)
}

fn sections_with(name: &str) -> Vec<&'static str> {
    let split = KEYS.iter().filter_map(|key| key.name.split_once('.'));
    split.filter(|(_, found)| *found == name).map(|(section, _)| section).collect()
}

fn bracketed(sections: &[&str]) -> Vec<String> {
    sections.iter().map(|section| format!("[{section}]")).collect()
}

/// The name with the fewest letters to change, if they are at most half of it.
fn closest<'a>(text: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distances = names.into_iter().map(|name| (distance(text, name), name));
    let (distance, name) = distances.min()?;
    (distance <= name.len() / 2).then_some(name)
}

/// Levenshtein's distance.
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.chars().count()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.chars().enumerate() {
            let substituted = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}
