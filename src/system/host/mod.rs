//! The host itself: its addresses, and the neighbours that it depends on.
//!
//! Owns following them: the kernel reports changes over rtnetlink and inotify, and the readers get a new
//! snapshot each time. (Connections to sshd
//! begin and end without a report: [`ssh::Connections`] lists them.)

pub mod files;
pub mod listening;
pub mod resolvers;
pub mod rtnetlink;
pub mod sockets;
pub mod ssh;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::system::host::files::FileWatcher;
use crate::system::netlink::{NetlinkError, NetlinkSocket};
use crate::types::{Host, Moment};

/// The longest sleep.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };

/// The shortest time between two readings.
const PACE: Duration = Duration::from_millis(500);

/// The longest time between two readings of the files: mounting a file over another causes no event.
const FILES_AGAIN: Duration = Duration::from_secs(10);

/// Follows the host until asked to stop. `publish` gets each new snapshot. `each_round` is called at least
/// twice a second, for what the kernel does not report.
pub fn follow(
    mut latest: Arc<Host>,
    stop: BorrowedFd<'_>,
    beat: impl Fn(),
    each_round: &mut impl FnMut(),
    mut publish: impl FnMut(Arc<Host>),
) -> Result<(), NetlinkError> {
    let mut notifications = NetlinkSocket::open(None, rtnetlink::GROUPS)?;
    let mut requests = NetlinkSocket::open(None, 0)?;
    let files = FileWatcher::new();
    let files_again = if files.watch().is_some() { FILES_AGAIN } else { PACE };
    // Changes before the subscription were not reported.
    let (mut kernel_changed, mut files_changed) = (true, true);
    let (mut last_read, mut files_read) = (Moment::default(), Moment::default());
    loop {
        beat();
        each_round();
        let mut fds = vec![PollFd::from_borrowed_fd(stop, PollFlags::IN)];
        // A routing table that changes all the time is read at most twice a second.
        if Moment::now().since(last_read) >= PACE {
            let watch = files.watch();
            let sources = [Some(notifications.as_fd()), watch].into_iter().flatten();
            fds.extend(sources.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        }
        match poll(&mut fds, Some(&TICK)) {
            Ok(_) if fds[0].revents().contains(PollFlags::IN) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        // Everything is read again, whatever has changed, so that nothing can be missed.
        kernel_changed |= notifications.drain_notifications()?;
        let now = Moment::now();
        files_changed |= files.changed() || now.since(files_read) >= files_again;
        if !kernel_changed && !files_changed {
            continue;
        }
        last_read = now;
        let mut host = (*latest).clone();
        if std::mem::take(&mut kernel_changed) {
            follow_kernel(&mut host, &mut requests)?;
        }
        if std::mem::take(&mut files_changed) {
            files_read = now;
            follow_files(&mut host, &files);
        }
        if host != *latest {
            latest = Arc::new(host);
            publish(Arc::clone(&latest));
        }
    }
}

/// Returns the first snapshot.
pub fn now() -> Result<Arc<Host>, NetlinkError> {
    let mut host = Host::default();
    follow_kernel(&mut host, &mut NetlinkSocket::open(None, 0)?)?;
    follow_files(&mut host, &FileWatcher::once());
    Ok(Arc::new(host))
}

fn follow_kernel(host: &mut Host, socket: &mut NetlinkSocket) -> Result<(), NetlinkError> {
    let down = rtnetlink::links_down(socket)?;
    let (own, broadcasts) = rtnetlink::addresses(socket)?;
    host.set_broadcasts(broadcasts);
    host.set_network(own, rtnetlink::gateways(socket)?, down);
    Ok(())
}

/// Reads the files. If the file of the resolvers is unreadable, the old ones stay.
fn follow_files(host: &mut Host, files: &FileWatcher) {
    if let Some(resolvers) = resolvers::read(files) {
        host.set_resolvers(resolvers);
    }
    host.set_sshd(ssh::read_configuration(files));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_are_found() {
        let host = now().unwrap();
        assert!(host.owns([127, 0, 0, 1].into()), "{host:?}");
        assert!(!host.owns([192, 0, 2, 1].into()));
    }
}
