//! The sessions thread: follows the SSH sessions of this host.
//!
//! Owns the questions to the kernel and to logind, so that neither the firewall nor any other thread waits
//! for them. The firewall gets each new answer.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use tracing::debug;

use crate::api::logind;
use crate::block::logins::Logins;
use crate::handles::{Command, FirewallHandle};
use crate::service::supervisor::Supervisor;
use crate::system::host::ssh::Connections;
use crate::types::{Host, Moment, SshSessions};

/// The longest time between two looks at the connections.
const ROUND: Duration = Duration::from_millis(400);

/// How often logind is asked while a peer of sshd is not logged in.
const SOON: Duration = Duration::from_secs(1);

/// How often logind is asked otherwise: sessions without a connection that we know end without a sign.
const LATER: Duration = Duration::from_secs(10);

/// Starts the sessions thread, after a first look. Returns its result, and where the thread takes new snapshots
/// of the host. The thread ends when nothing can send one any more.
pub fn spawn(
    threads: &mut Supervisor,
    uses_bus: bool,
    host: &Arc<Host>,
    firewall: &FirewallHandle,
) -> std::io::Result<(Arc<SshSessions>, Sender<Arc<Host>>)> {
    let (hosts_in, hosts) = channel();
    let mut follower = Follower {
        host: Arc::clone(host),
        connections: Connections::default(),
        uses_bus,
        listed: None,
        asked: None,
        logins: Logins::default(),
        latest: Arc::default(),
    };
    follower.look();
    let first = Arc::clone(&follower.latest);
    let firewall = firewall.clone();
    threads.start("sessions", move |heartbeat| {
        follower.follow(&hosts, || heartbeat.tick(), &firewall);
        Ok::<(), Infallible>(())
    })?;
    Ok((first, hosts_in))
}

struct Follower {
    host: Arc<Host>,
    connections: Connections,
    uses_bus: bool,
    /// The remote hosts of the last answer; none without logind.
    listed: Option<Vec<IpAddr>>,
    /// When logind was last asked.
    asked: Option<Moment>,
    logins: Logins,
    latest: Arc<SshSessions>,
}

impl Follower {
    fn follow(mut self, hosts: &Receiver<Arc<Host>>, tick: impl Fn(), firewall: &FirewallHandle) {
        loop {
            tick();
            match hosts.recv_timeout(ROUND) {
                Ok(host) => self.host = host,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.look() && firewall.send(Command::Sessions(Arc::clone(&self.latest))).is_err() {
                return;
            }
        }
    }

    /// Returns whether the sessions have changed.
    fn look(&mut self) -> bool {
        let sshd = self.host.sshd();
        let sessions = match self.connections.list(&sshd.ports) {
            Ok(connections) => {
                let changed = !self.logins.knows(&connections);
                // After the connections: a peer that logind does not list then is not logged in.
                let listed = self.listed.as_deref().unwrap_or_default();
                let waits = connections.iter().any(|with| !listed.contains(&with.peer));
                self.ask_logind(changed, waits);
                self.logins.look(
                    &connections,
                    self.listed.as_deref(),
                    self.host.sshd(),
                    Moment::now(),
                )
            }
            // What was known stays.
            Err(error) => SshSessions { error: Some(error.to_string()), ..(*self.latest).clone() },
        };
        let is_new = sessions != *self.latest;
        if is_new {
            debug!(?sessions, "SSH sessions");
            self.latest = Arc::new(sessions);
        }
        is_new
    }

    fn ask_logind(&mut self, changed: bool, waits: bool) {
        let now = Moment::now();
        // If logind did not answer, it is not asked more often because of new connections.
        let pause = match (&self.listed, changed, waits) {
            (Some(_), true, _) => Duration::ZERO,
            (Some(_), false, true) => SOON,
            _ => LATER,
        };
        if !self.uses_bus || self.asked.is_some_and(|asked| now.since(asked) < pause) {
            return;
        }
        self.asked = Some(now);
        self.listed = match logind::remote_hosts() {
            Ok(hosts) => Some(hosts),
            Err(error) => {
                debug!(%error, "logind does not answer");
                None
            }
        };
    }
}
