//! The errors callers get: their names are part of the interface.

use zbus::message::{Header, Message};
use zbus::names::ErrorName;
use zbus::{DBusError, fdo};

use crate::handles::firewall::RequestError;
use crate::handles::notification::ReloadError;

/// What callers are told when it did not work, a sentence each.
#[derive(Debug)]
pub enum Error {
    /// What every service has a name for: arguments out of bounds, no authorisation.
    Common(fdo::Error),
    /// The text is no address or network.
    InvalidAddress(String),
    /// The address is never blocked.
    Exempt(String),
    /// The address is not blocked.
    NotBlocked(String),
    /// The kernel did not accept it.
    FirewallFailed(String),
    /// The configuration is wrong: a problem a line, with file, line and what was expected.
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

/// What went wrong between the bus and the service.
impl From<zbus::Error> for Error {
    fn from(error: zbus::Error) -> Self {
        Self::Common(match error {
            zbus::Error::FDO(error) => *error,
            error => fdo::Error::Failed(error.to_string()),
        })
    }
}

impl From<RequestError> for Error {
    fn from(refusal: RequestError) -> Self {
        let text = refusal.to_string();
        match refusal {
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
