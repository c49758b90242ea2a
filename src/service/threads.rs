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
use crate::api::metrics::http::{MetricsServer, MetricsStop};
use crate::block::store::Place;
use crate::block::store::flusher::flusher;
use crate::config::Listen;
use crate::handles::bus::Task;
use crate::handles::detector::Control;
use crate::handles::events::Reporter;
use crate::handles::firewall::{Firewall, Order};
use crate::handles::health::{Part, StateBoard};
use crate::handles::stop_flag::StopFlag;
use crate::service::DaemonError;
use crate::service::capture::Watch;
use crate::service::detector::Worker;
use crate::service::firewall::Actor;
use crate::service::supervisor::Crew;
use crate::system::capture::CaptureError;
use crate::system::capture::batch::Batches;
use crate::system::capture::live::LiveCapture;
use crate::system::host;
use crate::system::host::listening::ListeningFollower;
use crate::system::progress::Progress;
use crate::system::service_manager;
use crate::types::clock::WallClock;
use crate::types::event::Event;
use crate::types::host::Host;
use crate::types::ifname::InterfaceName;

/// Starts the one thread that writes to the journal.
pub fn start_journal(
    crew: &mut Crew,
    interface: &InterfaceName,
    events: Receiver<Arc<Event>>,
) -> std::io::Result<()> {
    let interface = interface.clone();
    crew.start("journal", move |pulse| {
        journal::run(&interface, &events, || pulse.beat());
        Ok::<(), DaemonError>(())
    })
}

/// Starts the detector.
pub fn start_detector(crew: &mut Crew, worker: Worker, batches: Batches) -> std::io::Result<()> {
    crew.start("detector", move |pulse| {
        worker.run(&batches, || pulse.beat());
        Ok::<(), DaemonError>(())
    })
}

/// Starts the bus's thread and waits until it has its names.
pub fn start_bus(
    crew: &mut Crew,
    interface: &InterfaceName,
    tracker: Tracker,
    tasks: async_channel::Receiver<Task>,
    metrics: Arc<Metrics>,
) -> Result<(), DaemonError> {
    let (ready_in, ready) = sync_channel(1);
    let interface = interface.clone();
    crew.start("bus", move |pulse| {
        dbus::run(tracker, &interface, &tasks, &metrics, &ready_in, pulse)
    })?;
    ready.recv().map_err(|_| BusError::Lost)??;
    Ok(())
}

/// Starts serving metrics where they are to be served, or says why not: a taken port is no reason not to block scanners.
pub fn start_metrics(
    crew: &mut Crew,
    listen: Listen,
    reporter: &Reporter,
    metrics: &Arc<Metrics>,
    board: &Arc<StateBoard>,
) -> std::io::Result<Option<MetricsStop>> {
    let Listen::At(address) = listen else { return Ok(None) };
    let server = match MetricsServer::listen(address) {
        Ok(server) => server,
        Err(error) => {
            reporter.tell(Event::Warning(format!(
                "{error}; going on without (choose another with metrics.listen, or \"off\")"
            )));
            return Ok(None);
        }
    };
    if server.awaits_its_address() {
        reporter.tell(Event::Warning(format!(
            "{} is not an address of this host yet; metrics are served there as soon as it is \
             (metrics.listen)",
            address.ip()
        )));
    }
    let stop = server.stop();
    let (metrics, board) = (Arc::clone(metrics), Arc::clone(board));
    crew.start("metrics", move |pulse| server.run(&metrics, &board, pulse))?;
    Ok(Some(stop))
}

/// Starts capture; where the interface is down, as soon as it is up.
pub fn start_capture(
    crew: &mut Crew,
    watch: Watch,
    opened: Option<LiveCapture>,
) -> std::io::Result<()> {
    if opened.is_none() {
        // Not only until it is up, which others see: until it is captured on.
        let why = CaptureError::InterfaceDown(watch.interface.clone());
        watch.board.raise(Part::Interface, why.to_string());
    }
    crew.start("capture", move |pulse| watch.run(opened, pulse))
}

