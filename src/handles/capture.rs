//! The way to the capture thread.
//!
//! The thread sleeps in `poll`, so that each command also wakes it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{read, write};

/// What the capture thread is asked to do.
#[derive(Debug)]
pub enum CaptureCommand {
    /// Capture what tells the outcomes of probes from now on, or only probes. The answer comes once the
    /// capture is open again, or at once if there is none to reopen.
    SetOutcomes { outcomes: bool, done: SyncSender<()> },
    /// End.
    Stop,
}

/// Sends commands to the capture thread.
#[derive(Clone, Debug)]
pub struct CaptureHandle {
    commands: Sender<CaptureCommand>,
    wakeup: Arc<OwnedFd>,
}

/// The capture thread's end. Its file descriptor is readable while commands wait.
#[derive(Debug)]
pub struct CaptureCommands {
    commands: Receiver<CaptureCommand>,
    wakeup: Arc<OwnedFd>,
}

/// Makes both ends.
pub fn channel_to_capture() -> io::Result<(CaptureHandle, CaptureCommands)> {
    let wakeup = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let (commands_in, commands) = channel();
    let handle = CaptureHandle { commands: commands_in, wakeup: Arc::clone(&wakeup) };
    Ok((handle, CaptureCommands { commands, wakeup }))
}

impl CaptureHandle {
    /// Asks for a capture with or without what tells the outcomes of probes. The answer comes once that
    /// has happened.
    pub fn set_outcomes(&self, outcomes: bool) -> Receiver<()> {
        let (done, answer) = sync_channel(1);
        self.send(CaptureCommand::SetOutcomes { outcomes, done });
        answer
    }

    /// Asks the thread to end.
    pub fn stop(&self) {
        self.send(CaptureCommand::Stop);
    }

    fn send(&self, command: CaptureCommand) {
        // If the thread has ended, the process is about to.
        let _ = self.commands.send(command);
        // Fails only if the counter is full, and then the thread is awake.
        let _ = write(&self.wakeup, &1u64.to_ne_bytes());
    }
}

impl CaptureCommands {
    /// Returns the next command if there is one.
    pub fn next(&self) -> Option<CaptureCommand> {
        // Before the look into the queue, so that a command that comes between wakes the thread again.
        let _ = read(&self.wakeup, &mut [0; 8]);
        self.commands.try_recv().ok()
    }
}

impl AsFd for CaptureCommands {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wakeup.as_fd()
    }
}
