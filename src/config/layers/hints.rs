//! What an administrator probably meant.
//!
//! Owns the advice in messages about unknown names and wrong values. Never decides what is valid.

use strsim::levenshtein;
use toml::Value;

use crate::config::reference::{KEYS, SECTIONS};
use crate::types::quotable;

/// Says that there is no such key, and names a similar one or the section of its namesake.
pub fn unknown_key(key: &str) -> String {
    let (section, name) = key.split_once('.').unwrap_or(("", key));
    let hint = match (similar_key(section, name), sections_with(name).first()) {
        (Some(similar), _) => format!("; did you mean {similar}?"),
        (None, Some(owner)) => format!("; {name} belongs to [{owner}]"),
        (None, None) => String::new(),
    };
    format!("unknown key {}{hint} (`tcptracker config` lists all keys)", quotable(key))
}

/// Says that there is no such section, and names a similar one or all.
pub fn unknown_section(name: &str) -> String {
    let hint = match similar_section(name) {
        Some(similar) => format!("did you mean [{similar}]?"),
        None => {
            format!("the sections are {}", bracketed(&SECTIONS.map(|(name, _)| name)).join(", "))
        }
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
    let within = if section.is_empty() { None } else { Some(similar_section(section)?) };
    let keys = KEYS.iter().filter_map(|key| Some((key.name.split_once('.')?, key.name)));
    let keys = keys.filter(|((section, _), _)| within.is_none_or(|within| within == *section));
    closest(name, keys.map(|((_, spelling), key)| (spelling, key)))
}

fn similar_section(name: &str) -> Option<&'static str> {
    closest(name, SECTIONS.iter().map(|(section, _)| (*section, *section)))
}

fn sections_with(name: &str) -> Vec<&'static str> {
    let split = KEYS.iter().filter_map(|key| key.name.split_once('.'));
    split.filter(|(_, found)| *found == name).map(|(section, _)| section).collect()
}

fn bracketed(sections: &[&str]) -> Vec<String> {
    sections.iter().map(|section| format!("[{section}]")).collect()
}

/// The name whose spelling has the fewest letters to change, if they are at most half of it.
fn closest(
    text: &str,
    names: impl Iterator<Item = (&'static str, &'static str)>,
) -> Option<&'static str> {
    let changes = names.map(|(spelling, name)| (levenshtein(text, spelling), spelling.len(), name));
    changes.min().filter(|(changed, length, _)| *changed <= length / 2).map(|(.., name)| name)
}
