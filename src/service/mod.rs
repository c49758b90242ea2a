//! The story of the service: read the configuration, open what is needed, start the threads, say
//! that it is ready, wait, and stop in order.
//!
//! Composes; decides nothing about packets. What can fail at the start fails before anything is
//! changed: the firewall comes last.

pub mod capture;
pub mod detector;
pub mod entry_limit;
pub mod firewall;
pub mod reload;
pub mod supervisor;
pub mod threads;

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel};
use std::time::Duration;

use crate::api::dbus::BusError;
use crate::api::dbus::tracker::Tracker;
use crate::api::journal;
use crate::api::metrics::Metrics;
use crate::block::backend::select;
use crate::block::backend::{Backend, FirewallError};
use crate::block::exemptions::AskSessions;
use crate::block::store;
use crate::config::{Config, ConfigError, Effective, Preset, Sources};
use crate::detect::Detector;
use crate::handles::bus::{self, BusCommand};
use crate::handles::detector::DetectorCommand;
use crate::handles::events::EventSink;
use crate::handles::firewall::{Command, FirewallHandle, QUEUE as FIREWALL_QUEUE};
use crate::handles::health::{Component, Health};
use crate::handles::notification::Notification;
use crate::handles::notification::ReloadRequest;
use crate::handles::reload::Reloader;
use crate::handles::stop_flag::StopFlag;
use crate::service::capture::Watch;
use crate::service::detector::Worker;
use crate::service::firewall::FirewallThread;
use crate::service::supervisor::{StalledThreads, Supervisor};
use crate::service::threads::{
    Followers, start_bus, start_capture, start_detector, start_firewall, start_host, start_journal,
    start_memory, start_metrics,
};
use crate::system::capture::CaptureError;
use crate::system::capture::batch;
use crate::system::capture::live::LiveCapture;
use crate::system::host;
use crate::system::host::ssh::Sessions;
use crate::system::lock::{Lock, LockError};
use crate::system::netlink::NetlinkError;
use crate::system::service_manager;
use crate::types::clock::Moment;
use crate::types::event::{BackendNote, Event, Warning};
use crate::types::host::Host;
use crate::types::ifname::IfName;

/// How often main looks whether every thread has made progress. Each beats at least once a second.
const ROUND: Duration = Duration::from_secs(2);

/// Requests that may wait for the detector: a host's addresses change, a block ends.
const CONTROL_QUEUE: usize = 1024;

