//! What main waits for, and the way to ask it for a reload.

use std::error::Error;
use std::sync::mpsc::Sender;

use crate::config::ConfigError;
use crate::handles::Reply;

/// Something that main has to react to.
#[derive(Debug)]
pub enum Notification {
    /// The process has received this signal.
    Signal(&'static str),
    /// A user asks for a reload of the configuration, and waits for the reply.
    Reload { uid: u32, reply: Reply<Result<(), ReloadError>> },
    /// The start is over: blocks are in force.
    InForce,
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

/// The way to main, for a reload of the configuration: only main can change what all threads work with.
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
        self.0.send(Notification::Reload { uid, reply }).ok()?;
        answer.recv().await.ok()
    }
}
