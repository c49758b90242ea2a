//! A flag that asks a thread to stop.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, write};

/// Asks a thread that sleeps in `poll` to stop. Once raised it stays so.
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
}

impl AsFd for StopFlag {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
