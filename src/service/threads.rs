//! Starting the service's threads, each with what it works with. Where one has to be ready before the
//! story goes on, its start waits for that.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use crate::api::dbus;
use crate::api::dbus::BusError;
use crate::api::dbus::tracker::Tracker;
use crate::api::journal;
use crate::api::metrics::Metrics;
use crate::api::metrics::http::{self, MetricsServer};
use crate::block::backend::Backend;
use crate::block::store::StorePath;
use crate::block::store::flusher::flusher;
use crate::config::Listen;
use crate::handles::bus::BusCommand;
use crate::handles::detector::DetectorCommand;
use crate::handles::events::EventSink;
use crate::handles::firewall::{Command, FirewallHandle};
use crate::handles::health::{Component, Health};
use crate::handles::stop_flag::StopFlag;
use crate::service::DaemonError;
use crate::service::capture::Watch;
use crate::service::detector::Worker;
use crate::service::firewall::FirewallThread;
use crate::service::supervisor::Supervisor;
use crate::system::capture::CaptureError;
use crate::system::capture::batch::BatchReceiver;
use crate::system::capture::live::LiveCapture;
use crate::system::host;
use crate::system::host::listening::ListeningFollower;
use crate::system::progress::Progress;
use crate::system::service_manager;
use crate::types::clock::WallClock;
use crate::types::event::{Event, Warning};
use crate::types::host::Host;
use crate::types::ifname::IfName;

/// Starts the one thread that writes to the journal.
pub fn start_journal(
    supervisor: &mut Supervisor,
    interface: &IfName,
    events: Receiver<Arc<Event>>,
) -> std::io::Result<()> {
    let interface = interface.clone();
    supervisor.start("journal", move |heartbeat| {
        journal::run(&interface, &events, || heartbeat.tick());
        Ok::<(), DaemonError>(())
    })
}

/// Starts the detector.
pub fn start_detector(
    supervisor: &mut Supervisor,
    worker: Worker,
    batches: BatchReceiver,
) -> std::io::Result<()> {
    supervisor.start("detector", move |heartbeat| {
        worker.run(&batches, || heartbeat.tick());
        Ok::<(), DaemonError>(())
    })
}

/// Starts the bus's thread and waits until it has its names.
pub fn start_bus(
    supervisor: &mut Supervisor,
    interface: &IfName,
    tracker: Tracker,
    tasks: async_channel::Receiver<BusCommand>,
    metrics: Arc<Metrics>,
) -> Result<(), DaemonError> {
    let (ready_in, ready) = sync_channel(1);
    let interface = interface.clone();
    supervisor.start("bus", move |heartbeat| {
        dbus::run(tracker, &interface, &tasks, &metrics, &ready_in, heartbeat)
    })?;
    ready.recv().map_err(|_| BusError::Lost)??;
    Ok(())
}

/// Starts serving metrics where they are to be served, or says why not: a taken port is no reason not to block scanners.
pub fn start_metrics(
    supervisor: &mut Supervisor,
    listen: Listen,
    events: &EventSink,
    metrics: &Arc<Metrics>,
    health: &Arc<Health>,
) -> std::io::Result<Option<Arc<StopFlag>>> {
    let Listen::At(address) = listen else { return Ok(None) };
    let (server, stop) = match MetricsServer::listen(address) {
        Ok(listening) => listening,
        Err(error) => {
            events.emit(Event::Warning(Warning::MetricsUnavailable {
                address,
                error: error.to_string(),
            }));
            return Ok(None);
        }
    };
    if http::is_missing(address.ip()) {
        events.emit(Event::Warning(Warning::MetricsAddressMissing { address: address.ip() }));
    }
    let (metrics, health) = (Arc::clone(metrics), Arc::clone(health));
    supervisor.start("metrics", move |heartbeat| server.run(&metrics, &health, heartbeat))?;
    Ok(Some(stop))
}

/// Starts capture; where the interface is down, as soon as it is up.
pub fn start_capture(
    supervisor: &mut Supervisor,
    watch: Watch,
    opened: Option<LiveCapture>,
) -> std::io::Result<()> {
    if opened.is_none() {
        // Not only until it is up, which others see: until it is captured on.
        let why = CaptureError::InterfaceDown(watch.interface.clone());
        watch.health.set_degraded(Component::Interface, why.to_string());
    }
    supervisor.start("capture", move |heartbeat| watch.run(opened, heartbeat))
}

