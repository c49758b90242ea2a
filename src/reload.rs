//! Asking for a reload: what main is asked, and what it answers.
//!
//! Owns the words between whoever asks (the bus, a signal) and main, which alone can change what all
//! threads work with.

use std::sync::mpsc::Sender;

use crate::config::ConfigError;
use crate::crew::Notice;

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

/// The way to main.
#[derive(Clone, Debug)]
pub struct Reloader(Sender<Notice>);

impl Reloader {
    /// A way to whoever reads these notices.
    pub fn new(notices: Sender<Notice>) -> Self {
        Self(notices)
    }

    /// Asks for a reload; nothing if main has ended.
    pub async fn reload(&self, uid: u32) -> Option<Result<(), ReloadError>> {
        let (reply, answer) = async_channel::bounded(1);
        self.0.send(Notice::Reload(ReloadRequest { uid, reply })).ok()?;
        answer.recv().await.ok()
    }
}
