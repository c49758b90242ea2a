//! Descriptors in reserve, for what protects the host when the process has no other ones.
//!
//! Owns some descriptors of the process, which has one table of them: a static, like that table. Only what
//! looks after blocks, capture and the host may use them; what serves clients must not.

use std::fmt::Display;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::fcntl_dupfd_cloexec;

/// The start of a program of iptables needs nine: the ends of three pipes, two until it runs, and one to wait for
/// its end. A lock and netlink sockets may be open beside it.
const DESCRIPTORS: usize = 12;

/// What EMFILE means, in the words of the C library, in which libpcap reports it, too.
const NONE_LEFT: &str = "Too many open files";

static RESERVE: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());

/// Takes descriptors into the reserve until it is full, or the process has none left.
pub fn fill() {
    refill(&mut reserve());
}

/// Opens something, which must not take long. If the process has no descriptor left, gives up the reserve for
/// it, and lets no other thread have it meanwhile.
pub fn spend<T, E: Display>(mut open: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    match open() {
        Err(error) if error.to_string().contains(NONE_LEFT) => {
            let mut reserve = reserve();
            reserve.clear();
            let opened = open();
            refill(&mut reserve);
            opened
        }
        opened => opened,
    }
}

fn refill(reserve: &mut Vec<OwnedFd>) {
    while reserve.len() < DESCRIPTORS
        && let Ok(descriptor) = fcntl_dupfd_cloexec(std::io::stderr(), 0)
    {
        reserve.push(descriptor);
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
        let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let mut left = Vec::new();
        let opened = spend(|| {
            left.push(descriptors());
            if left.len() == 2 { Ok("open") } else { Err(Errno::MFILE) }
        });
        assert_eq!((opened, left.len()), (Ok("open"), 2));
        assert_eq!(reserve().len(), DESCRIPTORS);
        assert_eq!(spend(|| Err::<(), _>(Errno::ACCESS)), Err(Errno::ACCESS));
    }
}