/// Starts the thread that flushes what is remembered; returns where that is.
pub fn start_memory(supervisor: &mut Supervisor, file: PathBuf) -> std::io::Result<StorePath> {
    let (store_path, flusher) = flusher(file);
    supervisor.start("store", move |heartbeat| {
        flusher.run(|| heartbeat.tick());
        Ok::<(), DaemonError>(())
    })?;
    Ok(store_path)
}

/// Starts the firewall's thread and waits until everything is up in the kernel.
pub fn start_firewall(
    supervisor: &mut Supervisor,
    mut thread: FirewallThread,
    backend: Option<Box<dyn Backend + Send>>,
    orders: Receiver<Command>,
) -> Result<(), DaemonError> {
    let (ready_in, ready) = sync_channel(1);
    supervisor.start("firewall", move |heartbeat| {
        let mut progress = Progress::after(Duration::ZERO);
        let installed = thread.install(backend, &WallClock::read(), &mut |done, all| {
            let how_far = format!("restoring blocks: {done} of {all}");
            service_manager::status(&how_far);
            progress.show(|| how_far);
            heartbeat.tick();
        });
        drop(progress);
        let failed = installed.is_err();
        // Main is waiting.
        let _ = ready_in.send(installed);
        if failed { Ok(()) } else { thread.run(&orders, || heartbeat.tick()) }
    })?;
    let ended =
        |_| DaemonError::ThreadEnded { thread: "firewall", reason: "at the start".to_owned() };
    ready.recv().map_err(ended)??;
    Ok(())
}

/// What a new snapshot of the host is told to.
pub struct Followers {
    pub interface: IfName,
    pub firewall: FirewallHandle,
    pub detector: SyncSender<DetectorCommand>,
    /// Whether the ports on which this host listens are of interest.
    pub outcomes: Arc<AtomicBool>,
    pub health: Arc<Health>,
    /// Where SSH sessions are exempt: who is told what stands in the way of finding them.
    pub events: Option<EventSink>,
}

impl Followers {
    fn warn(&self, unreadable: &[String]) {
        for (events, file) in
            self.events.iter().flat_map(|r| unreadable.iter().map(move |u| (r, u)))
        {
            events.emit(Event::Warning(Warning::SshConfigUnreadable { file: file.clone() }));
        }
    }

    fn look_at_link(&self, host: &Host) {
        if host.is_down(&self.interface) {
            let why = CaptureError::InterfaceDown(self.interface.clone());
            self.health.set_degraded(Component::Link, why.to_string());
        } else {
            self.health.clear(Component::Link);
        }
    }

    fn emit(&self, host: Arc<Host>) {
        self.look_at_link(&host);
        self.firewall.send(Command::Host(Arc::clone(&host)));
        // The detector has ended: the process is about to.
        let _ = self.detector.send(DetectorCommand::Host(host));
    }
}

pub fn start_host(
    supervisor: &mut Supervisor,
    host: Arc<Host>,
    followers: Followers,
    stop: Arc<StopFlag>,
) -> std::io::Result<()> {
    followers.look_at_link(&host);
    followers.warn(&host.ssh().unreadable);
    let mut told = host.ssh().unreadable.clone();
    supervisor.start("host", move |heartbeat| {
        let wanted = Arc::clone(&followers.outcomes);
        let detector = followers.detector.clone();
        let mut ports = ListeningFollower::default();
        let mut look = || {
            if wanted.load(Ordering::Relaxed)
                && let Some(ports) = ports.look()
            {
                // The detector has ended: the process is about to.
                let _ = detector.send(DetectorCommand::Listening(ports));
            }
        };
        host::follow(
            host,
            stop.as_fd(),
            || heartbeat.tick(),
            &mut look,
            |host| {
                if host.ssh().unreadable != told {
                    told.clone_from(&host.ssh().unreadable);
                    followers.warn(&told);
                }
                followers.emit(host);
            },
        )
    })
}