/// Why the service does not run, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The configuration is wrong.
    #[error(transparent)]
    Configuration(#[from] ConfigError),
    /// The interface cannot be watched.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The firewall cannot be used.
    #[error(transparent)]
    FirewallHandle(#[from] FirewallError),
    /// The bus cannot be reached.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The host's addresses cannot be read.
    #[error("cannot read this host's addresses: {0}")]
    Host(#[from] NetlinkError),
    /// Another instance watches the interface.
    #[error("another tcptracker is running on {0}; stop it first: systemctl stop {unit}", unit = .0.unit())]
    AlreadyRunning(IfName),
    /// The system lacks something every process has.
    #[error("cannot start: {0}")]
    System(#[from] std::io::Error),
    /// The counters could not be made.
    #[error("cannot make the metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// A thread has ended.
    #[error("the {thread} thread ended: {reason}")]
    ThreadEnded {
        /// Its name.
        thread: &'static str,
        /// Why.
        reason: String,
    },
}

/// Runs the service until it is told to stop.
pub fn run(interface: &IfName, sources: &Sources) -> Result<(), DaemonError> {
    let effective = Effective::load(sources)?;
    journal::init(effective.config.log.format);

    let outcomes = effective.config.detection.preset == Preset::Balanced;
    let capture = LiveCapture::open_if_up(interface, outcomes)?;
    let host = host::now()?;
    let config = &effective.config;
    // An observer has no back end.
    let backend = config.block.enabled.then(|| select::connect(interface, config)).transpose()?;
    let configuration = (sources.clone(), effective);
    let mut service = Service::start(interface, configuration, capture, host, backend)?;

    service_manager::ready(&service.status());
    journal::started(interface, &service.status());
    let outcome = match service.wait() {
        Ok(signal) => {
            service_manager::stopping();
            service.stop().map(|()| signal)
        }
        Err(error) => Err(error),
    };
    match &outcome {
        Ok(signal) => journal::stopped(interface, signal),
        // As after a crash: the kernel goes on blocking until the next start, or until it expires.
        Err(error) => journal::failed(interface, error),
    }
    outcome.map(drop)
}

/// How the firewall's thread asks who has an SSH session open.
fn ask_for_sessions() -> AskSessions {
    let mut sessions = Sessions::default();
    Box::new(move |ports| sessions.peers(ports))
}

/// Keeps a second instance away from the same interface. Where somebody else has taken the lock's name, only
/// the bus does.
fn lock(interface: &IfName, events: &EventSink) -> Result<Option<Lock>, DaemonError> {
    let name = format!("tcptracker@{interface}");
    match Lock::take(&name) {
        Ok(lock) => Ok(Some(lock)),
        Err(LockError::Stranger(uid)) => {
            let warning = Warning::LockHeldByOther { socket: format!("@{name}"), uid };
            events.emit(Event::Warning(warning));
            Ok(None)
        }
        Err(LockError::Taken) => Err(DaemonError::AlreadyRunning(interface.clone())),
        Err(LockError::System(error)) => Err(error.into()),
    }
}

/// The running service.
struct Service {
    interface: IfName,
    sources: Sources,
    /// The configuration in force.
    effective: Effective,
    supervisor: Supervisor,
    notifications: Receiver<Notification>,
    stop_capture: Arc<StopFlag>,
    stop_host: Arc<StopFlag>,
    stop_metrics: Option<Arc<StopFlag>>,
    /// When it was last looked for signs of life.
    looked: Moment,
    /// Threads whose end is no failure: they were asked to end.
    dismissed: Vec<&'static str>,
    firewall: FirewallHandle,
    detector: SyncSender<DetectorCommand>,
    bus: Option<async_channel::Sender<BusCommand>>,
    events: EventSink,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    /// Keeps a second instance away.
    _lock: Option<Lock>,
}

impl Service {
    fn start(
        interface: &IfName,
        (sources, effective): (Sources, Effective),
        capture: Option<LiveCapture>,
        host: Arc<Host>,
        backend: Option<(Box<dyn Backend + Send>, Option<BackendNote>)>,
    ) -> Result<Self, DaemonError> {
        let (backend, note) = backend.unzip();
        let config = effective.config.clone();
        let metrics = Arc::new(Metrics::new()?);
        let (notifications_in, notifications) = channel();
        let reloader = Reloader::new(notifications_in.clone());
        let mut supervisor = Supervisor::new(notifications_in);
        // From here on a signal ends the service in order, however early it comes.
        supervisor.forward_signals()?;

        let (journal_in, journal_out) = sync_channel(journal::QUEUE);
        let (tasks_in, tasks) = async_channel::bounded(bus::QUEUE);
        let bus = config.bus.enabled.then_some(tasks_in);
        let events = EventSink::new(journal_in, bus.clone(), Arc::clone(&metrics) as _);
        let backend_name = backend.as_ref().map_or("none", |backend| backend.name());
        let health = Arc::new(Health::new(!config.block.enabled, backend_name, events.clone()));
        let (orders_in, orders) = sync_channel(FIREWALL_QUEUE);
        let firewall = FirewallHandle::new(orders_in);
        let (control_in, control) = sync_channel(CONTROL_QUEUE);

        start_journal(&mut supervisor, interface, journal_out)?;
        if let Some(note) = note.flatten() {
            events.emit(Event::Warning(Warning::Backend(note)));
        }
        // Before the bus, where it would only be refused its name: this says the same without a bus.
        let lock = lock(interface, &events)?;
        if bus.is_some() {
            let tracker = Tracker::new(
                interface.clone(),
                reloader,
                firewall.clone(),
                Arc::clone(&health),
                Arc::clone(&metrics),
                events.clone(),
            );
            start_bus(&mut supervisor, interface, tracker, tasks, Arc::clone(&metrics))?;
        }
        let stop_metrics =
            start_metrics(&mut supervisor, config.metrics.listen, &events, &metrics, &health)?;

        let detector = Detector::new(config.detection.clone());
        let outcomes = Arc::new(AtomicBool::new(detector.wants_outcomes()));
        let (hand_over, batches) = batch::channel();
        let worker = Worker {
            detector,
            host: Arc::clone(&host),
            log: config.log.clone(),
            control,
            firewall: firewall.clone(),
            events: events.clone(),
            metrics: Arc::clone(&metrics),
            summed_up: Moment::now(),
            outcomes: Arc::clone(&outcomes),
        };
        start_detector(&mut supervisor, worker, batches)?;
        let stop_capture = Arc::new(StopFlag::new().map_err(std::io::Error::from)?);
        let watch = Watch {
            interface: interface.clone(),
            out: hand_over,
            metrics: metrics.capture(),
            health: Arc::clone(&health),
            outcomes: Arc::clone(&outcomes),
            stop: Arc::clone(&stop_capture),
        };
        start_capture(&mut supervisor, watch, capture)?;

        let stop_host = Arc::new(StopFlag::new().map_err(std::io::Error::from)?);
        let followers = Followers {
            interface: interface.clone(),
            firewall: firewall.clone(),
            detector: control_in.clone(),
            outcomes,
            health: Arc::clone(&health),
            events: config.exempt.automatic.then(|| events.clone()),
        };
        start_host(&mut supervisor, Arc::clone(&host), followers, Arc::clone(&stop_host))?;
        // Last, so that nothing can fail any more once the kernel is changed.
        let file = store::file_of(interface, std::env::var_os("STATE_DIRECTORY"));
        let store_path = start_memory(&mut supervisor, file)?;
        let own = interface.clone();
        let open = Box::new(move |config: &Config| select::connect(&own, config));
        let telling = (events.clone(), Arc::clone(&metrics), Arc::clone(&health));
        let control = control_in.clone();
        let host = (host, ask_for_sessions());
        let thread = FirewallThread::new(open, config, host, Some(store_path), telling, control);
        start_firewall(&mut supervisor, thread, backend, orders)?;
        Ok(Self {
            interface: interface.clone(),
            sources,
            effective,
            supervisor,
            notifications,
            stop_capture,
            stop_host,
            stop_metrics,
            looked: Moment::now(),
            dismissed: Vec::new(),
            firewall,
            detector: control_in,
            bus,
            events,
            metrics,
            health,
            _lock: lock,
        })
    }

    /// One line for people.
    fn status(&self) -> String {
        let status = self.health.status();
        let (state, blocked) = (status.state, status.blocked());
        let why = status.reason.map(|reason| format!(": {reason}")).unwrap_or_default();
        format!("watching {}, {state}{why}, {blocked} blocked", self.interface)
    }

    /// Waits for a signal to end, whose name it returns, or for a thread to end, which is an error.
    /// Reloads when asked to, and feeds the watchdog as long as every thread makes progress.
    fn wait(&mut self) -> Result<&'static str, DaemonError> {
        // Closing the terminal it was started in ends it; a service has none, and is told to reload.
        let hangup_reloads = !std::io::stdin().is_terminal();
        let mut status = self.status();
        loop {
            match self.notifications.recv_timeout(Self::round()) {
                Ok(Notification::Signal("SIGHUP")) if hangup_reloads => {
                    // Told in the journal; nobody waits for an answer.
                    let _ = self.reload(None);
                }
                Ok(Notification::Signal(name)) => return Ok(name),
                Ok(Notification::Reload(ReloadRequest { uid, reply })) => {
                    // Who asked may have gone.
                    let _ = reply.try_send(self.reload(Some(uid)));
                }
                Ok(Notification::Ended { thread, result: Ok(()) }) if self.is_dismissed(thread) => {
                }
                Ok(ended @ Notification::Ended { .. }) => return Err(self.why_ended(ended)),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            self.check_watchdog();
            let now = self.status();
            if now != status {
                service_manager::status(&now);
                status = now;
            }
        }
    }

    /// How often the service manager is told that the service is alive.
    fn round() -> Duration {
        service_manager::watchdog_interval().map_or(ROUND, |interval| ROUND.min(interval / 3))
    }

    /// Not sooner than a round after the last time: a reload in between leaves the threads no time to show
    /// any.
    fn check_watchdog(&mut self) {
        let now = Moment::now();
        if now.since(self.looked) < Self::round() {
            return;
        }
        self.looked = now;
        let StalledThreads { now, twice } = self.supervisor.stalled();
        if now.is_empty() {
            service_manager::feed_watchdog();
        }
        // A state, as there may be no watchdog: then /health is all that shows it. Not for who is only busy
        // for a moment.
        if twice.is_empty() {
            self.health.clear(Component::Threads);
        } else {
            let names = twice.join(", ");
            self.health.set_degraded(Component::Threads, format!("no sign of life from: {names}"));
        }
        if let Some(bus) = &self.bus {
            // A full queue is shown by the pulse that does not come.
            let _ = bus.try_send(BusCommand::Heartbeat);
        }
    }

    /// Whether a thread was asked to end. Each end is told once.
    fn is_dismissed(&mut self, thread: &str) -> bool {
        let at = self.dismissed.iter().position(|dismissed| *dismissed == thread);
        at.map(|at| self.dismissed.swap_remove(at)).is_some()
    }

    /// The error behind the end of a thread. One that has none has ended because its neighbour did, whose
    /// notice is on its way.
    fn why_ended(&self, first: Notification) -> DaemonError {
        const PATIENCE: Duration = Duration::from_millis(500);
        let mut name = "signals";
        let mut notice = Some(first);
        while let Some(Notification::Ended { thread, result }) = notice {
            if let Err(error) = result {
                return DaemonError::ThreadEnded { thread, reason: error.to_string() };
            }
            name = thread;
            notice = self.notifications.recv_timeout(PATIENCE).ok();
        }
        DaemonError::ThreadEnded { thread: name, reason: "without an error".to_owned() }
    }

    /// Ends every thread, in the order in which a packet travels. The firewall's takes down its rules.
    fn stop(mut self) -> Result<(), DaemonError> {
        self.stop_capture.raise();
        self.supervisor.join("capture");
        // Without capture there is no more to detect.
        self.supervisor.join("detector");
        self.stop_host.raise();
        self.supervisor.join("host");
        self.firewall.send(Command::Stop);
        self.supervisor.join("firewall");
        // Nobody is left who could write.
        self.supervisor.join("store");
        if let Some(stop) = &self.stop_metrics {
            stop.raise();
            self.supervisor.join("metrics");
        }
        if let Some(bus) = &self.bus {
            // Not lost in a full queue: the thread takes one after the other.
            let _ = bus.send_blocking(BusCommand::Stop);
            self.supervisor.join("bus");
        }
        // The journal ends when nobody is left who could tell it anything.
        let Self { mut supervisor, notifications, events, health, .. } = self;
        drop((events, health));
        supervisor.join("journal");
        notifications.try_iter().try_for_each(|notice| match notice {
            Notification::Ended { thread, result: Err(error) } => {
                Err(DaemonError::ThreadEnded { thread, reason: error.to_string() })
            }
            Notification::Ended { .. } | Notification::Signal(_) | Notification::Reload(_) => {
                Ok(())
            }
        })
    }
}
