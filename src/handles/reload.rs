//! The way to main, for a reload of the configuration: only main can change what all threads work with.

use std::sync::mpsc::Sender;

use crate::handles::{Notification, ReloadError, ReloadRequest};

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
