//! The nftables thread: has the firewall thread look at its table as soon as another program has changed it.
//!
//! Must not change anything. Without this thread the firewall thread would look some hundred milliseconds later.

use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::block::backend::nft::events::Events;
use crate::handles::{Command, FirewallHandle, StopFlag};
use crate::service::supervisor::Supervisor;
use crate::system::netlink::NetlinkError;

/// How long the thread sleeps at most: it has to show that it lives.
const BEAT: Timespec = Timespec { tv_sec: 0, tv_nsec: 900_000_000 };

/// The pause after a change: a program that makes many leads to one look.
const PAUSE: Duration = Duration::from_millis(10);

/// Starts the thread if the back end is in use.
pub fn spawn(
    threads: &mut Supervisor,
    backend: &str,
    firewall: &FirewallHandle,
    stop: &Arc<StopFlag>,
) -> std::io::Result<()> {
    if backend != "nftables" {
        return Ok(());
    }
    let mut events = Events::subscribe().map_err(std::io::Error::other)?;
    let (firewall, stop) = (firewall.clone(), Arc::clone(stop));
    threads.start("nftables", move |heartbeat| -> Result<(), NetlinkError> {
        loop {
            heartbeat.tick();
            let mut ready =
                [PollFd::new(&events, PollFlags::IN), PollFd::new(&*stop, PollFlags::IN)];
            match poll(&mut ready, Some(&BEAT)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if !ready[1].revents().is_empty() {
                return Ok(());
            }
            if events.has_changed_table()? {
                // If its queue is full, the firewall thread looks later.
                let _ = firewall.try_send(Command::Look);
                std::thread::park_timeout(PAUSE);
            }
        }
    })
}
