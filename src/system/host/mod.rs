//! The host itself: its addresses, and the neighbours it depends on.
//!
//! Owns following them. The kernel tells of changes over rtnetlink and inotify; readers get a new
//! snapshot each time and never ask. (Who has an SSH session changes without notice: [`Sessions`]
//! asks at the moment it matters.)

pub mod files;
pub mod listening;
pub mod resolvers;
pub mod rtnetlink;
pub mod ssh;

use crate::types::host::Host;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::system::host::files::Files;
use crate::system::netlink::{NetlinkError, NetlinkSocket};
use crate::types::clock::Moment;

/// How long changes may have to wait, and the longest without a sign of life.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };

/// From one reading of all to the next.
const PACE: Duration = Duration::from_millis(500);

/// From one reading of files to the next, though nothing was heard of a change: another file may have
/// been mounted over one, of which no event tells.
const FILES_AGAIN: Duration = Duration::from_secs(10);

/// Follows the host until asked to stop; `publish` gets each new snapshot. `each_round` is called twice a
/// second at least, for what the kernel does not tell of.
pub fn follow(
    mut latest: Arc<Host>,
    stop: BorrowedFd<'_>,
    beat: impl Fn(),
    each_round: &mut impl FnMut(),
    mut publish: impl FnMut(Arc<Host>),
) -> Result<(), NetlinkError> {
    let mut notifications = NetlinkSocket::open(None, rtnetlink::GROUPS)?;
    let mut requests = NetlinkSocket::open(None, 0)?;
    let files = Files::watched();
    let files_again = if files.watch().is_some() { FILES_AGAIN } else { PACE };
    // What changed before the subscription was not told.
    let (mut kernel_changed, mut files_changed) = (true, true);
    let (mut last_read, mut files_read) = (Moment::default(), Moment::default());
    loop {
        beat();
        each_round();
        let mut fds = vec![PollFd::from_borrowed_fd(stop, PollFlags::IN)];
        // A routing table that never rests is read twice a second, not all the time.
        if Moment::now().since(last_read) >= PACE {
            let watch = files.watch();
            let told = [Some(notifications.as_fd()), watch].into_iter().flatten();
            fds.extend(told.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        }
        match poll(&mut fds, Some(&TICK)) {
            Ok(_) if fds[0].revents().contains(PollFlags::IN) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        // What changed does not matter: all is read again, so that nothing can be missed.
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

/// The snapshot to start with.
pub fn now() -> Result<Arc<Host>, NetlinkError> {
    let mut host = Host::default();
    follow_kernel(&mut host, &mut NetlinkSocket::open(None, 0)?)?;
    follow_files(&mut host, &Files::unwatched());
    Ok(Arc::new(host))
}

/// Asks the kernel.
fn follow_kernel(host: &mut Host, socket: &mut NetlinkSocket) -> Result<(), NetlinkError> {
    let down = rtnetlink::links_down(socket)?;
    let own = rtnetlink::own_addresses(socket)?;
    host.set_network(own, rtnetlink::gateways(socket)?, down);
    Ok(())
}

/// Reads the files. The resolvers stay as they are if they cannot be read.
fn follow_files(host: &mut Host, files: &Files) {
    if let Some(resolvers) = resolvers::read(files) {
        host.set_resolvers(resolvers);
    }
    host.set_ssh(ssh::read_ports(files));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_this_hosts_addresses() {
        let host = now().unwrap();
        assert!(host.owns([127, 0, 0, 1].into()), "{host:?}");
        assert!(!host.owns([192, 0, 2, 1].into()));
    }
}
