//! The host thread: follows addresses, routes, name servers, ports and links of this host.
//!
//! Owns who learns of them: the firewall, the detector and the sessions thread get each new snapshot, and health shows when
//! the interface is down.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, SyncSender};

use crate::config::Config;
use crate::handles::{
    Command, Component, DetectorCommand, EventSink, FirewallHandle, Health, StopFlag,
};
use crate::service::Context;
use crate::service::supervisor::Supervisor;
use crate::system::capture::CaptureError;
use crate::system::host;
use crate::system::host::listening::ListeningFollower;
use crate::types::{Event, Host, IfName, Warning};

/// Starts the host thread. While `wants_ports` is true, the detector also learns on which ports the host
/// listens. Returns what stops the thread.
pub fn spawn(
    threads: &mut Supervisor,
    context: &Context,
    config: &Config,
    host: &Arc<Host>,
    (firewall, detector, sessions): (
        &FirewallHandle,
        &SyncSender<DetectorCommand>,
        Sender<Arc<Host>>,
    ),
    wants_ports: &Arc<AtomicBool>,
) -> std::io::Result<Arc<StopFlag>> {
    let mut readers = Readers {
        interface: context.interface.clone(),
        firewall: firewall.clone(),
        detector: detector.clone(),
        sessions,
        health: Arc::clone(&context.health),
        events: config.exempt.automatic.then(|| context.events.clone()),
        unreadable: Vec::new(),
    };
    readers.check_link(host);
    readers.check_ssh(host);
    let stop = Arc::new(StopFlag::new()?);
    let stopping = Arc::clone(&stop);
    let (host, detector) = (Arc::clone(host), detector.clone());
    let wants_ports = Arc::clone(wants_ports);
    threads.start("host", move |heartbeat| {
        let mut ports = ListeningFollower::default();
        let mut each_round = || {
            if wants_ports.load(Ordering::Relaxed)
                && let Some(ports) = ports.look()
            {
                // If the detector has ended, the process is about to.
                let _ = detector.send(DetectorCommand::Listening(ports));
            }
        };
        let beat = || heartbeat.tick();
        host::follow(host, stopping.as_fd(), beat, &mut each_round, |host| readers.publish(host))
    })?;
    Ok(stop)
}

/// Those that learn of a new snapshot.
struct Readers {
    interface: IfName,
    firewall: FirewallHandle,
    detector: SyncSender<DetectorCommand>,
    sessions: Sender<Arc<Host>>,
    health: Arc<Health>,
    /// If SSH sessions are exempt: where to warn of files that hide sshd's ports.
    events: Option<EventSink>,
    /// The files for which a warning was emitted.
    unreadable: Vec<String>,
}

impl Readers {
    fn publish(&mut self, host: Arc<Host>) {
        self.check_ssh(&host);
        self.check_link(&host);
        let _ = self.firewall.send(Command::Host(Arc::clone(&host)));
        let _ = self.sessions.send(Arc::clone(&host));
        let _ = self.detector.send(DetectorCommand::Host(host));
    }

    fn check_ssh(&mut self, host: &Host) {
        let unreadable = &host.sshd().unreadable;
        if *unreadable == self.unreadable {
            return;
        }
        self.unreadable.clone_from(unreadable);
        let Some(events) = &self.events else { return };
        for file in unreadable {
            events.emit(Event::Warning(Warning::SshConfigUnreadable { file: file.clone() }));
        }
    }

    fn check_link(&self, host: &Host) {
        if host.is_down(&self.interface) {
            let reason = CaptureError::InterfaceDown(self.interface.clone()).to_string();
            self.health.set_degraded(Component::Link, reason);
        } else {
            self.health.clear(Component::Link);
        }
    }
}
