//! The errors that callers receive. Their names are part of the interface.

use zbus::message::{Header, Message};
use zbus::names::ErrorName;
use zbus::{DBusError, fdo};

use crate::handles::{ReloadError, RequestError};

/// Why a call failed, with a text for the caller.
#[derive(Debug)]
pub enum Error {
    /// An error that D-Bus defines, such as `AccessDenied`.
    Common(fdo::Error),
    /// The text is not an address or network.
    InvalidAddress(String),
    Exempt(String),
    NotBlocked(String),
    /// The kernel did not accept the change.
    FirewallFailed(String),
    /// A mistake per line, with file and line number.
    InvalidConfiguration(String),
}

impl DBusError for Error {
    fn create_reply(&self, call: &Header<'_>) -> zbus::Result<Message> {
        Message::error(call, self.name()).build(&self.description().unwrap_or_default())
    }

    fn name(&self) -> ErrorName<'_> {
        ErrorName::from_static_str_unchecked(match self {
            Self::Common(error) => return error.name(),
            Self::InvalidAddress(_) => "org.tcptracker.Tracker1.Error.InvalidAddress",
            Self::Exempt(_) => "org.tcptracker.Tracker1.Error.Exempt",
            Self::NotBlocked(_) => "org.tcptracker.Tracker1.Error.NotBlocked",
            Self::FirewallFailed(_) => "org.tcptracker.Tracker1.Error.FirewallFailed",
            Self::InvalidConfiguration(_) => "org.tcptracker.Tracker1.Error.InvalidConfiguration",
        })
    }

    fn description(&self) -> Option<&str> {
        match self {
            Self::Common(error) => error.description(),
            Self::InvalidAddress(text)
            | Self::Exempt(text)
            | Self::NotBlocked(text)
            | Self::FirewallFailed(text)
            | Self::InvalidConfiguration(text) => Some(text),
        }
    }
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

impl From<RequestError> for Error {
    fn from(error: RequestError) -> Self {
        let text = error.to_string();
        match error {
            RequestError::Exempt { .. } => Self::Exempt(text),
            RequestError::NotBlocked(_) | RequestError::Unknown(_) => Self::NotBlocked(text),
            RequestError::Failed(_) => Self::FirewallFailed(text),
        }
    }
}

impl From<ReloadError> for Error {
    fn from(error: ReloadError) -> Self {
        match error {
            ReloadError::Configuration(error) => Self::InvalidConfiguration(error.to_string()),
            ReloadError::Firewall(text) => Self::FirewallFailed(text),
        }
    }
}
