//! What main waits for.

use std::error::Error;

use crate::config::ConfigError;

/// Something that main has to react to.
#[derive(Debug)]
pub enum Notification {
    /// The process has received this signal.
    Signal(&'static str),
    /// A user asks for a reload of the configuration.
    Reload(ReloadRequest),
    /// A thread has ended.
    Ended { thread: &'static str, result: Result<(), Box<dyn Error + Send + Sync>> },
}

/// Why the configuration was not reloaded. The running one stays in force.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The configuration is wrong.
    #[error(transparent)]
    Configuration(#[from] ConfigError),
    /// The firewall cannot be changed as configured.
    #[error("{0}")]
    Firewall(String),
}

/// A request to reload the configuration.
#[derive(Debug)]
pub struct ReloadRequest {
    /// The user who asks.
    pub uid: u32,
    /// Where the answer goes.
    pub reply: async_channel::Sender<Result<(), ReloadError>>,
}