/// Starts the thread that flushes what is remembered; returns where that is.
pub fn start_memory(crew: &mut Crew, file: PathBuf) -> std::io::Result<Place> {
    let (place, flusher) = flusher(file);
    crew.start("memory", move |pulse| {
        flusher.run(|| pulse.beat());
        Ok::<(), DaemonError>(())
    })?;
    Ok(place)
}

/// Starts the firewall's thread and waits until everything is up in the kernel.
pub fn start_firewall(
    crew: &mut Crew,
    mut actor: Actor,
    orders: Receiver<Order>,
) -> Result<(), DaemonError> {
    let (ready_in, ready) = sync_channel(1);
    crew.start("firewall", move |pulse| {
        let mut progress = Progress::after(Duration::ZERO);
        let installed = actor.install(&WallClock::read(), &mut |done, all| {
            let how_far = format!("blocking again whom the last run has blocked: {done} of {all}");
            service_manager::status(&how_far);
            progress.tell(|| how_far);
            pulse.beat();
        });
        drop(progress);
        let failed = installed.is_err();
        // Main is waiting.
        let _ = ready_in.send(installed);
        if failed { Ok(()) } else { actor.run(&orders, || pulse.beat()) }
    })?;
    let ended =
        |_| DaemonError::ThreadEnded { thread: "firewall", reason: "at the start".to_owned() };
    ready.recv().map_err(ended)??;
    Ok(())
}

/// What a new snapshot of the host is told to.
pub struct Followers {
    pub interface: InterfaceName,
    pub firewall: Firewall,
    pub detector: SyncSender<Control>,
    /// Whether the ports on which this host listens are of interest.
    pub outcomes: Arc<AtomicBool>,
    pub board: Arc<StateBoard>,
    /// Where SSH sessions are exempt: who is told what stands in the way of finding them.
    pub reporter: Option<Reporter>,
}

impl Followers {
    fn warn(&self, unreadable: &[String]) {
        for (reporter, file) in
            self.reporter.iter().flat_map(|r| unreadable.iter().map(move |u| (r, u)))
        {
            reporter.tell(Event::Warning(format!(
                "cannot read {file}; if sshd listens on a port named there, its sessions are not known: \
                 let everybody read it, or list in exempt.networks where you come from"
            )));
        }
    }

    fn look_at_link(&self, host: &Host) {
        if host.is_down(&self.interface) {
            let why = CaptureError::InterfaceDown(self.interface.clone());
            self.board.raise(Part::Link, why.to_string());
        } else {
            self.board.clear(Part::Link);
        }
    }

    fn tell(&self, host: Arc<Host>) {
        self.look_at_link(&host);
        self.firewall.order(Order::Host(Arc::clone(&host)));
        // The detector has ended: the process is about to.
        let _ = self.detector.send(Control::Host(host));
    }
}

pub fn start_host(
    crew: &mut Crew,
    host: Arc<Host>,
    followers: Followers,
    stop: Arc<StopFlag>,
) -> std::io::Result<()> {
    followers.look_at_link(&host);
    followers.warn(&host.ssh().unreadable);
    let mut told = host.ssh().unreadable.clone();
    crew.start("host", move |pulse| {
        let wanted = Arc::clone(&followers.outcomes);
        let detector = followers.detector.clone();
        let mut ports = ListeningFollower::default();
        let mut look = || {
            if wanted.load(Ordering::Relaxed)
                && let Some(ports) = ports.look()
            {
                // The detector has ended: the process is about to.
                let _ = detector.send(Control::Listening(ports));
            }
        };
        host::follow(
            host,
            stop.as_fd(),
            || pulse.beat(),
            &mut look,
            |host| {
                if host.ssh().unreadable != told {
                    told.clone_from(&host.ssh().unreadable);
                    followers.warn(&told);
                }
                followers.tell(host);
            },
        )
    })
}
