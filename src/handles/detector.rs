//! The way to the detector thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use ipnet::IpNet;

use crate::config::{DetectionConfig, LogConfig};
use crate::types::host::{Host, Listening};

/// Commands that may wait for the detector.
const QUEUE: usize = 1024;

/// What the detector thread is asked to do.
#[derive(Clone, Debug)]
pub enum DetectorCommand {
    /// Use another snapshot of the host.
    Host(Arc<Host>),
    /// Forget the past of these networks: they were unblocked.
    Forget(Vec<IpNet>),
    /// Use another set of ports on which the host listens.
    Listening(Arc<Listening>),
    /// Apply another configuration. The answer is whether the tracked sources were kept.
    Reconfigure(DetectionConfig, LogConfig, SyncSender<bool>),
}

/// Sends commands to the detector thread.
#[derive(Clone, Debug)]
pub struct DetectorHandle {
    commands: SyncSender<DetectorCommand>,
    wants_listening: Arc<AtomicBool>,
}

/// The detector thread's end.
#[derive(Debug)]
pub struct DetectorCommands {
    commands: Receiver<DetectorCommand>,
    wants_listening: Arc<AtomicBool>,
}

/// Makes both ends.
pub fn channel_to_detector() -> (DetectorHandle, DetectorCommands) {
    let (commands_in, commands) = sync_channel(QUEUE);
    let wants_listening = Arc::new(AtomicBool::new(false));
    let handle =
        DetectorHandle { commands: commands_in, wants_listening: Arc::clone(&wants_listening) };
    (handle, DetectorCommands { commands, wants_listening })
}

impl DetectorHandle {
    /// Sends a command, and waits while the queue is full. If the thread has ended, the process is about
    /// to.
    pub fn send(&self, command: DetectorCommand) {
        let _ = self.commands.send(command);
    }

    /// Returns whether the detector uses the ports on which the host listens.
    pub fn wants_listening(&self) -> bool {
        self.wants_listening.load(Ordering::Relaxed)
    }

    /// The queue, for a thread that sends nothing but commands.
    pub fn queue(&self) -> SyncSender<DetectorCommand> {
        self.commands.clone()
    }
}

impl DetectorCommands {
    /// Returns the next command if there is one.
    pub fn next(&self) -> Option<DetectorCommand> {
        self.commands.try_recv().ok()
    }

    /// Says whether the detector uses the ports on which the host listens.
    pub fn set_wants_listening(&self, wants: bool) {
        self.wants_listening.store(wants, Ordering::Relaxed);
    }
}
