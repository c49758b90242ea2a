//! Descriptors in reserve, for what protects the host when the process has no other ones.
//!
//! Owns some descriptors of the process, which has one table of them: a static, like that table. Only what
//! looks after blocks, capture and the host may use them; what serves clients must not.

use std::fmt::Display;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::fcntl_dupfd_cloexec;

/// A program of iptables needs six: the ends of three pipes.
const DESCRIPTORS: usize = 8;

/// What EMFILE means, in the words of the C library, in which libpcap reports it, too.
const NONE_LEFT: &str = "Too many open files";

static RESERVE: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());

/// Takes descriptors into the reserve until it is full, or the process has none left.
pub fn fill() {
    let mut reserve = reserve();
    while reserve.len() < DESCRIPTORS
        && let Ok(descriptor) = fcntl_dupfd_cloexec(std::io::stderr(), 0)
    {
        reserve.push(descriptor);
    }
}

/// Opens something. If the process has no descriptor left, gives up the reserve for it.
pub fn spend<T, E: Display>(mut open: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    match open() {
        Err(error) if error.to_string().contains(NONE_LEFT) => {
            reserve().clear();
            let opened = open();
            fill();
            opened
        }
        opened => opened,
    }
}

fn reserve() -> MutexGuard<'static, Vec<OwnedFd>> {
    RESERVE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn reserve_serves_who_finds_no_descriptor_and_is_full_again() {
        fill();
        let mut left = Vec::new();
        let opened = spend(|| {
            left.push(reserve().len());
            if reserve().is_empty() { Ok("open") } else { Err(Errno::MFILE) }
        });
        assert_eq!((opened, left), (Ok("open"), vec![DESCRIPTORS, 0]));
        assert_eq!(reserve().len(), DESCRIPTORS);
        assert_eq!(spend(|| Err::<(), _>(Errno::ACCESS)), Err(Errno::ACCESS));
    }
}
