//! A flag that asks a thread to stop, or to look for commands.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, read, write};

/// Wakes a thread that sleeps in `poll`. Once raised it stays raised until it is lowered.
#[derive(Debug)]
pub struct StopFlag(OwnedFd);

impl StopFlag {
    /// Makes a flag that is not raised.
    pub fn new() -> Result<Self, Errno> {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(Self)
    }

    /// Raises the flag: from now on it is readable for all that poll it.
    pub fn raise(&self) {
        // Fails only if the counter is full, and then the flag is already raised.
        let _ = write(&self.0, &1u64.to_ne_bytes());
    }

    /// Lowers the flag, for a thread that only has to wake up.
    pub fn lower(&self) {
        // Fails only if the flag is not raised.
        let _ = read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for StopFlag {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
