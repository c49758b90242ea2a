//! What main waits for, and the way to it for a reload: only main can change what all threads work with.

use std::error::Error;
use std::sync::mpsc::Sender;

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

/// Asks main for a reload.
#[derive(Clone, Debug)]
pub struct Reloader(Sender<Notification>);

impl Reloader {
    /// Makes a way to the reader of these notifications.
    pub fn new(notifications: Sender<Notification>) -> Self {
        Self(notifications)
    }

    /// Asks for a reload and waits for its result. Returns nothing if main has ended.
    pub async fn reload(&self, uid: u32) -> Option<Result<(), ReloadError>> {
        let (reply, answer) = async_channel::bounded(1);
        self.0.send(Notification::Reload(ReloadRequest { uid, reply })).ok()?;
        answer.recv().await.ok()
    }
}
