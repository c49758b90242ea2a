//! The message catalog explains every message except that of single connections, and README.md lists all.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use crate::{output, read, tree};

/// A new connection: an explanation of each would hide the scans in `journalctl -x`.
const NOT_EXPLAINED: &str = "9840eea37f064008a5e6549aad6c92f2";

type Fields<'a> = BTreeSet<&'a str>;

/// A message identifier (sd-id128(3)).
fn is_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Returns the fields that a log call sets in every case. They end at the text, which begins a line or
/// follows on the same line.
fn fields_of(call: &str) -> Fields<'_> {
    let mut lines = call.split_inclusive('\n');
    let first = lines.next().unwrap();
    let end = first.find(" \"").unwrap_or_else(|| {
        let fields = lines.take_while(|line| !line.trim_start().starts_with('"'));
        first.len() + fields.map(str::len).sum::<usize>()
    });
    call[..end]
        .split("TCPTRACKER_")
        .skip(1)
        .filter_map(|field| field.split_once('='))
        .filter(|(_, value)| !value.contains(".then(") && !value.contains(".map("))
        .map(|(field, _)| field.trim())
        .collect()
}

/// Returns every message ID in the code with the fields that every such entry has.
fn messages(code: &str) -> BTreeMap<&str, Fields<'_>> {
    let ids: BTreeMap<&str, &str> = code
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub const "))
        .filter_map(|line| line.split_once(": &str = \""))
        .map(|(name, rest)| (name, rest.trim_end_matches("\";")))
        .collect();
    let mut messages: BTreeMap<&str, Fields> = BTreeMap::new();
    // The macro `entry!` sets the interface.
    for call in code.split("entry!(").skip(1) {
        let (head, rest) = call.split_once(',').unwrap();
        let name = head.split_whitespace().last().unwrap();
        let mut always = fields_of(rest);
        always.insert("INTERFACE");
        messages
            .entry(ids[name])
            .and_modify(|fields| fields.retain(|field| always.contains(field)))
            .or_insert(always);
    }
    // All warnings share one call, to which their IDs are passed.
    let (_, call) = code.split_once("MESSAGE_ID = id,").unwrap();
    for pair in code.split("(id::").skip(1) {
        messages.insert(ids[pair.split_once(',').unwrap().0], fields_of(call));
    }
    assert_eq!(messages.keys().copied().collect::<BTreeSet<_>>(), ids.values().copied().collect());
    messages
}

/// The catalog entries as journalctl parses them.
fn entries() -> BTreeMap<String, String> {
    let root = tempfile::tempdir().unwrap();
    for directory in ["usr/lib/systemd/catalog", "var/lib/systemd/catalog"] {
        std::fs::create_dir_all(root.path().join(directory)).unwrap();
    }
    let file = root.path().join("usr/lib/systemd/catalog/tcptracker.catalog");
    std::fs::copy(tree().join("packaging/tcptracker.catalog"), file).unwrap();
    let journalctl = |argument: &str| {
        output(Command::new("journalctl").arg("--root").arg(root.path()).arg(argument))
    };
    journalctl("--update-catalog");
    let dumped = journalctl("--dump-catalog");
    dumped
        .split("-- ")
        .filter_map(|entry| entry.split_once('\n'))
        .filter(|(id, _)| is_id(id))
        .map(|(id, text)| (id.to_owned(), text.to_owned()))
        .collect()
}

#[test]
fn catalog_explains_every_message() {
    let code = read("src/api/journal.rs");
    let (messages, entries) = (messages(&code), entries());
    assert!(messages.len() >= 15, "{messages:?}");
    let explained: BTreeSet<&str> = entries.keys().map(String::as_str).collect();
    let missing: Vec<&str> =
        messages.keys().copied().filter(|id| !explained.contains(id)).collect();
    assert_eq!(missing, [NOT_EXPLAINED]);
    assert!(explained.iter().all(|id| messages.contains_key(id)), "{explained:?}");
    for (id, text) in &entries {
        let (head, body) = text.split_once("\n\n").unwrap();
        for header in ["Subject: ", "Defined-By: tcptracker", "Documentation: man:tcptracker"] {
            assert!(head.lines().any(|line| line.starts_with(header)), "{id} lacks {header}");
        }
        // At least 2 paragraphs: the meaning and what to do.
        assert!(body.trim().contains("\n\n"), "{id}: {body}");
        let fields = text.split('@').filter_map(|word| word.strip_prefix("TCPTRACKER_"));
        for field in fields {
            assert!(messages[id.as_str()].contains(field), "{field} is not in every message {id}");
        }
    }
}

#[test]
fn readme_lists_every_message() {
    let (code, readme) = (read("src/api/journal.rs"), read("README.md"));
    let listed: BTreeSet<&str> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(id, _)| id)
        .filter(|id| is_id(id))
        .collect();
    assert_eq!(listed, messages(&code).into_keys().collect());
    // Message IDs in examples.
    let named = readme.split("MESSAGE_ID=").skip(1).filter_map(|rest| rest.get(..32));
    for id in named {
        assert!(listed.contains(id), "{id}");
    }
}
