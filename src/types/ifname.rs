//! Names of network interfaces, and the names derived from them: bus labels and units.
//!
//! Owns their spelling. Never asks whether an interface exists.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::types::is_unprintable;

/// The longest name that the kernel accepts: `IFNAMSIZ` (16) without the NUL at the end (linux/if.h).
const LONGEST: usize = 15;

/// The name of a network interface, or `any` for all interfaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct IfName(String);

/// A text that cannot be the name of a network interface.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} cannot be the name of a network interface: {}", expected(.name))]
pub struct InvalidIfName {
    name: String,
}

/// Returns what a valid name looks like. In the name of a unit "-" stands for "/", so that systemd turns
/// `tcptracker@wg-0` into `wg/0`.
fn expected(name: &str) -> String {
    let plain = name.replace("\\x2d", "-").replace("\\x40", "@");
    if plain != name && plain.parse::<IfName>().is_ok() {
        return format!("this is the form for unit names; write {plain}");
    }
    match name.replace('/', "-").parse::<IfName>() {
        Ok(meant) => {
            format!("the unit of {meant} is tcptracker@$(systemd-escape {meant})")
        }
        Err(_) => format!(
            "1 to {LONGEST} characters without spaces, quotes, \":\" or \"/\" (`ip -brief link` lists the \
             interfaces)"
        ),
    }
}

impl IfName {
    /// The name in the kernel.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether this is the pseudo-interface for all interfaces.
    pub fn is_any(&self) -> bool {
        self.0 == "any"
    }

    /// Returns the name as an element of a D-Bus name or path, escaped as systemd escapes bus labels
    /// (`bus_label_escape`, systemd src/shared/bus-label.c): every byte becomes `_` and two lower-case
    /// hexadecimal digits, except A-Z, a-z, and 0-9 after the first byte.
    pub fn bus_label(&self) -> String {
        let mut label = String::with_capacity(self.0.len());
        for (at, byte) in self.0.bytes().enumerate() {
            if byte.is_ascii_alphabetic() || (at > 0 && byte.is_ascii_digit()) {
                label.push(char::from(byte));
            } else {
                label.push_str(&format!("_{byte:02x}"));
            }
        }
        label
    }

    /// Returns the unit of the service for a shell command. systemd requires most characters to be escaped.
    pub fn unit(&self) -> String {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_');
        if self.0.chars().all(is_plain) && !self.0.starts_with('.') {
            return format!("tcptracker@{}", self.0);
        }
        // A name may contain characters with a meaning for the shell, but no quote.
        let is_word = |c: char| is_plain(c) || c == '-';
        let quote = if self.0.chars().all(is_word) { "" } else { "'" };
        format!("\"tcptracker@$(systemd-escape {quote}{}{quote})\"", self.0)
    }

    /// Returns the interface of a bus label, or nothing if the label is invalid.
    pub fn from_bus_label(label: &str) -> Option<Self> {
        let mut bytes = Vec::with_capacity(label.len());
        let mut rest = label.as_bytes();
        while let Some((&first, tail)) = rest.split_first() {
            if first == b'_' {
                let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
                bytes.push(u8::from_str_radix(digits, 16).ok()?);
                rest = tail.get(2..)?;
            } else {
                bytes.push(first);
                rest = tail;
            }
        }
        let interface: Self = String::from_utf8(bytes).ok()?.parse().ok()?;
        // Each name has only one label.
        (interface.bus_label() == label).then_some(interface)
    }
}

impl FromStr for IfName {
    type Err = InvalidIfName;

    /// Applies the rule of the kernel (`dev_valid_name`, net/core/dev.c), and refuses characters that would
    /// need quotes in a firewall rule or that a terminal does not show.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let acceptable = !name.is_empty()
            && name.len() <= LONGEST
            && name != "."
            && name != ".."
            && !name.chars().any(|c| {
                matches!(c, '/' | ':' | '"' | '\'' | '\\') || c.is_whitespace() || is_unprintable(c)
            });
        if acceptable {
            Ok(Self(name.to_owned()))
        } else {
            Err(InvalidIfName { name: name.to_owned() })
        }
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn label(name: &str) -> String {
        name.parse::<IfName>().unwrap().bus_label()
    }

    #[test]
    fn labels_are_escaped_like_systemd() {
        assert_eq!(label("eth0"), "eth0");
        assert_eq!(label("eth0.100"), "eth0_2e100");
        assert_eq!(label("wg-0"), "wg_2d0");
        assert_eq!(label("0abc"), "_30abc");
        assert_eq!(label("a_b"), "a_5fb");
    }

    #[test]
    fn label_that_is_not_canonical_is_refused() {
        for other in ["eth0.100", "_65th0", "_2E", "0abc", "_", "_2", ""] {
            assert_eq!(IfName::from_bus_label(other), None, "{other:?}");
        }
    }

    #[test]
    fn units_are_quoted_for_the_shell() {
        for (name, unit) in [
            ("eth0.100", "tcptracker@eth0.100"),
            ("wg-0", r#""tcptracker@$(systemd-escape wg-0)""#),
            ("a$b", r#""tcptracker@$(systemd-escape 'a$b')""#),
        ] {
            assert_eq!(name.parse::<IfName>().unwrap().unit(), unit);
        }
    }

    #[test]
    fn names_that_the_kernel_refuses_are_refused() {
        for bad in ["", ".", "..", "a/b", "a b", "a:b", "sixteen-letters-", "tab\t", "a\u{202e}b"] {
            assert!(bad.parse::<IfName>().is_err(), "{bad:?}");
        }
        assert!("fifteen-letters".parse::<IfName>().is_ok());
    }

    #[test]
    fn error_shows_how_to_escape_an_instance() {
        let error = |name: &str| name.parse::<IfName>().unwrap_err().to_string();
        assert_eq!(
            error("wg/0"),
            "\"wg/0\" cannot be the name of a network interface: the unit of wg-0 is \
             tcptracker@$(systemd-escape wg-0)"
        );
        assert!(error("br/lan/5").contains("$(systemd-escape br-lan-5)"));
        assert!(error("wg\\x2d0").ends_with("; write wg-0"));
        for other in ["", "a b", "much/too/long/a/name"] {
            assert!(error(other).contains("1 to 15 characters"), "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn every_name_survives_its_label(name in "[^\\s/:\\p{C}]{1,15}") {
            if let Ok(interface) = name.parse::<IfName>() {
                prop_assert_eq!(IfName::from_bus_label(&interface.bus_label()), Some(interface));
            }
        }
    }
}
