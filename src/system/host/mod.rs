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
use crate::system::host::rtnetlink::Changes;
use crate::system::netlink::{NetlinkError, NetlinkSocket};
use crate::types::{Host, Moment, thread_time};

/// The longest sleep.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };

/// The shortest time between two readings.
const PACE: Duration = Duration::from_millis(500);

/// The share of a processor that reading the routes may take: one in so many. Routers of new routes are known
/// without it, so it only finds those that are no longer in use.
const ROUTES_SHARE: u32 = 100;

/// This share if reports were lost, perhaps of new routes.
const LOST_ROUTES_SHARE: u32 = 10;

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
    let mut changes = Changes { network: true, lost: true, ..Changes::default() };
    let mut files_changed = true;
    let (mut last_read, mut files_read) = (Moment::default(), Moment::default());
    let mut routes = RoutesRead::default();
    loop {
        beat();
        each_round();
        let mut fds = vec![PollFd::from_borrowed_fd(stop, PollFlags::IN)];
        // Changes that never end are read at most twice a second.
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
        changes.take(&mut notifications)?;
        let now = Moment::now();
        files_changed |= files.changed() || now.since(files_read) >= files_again;
        let read_routes = (changes.routes || changes.lost) && routes.are_due(now, changes.lost);
        let has_new = !changes.new_gateways.is_empty();
        if !(changes.network || read_routes || has_new || files_changed) {
            continue;
        }
        last_read = now;
        let mut host = (*latest).clone();
        host.add_gateways(std::mem::take(&mut changes.new_gateways));
        if std::mem::take(&mut changes.network) {
            follow_network(&mut host, &mut requests)?;
        }
        if read_routes {
            (changes.routes, changes.lost) = (false, false);
            routes = follow_routes(&mut host, &mut requests, now)?;
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
    let mut requests = NetlinkSocket::open(None, 0)?;
    follow_network(&mut host, &mut requests)?;
    follow_routes(&mut host, &mut requests, Moment::now())?;
    follow_files(&mut host, &FileWatcher::once());
    Ok(Arc::new(host))
}

/// Reads links and addresses. Everything is read again, whatever has changed, so that nothing can be missed.
fn follow_network(host: &mut Host, socket: &mut NetlinkSocket) -> Result<(), NetlinkError> {
    let down = rtnetlink::links_down(socket)?;
    let (own, broadcasts) = rtnetlink::addresses(socket)?;
    host.set_broadcasts(broadcasts);
    host.set_addresses(own, down);
    Ok(())
}

/// Reads the routes.
fn follow_routes(
    host: &mut Host,
    socket: &mut NetlinkSocket,
    now: Moment,
) -> Result<RoutesRead, NetlinkError> {
    let before = thread_time();
    let gateways = rtnetlink::gateways(socket)?;
    host.set_gateways(gateways.into_iter().collect());
    Ok(RoutesRead { at: now, cost: thread_time().saturating_sub(before) })
}

/// The last reading of the routes.
#[derive(Default)]
struct RoutesRead {
    at: Moment,
    /// The processor time that it took.
    cost: Duration,
}

impl RoutesRead {
    /// Returns whether reading them again keeps their share of a processor.
    fn are_due(&self, now: Moment, lost: bool) -> bool {
        let share = if lost { LOST_ROUTES_SHARE } else { ROUTES_SHARE };
        now.is_past(self.at, PACE.max(self.cost * share))
    }
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
    fn large_routing_table_is_read_rarely() {
        let at = |seconds: u64| Moment::from_nanos(seconds * 1_000_000_000);
        let small = RoutesRead { at: at(100), cost: Duration::from_millis(1) };
        assert!(!small.are_due(at(100), false) && small.are_due(at(101), false));
        let large = RoutesRead { at: at(100), cost: Duration::from_millis(400) };
        assert!(!large.are_due(at(139), false) && large.are_due(at(140), false));
        assert!(!large.are_due(at(103), true) && large.are_due(at(104), true));
    }

    #[test]
    fn own_addresses_are_found() {
        let host = now().unwrap();
        assert!(host.owns([127, 0, 0, 1].into()), "{host:?}");
        assert!(!host.owns([192, 0, 2, 1].into()));
    }
}
