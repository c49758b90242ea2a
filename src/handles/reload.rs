//! Asking for a reload: what main is asked, and what it answers.
//!
//! Owns the words between whoever asks (the bus, a signal) and main, which alone can change what all
//! threads work with.

use crate::handles::notification::ReloadError;
use crate::handles::notification::ReloadRequest;
use std::sync::mpsc::Sender;

use crate::handles::notification::Notification;

/// The way to main.
#[derive(Clone, Debug)]
pub struct Reloader(Sender<Notification>);

impl Reloader {
    /// A way to whoever reads these notices.
    pub fn new(notifications: Sender<Notification>) -> Self {
        Self(notifications)
    }

    /// Asks for a reload; nothing if main has ended.
    pub async fn reload(&self, uid: u32) -> Option<Result<(), ReloadError>> {
        let (reply, answer) = async_channel::bounded(1);
        self.0.send(Notification::Reload(ReloadRequest { uid, reply })).ok()?;
        answer.recv().await.ok()
    }
}
