//! The errors that callers receive. Their names are part of the interface.

use std::borrow::Cow;

use zbus::message::{Header, Message};
use zbus::names::ErrorName;
use zbus::{DBusError, fdo};

use crate::handles::{ReloadError, RequestError};
use crate::types::{InvalidAddress, printable};

/// The argument is not an address or network.
const INVALID_ADDRESS: &str = "org.tcptracker.Tracker1.Error.InvalidAddress";
const EXEMPT: &str = "org.tcptracker.Tracker1.Error.Exempt";
const NOT_BLOCKED: &str = "org.tcptracker.Tracker1.Error.NotBlocked";
/// The kernel did not accept the change.
const FIREWALL_FAILED: &str = "org.tcptracker.Tracker1.Error.FirewallFailed";
/// The text has a mistake per line, with file and line number.
const INVALID_CONFIGURATION: &str = "org.tcptracker.Tracker1.Error.InvalidConfiguration";

/// The longest description of an error, in bytes.
const LONGEST_DESCRIPTION: usize = 1024;

/// The longest list of mistakes in a configuration, in bytes.
const LONGEST_MISTAKES: usize = 64 << 10;

/// Why a call failed, with a text for the caller.
#[derive(Debug)]
pub enum Error {
    /// An error that D-Bus defines, such as `AccessDenied`.
    Common(fdo::Error),
    /// The name and the text of an error of this interface.
    Own(&'static str, String),
}

impl Error {
    /// The service cannot handle the call.
    pub fn unavailable(text: &str) -> Self {
        Self::Own(FIREWALL_FAILED, text.to_owned())
    }
}

impl DBusError for Error {
    fn create_reply(&self, call: &Header<'_>) -> zbus::Result<Message> {
        let text = self.description().unwrap_or_default();
        let text = match self {
            // From files of root, for callers that may reload. Its lines are escaped already.
            Self::Own(INVALID_CONFIGURATION, _) => cut(Cow::Borrowed(text), LONGEST_MISTAKES),
            _ => bounded(text),
        };
        Message::error(call, self.name()).build(&text)
    }

    fn name(&self) -> ErrorName<'_> {
        match self {
            Self::Common(error) => error.name(),
            Self::Own(name, _) => ErrorName::from_static_str_unchecked(name),
        }
    }

    fn description(&self) -> Option<&str> {
        match self {
            Self::Common(error) => error.description(),
            Self::Own(_, text) => Some(text),
        }
    }
}

/// Returns a text that may quote a caller's, safe for a terminal and short enough for a message.
pub fn bounded(text: &str) -> Cow<'_, str> {
    cut(printable(text), LONGEST_DESCRIPTION)
}

fn cut(text: Cow<'_, str>, longest: usize) -> Cow<'_, str> {
    if text.len() <= longest {
        return text;
    }
    let end = (0..=longest).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    Cow::Owned(format!("{}...", &text[..end]))
}

impl From<fdo::Error> for Error {
    fn from(error: fdo::Error) -> Self {
        Self::Common(error)
    }
}

/// An error between the bus and the service.
impl From<zbus::Error> for Error {
    fn from(error: zbus::Error) -> Self {
        Self::Common(match error {
            zbus::Error::FDO(error) => *error,
            error => fdo::Error::Failed(error.to_string()),
        })
    }
}

impl From<InvalidAddress> for Error {
    fn from(error: InvalidAddress) -> Self {
        Self::Own(INVALID_ADDRESS, error.to_string())
    }
}

impl From<RequestError> for Error {
    fn from(error: RequestError) -> Self {
        let name = match error {
            RequestError::Exempt { .. } => EXEMPT,
            RequestError::NotBlocked(_) | RequestError::Unknown(_) => NOT_BLOCKED,
            RequestError::Failed(_) => FIREWALL_FAILED,
        };
        Self::Own(name, error.to_string())
    }
}

impl From<ReloadError> for Error {
    fn from(error: ReloadError) -> Self {
        let name = match error {
            ReloadError::Configuration(_) | ReloadError::Memory(_) => INVALID_CONFIGURATION,
            ReloadError::Firewall(_) => FIREWALL_FAILED,
        };
        Self::Own(name, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the text of the reply to a call that fails with an error.
    fn replied(error: &Error) -> String {
        let call = Message::method_call("/", "Block").sender(":1.5").build(&()).unwrap();
        let reply = error.create_reply(&call.header()).unwrap();
        reply.body().deserialize().unwrap()
    }

    #[test]
    fn description_is_escaped_and_then_cut() {
        let long = "\u{1b}é".repeat(10_000);
        for error in [fdo::Error::Failed(long.clone()).into(), Error::Own(EXEMPT, long)] {
            let text = replied(&error);
            assert!(text.starts_with(r"\u{1b}é\u{1b}é") && text.ends_with("..."), "{text}");
            assert!(text.len() <= LONGEST_DESCRIPTION + 3, "{} bytes", text.len());
        }
    }

    #[test]
    fn mistakes_in_a_configuration_keep_their_lines() {
        let mistakes = "line 1: wrong\n".repeat(100);
        assert_eq!(replied(&Error::Own(INVALID_CONFIGURATION, mistakes.clone())), mistakes);
        let many = mistakes.repeat(1000);
        assert_eq!(replied(&Error::Own(INVALID_CONFIGURATION, many)).len(), LONGEST_MISTAKES + 3);
    }
}
