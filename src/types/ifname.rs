//! Network interface names and what is derived from them.
//!
//! Owns the names a user meets on the bus, in the kernel and in the journal, so that each is spelled
//! in one place. Never asks whether an interface exists.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// The longest name the kernel takes: `IFNAMSIZ` (16) less the closing NUL, linux/if.h.
const LONGEST: usize = 15;

/// The name of a network interface, or `any` for all of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct IfName(String);

/// A text that cannot be the name of a network interface.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} cannot be the name of a network interface: {}", expected(.name))]
pub struct InvalidIfName {
    name: String,
}

/// What would be a name. In that of a unit a "-" stands for "/", as in `tcptracker@wg-0`, and systemd has
/// made `wg/0` of it.
fn expected(name: &str) -> String {
    let plain = name.replace("\\x2d", "-").replace("\\x40", "@");
    if plain != name && plain.parse::<IfName>().is_ok() {
        return format!("only in the names of units it is written so; write {plain}");
    }
    match name.replace('/', "-").parse::<IfName>() {
        Ok(meant) => {
            format!("the unit of {meant} is written tcptracker@$(systemd-escape {meant})")
        }
        Err(_) => format!(
            "1 to {LONGEST} characters without spaces, quotes, \":\" or \"/\" (`ip -brief link` lists the \
             interfaces)"
        ),
    }
}

impl IfName {
    /// The name as the kernel has it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the pseudo-interface that stands for all.
    pub fn is_any(&self) -> bool {
        self.0 == "any"
    }

    /// The name as an element of a D-Bus name or path, escaped as systemd escapes bus labels
    /// (`bus_label_escape`, systemd src/shared/bus-label.c): every byte but A-Z, a-z and, not in
    /// front, 0-9 becomes `_` and two lower-case hexadecimal digits.
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

    /// The service's unit, as a shell takes it: systemd wants most characters of a name escaped.
    pub fn unit(&self) -> String {
        let stays = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_');
        if self.0.chars().all(stays) && !self.0.starts_with('.') {
            return format!("tcptracker@{}", self.0);
        }
        // A name may hold what means something to a shell, but no quote.
        let is_word = |c: char| stays(c) || c == '-';
        let quote = if self.0.chars().all(is_word) { "" } else { "'" };
        format!("\"tcptracker@$(systemd-escape {quote}{}{quote})\"", self.0)
    }

    /// The interface of a bus label, or nothing where the label is not one.
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
        // What has been escaped otherwise than it ought to be is not one.
        (interface.bus_label() == label).then_some(interface)
    }
}

impl FromStr for IfName {
    type Err = InvalidIfName;

    /// The kernel's own rule (`dev_valid_name`, net/core/dev.c), less what would need quoting in a
    /// firewall rule.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let acceptable = !name.is_empty()
            && name.len() <= LONGEST
            && name != "."
            && name != ".."
            && !name.chars().any(|c| {
                matches!(c, '/' | ':' | '"' | '\'' | '\\') || c.is_whitespace() || c.is_control()
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
    fn labels_are_escaped_as_systemd_does() {
        assert_eq!(label("eth0"), "eth0");
        assert_eq!(label("eth0.100"), "eth0_2e100");
        assert_eq!(label("wg-0"), "wg_2d0");
        assert_eq!(label("0abc"), "_30abc");
        assert_eq!(label("a_b"), "a_5fb");
    }

    #[test]
    fn a_label_is_of_one_name_only() {
        for other in ["eth0.100", "_65th0", "_2E", "0abc", "_", "_2", ""] {
            assert_eq!(IfName::from_bus_label(other), None, "{other:?}");
        }
    }

    #[test]
    fn units_are_written_as_a_shell_takes_them() {
        for (name, unit) in [
            ("eth0.100", "tcptracker@eth0.100"),
            ("wg-0", r#""tcptracker@$(systemd-escape wg-0)""#),
            ("a$b", r#""tcptracker@$(systemd-escape 'a$b')""#),
        ] {
            assert_eq!(name.parse::<IfName>().unwrap().unit(), unit);
        }
    }

    #[test]
    fn names_the_kernel_refuses_are_refused() {
        for bad in ["", ".", "..", "a/b", "a b", "a:b", "sixteen-letters-", "tab\t"] {
            assert!(bad.parse::<IfName>().is_err(), "{bad:?}");
        }
        assert!("fifteen-letters".parse::<IfName>().is_ok());
    }

    #[test]
    fn an_instance_that_is_not_escaped_is_told_how_to_be() {
        let told = |name: &str| name.parse::<IfName>().unwrap_err().to_string();
        assert_eq!(
            told("wg/0"),
            "\"wg/0\" cannot be the name of a network interface: the unit of wg-0 is written \
             tcptracker@$(systemd-escape wg-0)"
        );
        assert!(told("br/lan/5").contains("$(systemd-escape br-lan-5)"));
        assert!(told("wg\\x2d0").ends_with("; write wg-0"));
        for other in ["", "a b", "much/too/long/a/name"] {
            assert!(told(other).contains("1 to 15 characters"), "{other:?}");
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
