//! The host itself: its addresses, and the neighbours it depends on.
//!
//! Owns following them. The kernel tells of changes over rtnetlink and inotify; readers get a new
//! snapshot each time and never ask. (Who has an SSH session changes without notice: [`Sessions`]
//! asks at the moment it matters.)

mod files;
mod listening;
mod resolvers;
mod rtnetlink;
mod ssh;

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

pub use listening::{Listening, ListeningFollower};
pub use ssh::{Sessions, SshPorts};

use crate::clock::Moment;
use crate::crew::{Pulse, StopFlag};
use crate::interface::InterfaceName;
use crate::netlink::{NetlinkError, NetlinkSocket};
use crate::network::overlap;
use files::Files;

/// How long changes may have to wait, and the longest without a sign of life.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };

/// From one reading of all to the next.
const PACE: Duration = Duration::from_millis(500);

/// From one reading of files to the next, though nothing was heard of a change: another file may have
/// been mounted over one, of which no event tells.
const FILES_AGAIN: Duration = Duration::from_secs(10);

/// A snapshot of what the host is and depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Own addresses, sorted.
    own: Vec<IpAddr>,
    /// Networks all of whose addresses count as own: in a replay, where nobody can be asked.
    local: Vec<IpNet>,
    /// Interfaces that exist and are down.
    down: Vec<String>,
    /// The routers of all routes.
    pub gateways: Vec<IpAddr>,
    /// The name servers.
    pub resolvers: Vec<IpAddr>,
    /// Where sshd listens.
    pub ssh: SshPorts,
}

impl Host {
    /// A host with these addresses and nothing else.
    pub fn with_addresses(addresses: impl IntoIterator<Item = IpNet>) -> Self {
        let own = sorted(addresses.into_iter().map(|network| network.addr()).collect());
        Self { own, ..Self::default() }
    }

    /// A host of which only this is known.
    pub fn with_networks(local: Vec<IpNet>) -> Self {
        Self { local, ..Self::default() }
    }

    /// Asks the kernel.
    fn follow_kernel(&mut self, socket: &mut NetlinkSocket) -> Result<(), NetlinkError> {
        self.down = rtnetlink::links_down(socket)?;
        self.own = sorted(rtnetlink::own_addresses(socket)?);
        self.gateways = sorted(rtnetlink::gateways(socket)?);
        Ok(())
    }

    /// Reads the files. The resolvers are those of before where they cannot be read.
    fn follow_files(&mut self, files: &Files) {
        if let Some(resolvers) = resolvers::read(files) {
            self.resolvers = sorted(resolvers);
        }
        self.ssh = ssh::read_ports(files);
    }

    /// The addresses of this host.
    pub fn own(&self) -> &[IpAddr] {
        &self.own
    }

    /// Whether an address is one of this host's.
    #[inline]
    pub fn owns(&self, address: IpAddr) -> bool {
        // Asked twice for each probe, of a handful of addresses.
        self.own.contains(&address) || self.local.iter().any(|network| network.contains(&address))
    }

    /// Whether there are so many addresses of this host's.
    pub fn has_more_addresses_than(&self, count: usize) -> bool {
        let whole = |network: &IpNet| network.prefix_len() < network.max_prefix_len();
        self.own.len() + self.local.len() > count || self.local.iter().any(whole)
    }

    /// Whether an interface exists and is down.
    pub fn is_down(&self, interface: &InterfaceName) -> bool {
        self.down.iter().any(|name| name == interface.as_str())
    }

    /// Whether one of this host's addresses lies in a network.
    pub fn is_within(&self, network: &IpNet) -> bool {
        self.own.iter().any(|address| network.contains(address))
            || self.local.iter().any(|local| overlap(local, network))
    }
}

/// Follows the host until asked to stop; `publish` gets each new snapshot. `each_round` is called twice a
/// second at least, for what the kernel does not tell of.
pub fn follow(
    mut latest: Arc<Host>,
    stop: &StopFlag,
    pulse: &Pulse,
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
        pulse.beat();
        each_round();
        let mut fds = vec![PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN)];
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
            host.follow_kernel(&mut requests)?;
        }
        if std::mem::take(&mut files_changed) {
            files_read = now;
            host.follow_files(&files);
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
    host.follow_kernel(&mut NetlinkSocket::open(None, 0)?)?;
    host.follow_files(&Files::unwatched());
    Ok(Arc::new(host))
}

fn sorted(mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    addresses.sort_unstable();
    addresses.dedup();
    addresses
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
