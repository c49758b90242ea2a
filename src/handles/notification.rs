//! What main waits for.

use std::error::Error;

use crate::config::ConfigError;

/// What main waits for.
#[derive(Debug)]
pub enum Notification {
    /// The process has got this signal.
    Signal(&'static str),
    /// Somebody asks for the configuration to be read again.
    Reload(ReloadRequest),
    /// A thread has ended.
    Ended {
        /// Its name.
        thread: &'static str,
        /// How.
        result: Result<(), Box<dyn Error + Send + Sync>>,
    },
}

/// Why the configuration was not reloaded. The running one stays in force.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// What is configured is wrong.
    #[error(transparent)]
    Configuration(#[from] ConfigError),
    /// The kernel does not take it.
    #[error("{0}")]
    Firewall(String),
}

/// A reload somebody waits for.
#[derive(Debug)]
pub struct ReloadRequest {
    /// Who asks.
    pub uid: u32,
    /// Where the answer goes.
    pub reply: async_channel::Sender<Result<(), ReloadError>>,
}
