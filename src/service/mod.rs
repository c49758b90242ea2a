//! The service: reads the configuration, opens what it needs, starts its threads, waits, and stops them in
//! order.
//!
//! Owns the threads and their order; never decides about packets. Whatever can fail at the start fails
//! before the kernel is changed: the firewall comes last.

pub mod bus;
pub mod capture;
pub mod detector;
pub mod firewall;
pub mod host;
pub mod http;
pub mod journal;
pub mod reload;
pub mod report;
pub mod sessions;
pub mod store;
pub mod supervisor;

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel};
use std::time::Duration;

use crate::api::dbus::BusError;
use crate::api::journal as log;
use crate::api::log_filter::LogFilter;
use crate::api::metrics::Metrics;
use crate::block::backend::{FirewallError, select};
use crate::config::{Config, ConfigError, Effective, Preset, Sources};
use crate::handles::bus as bus_handle;
use crate::handles::firewall::QUEUE as FIREWALL_QUEUE;
use crate::handles::{
    BusCommand, CaptureHandle, Command, Component, DetectorCommand, EventSink, FirewallHandle,
    Health, Notification, Reloader, StopFlag,
};
use crate::service::supervisor::Supervisor;
use crate::system::capture::CaptureError;
use crate::system::capture::batch;
use crate::system::capture::live::LiveCapture;
use crate::system::lock::{Lock, LockError};
use crate::system::netlink::NetlinkError;
use crate::system::scheduling::Budget;
use crate::system::service_manager;
use crate::types::{Event, IfName, Moment, Warning};

/// How often main checks that every thread makes progress. Each ticks at least once a second.
const ROUND: Duration = Duration::from_secs(2);

/// Why the service does not start, or has ended.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error(transparent)]
    Configuration(#[from] ConfigError),
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error("cannot read this host's addresses: {0}")]
    Host(#[from] NetlinkError),
    #[error("another tcptracker is running on {0}; stop it first: systemctl stop {unit}", unit = .0.unit())]
    AlreadyRunning(IfName),
    #[error("cannot start: {0}")]
    System(#[from] std::io::Error),
    #[error("cannot make the metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error("the {thread} thread ended: {reason}")]
    ThreadEnded { thread: &'static str, reason: String },
}

/// Runs the service until it is told to stop.
pub fn run(interface: &IfName, sources: &Sources) -> Result<(), DaemonError> {
    let effective = Effective::load(sources)?;
    let log_filter = log::init(&effective.config().log);
    let settings = Settings { sources: sources.clone(), effective, log_filter };
    let mut service = Service::start(interface, settings)?;

    service_manager::ready(&service.status());
    log::started(interface, &service.status());
    let outcome = match service.wait() {
        Ok(signal) => {
            service_manager::stopping();
            service.stop().map(|()| signal)
        }
        Err(error) => Err(error),
    };
    match &outcome {
        Ok(signal) => log::stopped(interface, signal),
        // As after a crash: the kernel continues to block until blocks expire or the service restarts.
        Err(error) => log::failed(interface, error),
    }
    outcome.map(drop)
}

/// Returns whether the detector of a configuration uses what tells the outcomes of probes.
fn uses_outcomes(config: &Config) -> bool {
    config.detection.preset == Preset::Balanced
}

/// Prevents a second instance on the same interface. If a process that is not tcptracker holds the lock,
/// only the bus can do that.
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

/// The configuration in force, and what it takes to read it again.
struct Settings {
    sources: Sources,
    effective: Effective,
    log_filter: LogFilter,
}

/// What most threads work with.
#[derive(Clone)]
pub struct Context {
    interface: IfName,
    events: EventSink,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    /// What the threads between a probe and its block may use under real-time priority.
    realtime: Arc<Budget>,
}

/// The running service.
pub struct Service {
    settings: Settings,
    context: Context,
    threads: Supervisor,
    notifications: Receiver<Notification>,
    capture: CaptureHandle,
    detector: SyncSender<DetectorCommand>,
    /// Whether the host thread follows the ports on which this host listens.
    wants_ports: Arc<AtomicBool>,
    firewall: FirewallHandle,
    bus: Option<async_channel::Sender<BusCommand>>,
    stop_host: Arc<StopFlag>,
    stop_metrics: Option<Arc<StopFlag>>,
    /// When the heartbeats were last checked.
    checked: Moment,
    /// Prevents a second instance.
    _lock: Option<Lock>,
}

impl Service {
    fn start(interface: &IfName, settings: Settings) -> Result<Self, DaemonError> {
        let config = settings.effective.config().clone();
        // First, because nothing is started or changed by then. There is no capture if the interface is down,
        // and no back end while the service only observes.
        let capture = LiveCapture::open_if_up(interface, uses_outcomes(&config))?;
        let host = crate::system::host::now()?;
        let selected = config.block.enabled.then(|| select::connect(interface, &config));
        let (backend, note) = selected.transpose()?.unzip();

        let metrics = Arc::new(Metrics::new()?);
        let (notifications_in, notifications) = channel();
        let reloader = Reloader::new(notifications_in.clone());
        let mut threads = Supervisor::new(notifications_in);
        // From here on a signal stops the service in order, however early it comes.
        threads.forward_signals()?;

        let (bus_in, bus_commands) = async_channel::bounded(bus_handle::QUEUE);
        let bus = config.bus.enabled.then_some(bus_in);
        let (firewall, firewall_commands) = sync_channel(FIREWALL_QUEUE);
        let (segments, batches) = batch::channel();

        let journal = journal::spawn(&mut threads, interface)?;
        let events = EventSink::new(journal, bus.clone(), Arc::clone(&metrics) as _);
        settings.log_filter.start_queue(events.clone());
        let name = backend.as_ref().map_or("none", |backend| backend.name());
        let health = Health::new(!config.block.enabled, name, events.clone());
        let interface = interface.clone();
        let (health, realtime) = (Arc::new(health), Arc::default());
        let context = Context { interface, events, metrics, health, realtime };
        if let Some(note) = note.flatten() {
            context.events.emit(Event::Warning(Warning::Backend(note)));
        }
        // Before the bus, which would refuse only the name: this works without a bus, too.
        let lock = lock(&context.interface, &context.events)?;
        if bus.is_some() {
            bus::spawn(&mut threads, &context, reloader, &firewall, bus_commands)?;
        }
        let stop_metrics = http::spawn(&mut threads, &context, config.metrics.listen)?;
        let detector = detector::spawn(&mut threads, &context, &config, &host, &firewall, batches)?;
        let capture = capture::spawn(&mut threads, &context, &config, capture, segments)?;
        let wants_ports = Arc::new(AtomicBool::new(uses_outcomes(&config)));
        let uses_bus = config.bus.enabled;
        let (sessions, hosts) = sessions::spawn(&mut threads, uses_bus, &host, &firewall)?;
        let readers = (&firewall, &detector, hosts);
        let stop_host = host::spawn(&mut threads, &context, &config, &host, readers, &wants_ports)?;
        let store = store::spawn(&mut threads, &context.interface)?;
        // Last, so that nothing can fail once the kernel is changed.
        let owned = (backend, (host, sessions), store);
        firewall::spawn(&mut threads, &context, config, owned, &detector, firewall_commands)?;
        Ok(Self {
            settings,
            context,
            threads,
            notifications,
            capture,
            detector,
            wants_ports,
            firewall,
            bus,
            stop_host,
            stop_metrics,
            checked: Moment::now(),
            _lock: lock,
        })
    }

    /// Returns the status line.
    fn status(&self) -> String {
        let status = self.context.health.status();
        let (state, blocked) = (status.state, status.blocked());
        let why = status.reason.map(|reason| format!(": {reason}")).unwrap_or_default();
        format!("watching {}, {state}{why}, {blocked} blocked", self.context.interface)
    }

    /// Waits for a signal to stop, whose name it returns, or for the end of a thread, which is an error.
    /// Meanwhile it reloads when asked to, and feeds the watchdog as long as every thread makes progress.
    fn wait(&mut self) -> Result<&'static str, DaemonError> {
        // A program that runs in a terminal ends with it; a service has no terminal.
        let hangup_reloads = !std::io::stdin().is_terminal();
        let mut status = self.status();
        loop {
            match self.notifications.recv_timeout(Self::round()) {
                Ok(Notification::Signal("SIGHUP")) if hangup_reloads => {
                    // The journal shows the result.
                    let _ = reload::reload(self, None);
                }
                Ok(Notification::Signal(name)) => return Ok(name),
                Ok(Notification::Reload { uid, reply }) => {
                    // The caller may have gone.
                    let _ = reply.try_send(reload::reload(self, Some(uid)));
                }
                // The metrics thread ends without an error only if a reload has stopped it.
                Ok(Notification::Ended { thread: "metrics", result: Ok(()) })
                | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
                Ok(ended) => return Err(self.why_ended(ended)),
            }
            self.check_watchdog();
            let now = self.status();
            if now != status {
                service_manager::status(&now);
                status = now;
            }
        }
    }

    /// Returns how often the heartbeats are checked.
    fn round() -> Duration {
        service_manager::watchdog_interval().map_or(ROUND, |interval| ROUND.min(interval / 3))
    }

    /// Feeds the watchdog if every thread makes progress, and shows the threads that do not. Does nothing
    /// if the last check was less than a round ago, as after a reload: heartbeats take time.
    fn check_watchdog(&mut self) {
        let now = Moment::now();
        if now.since(self.checked) < Self::round() {
            return;
        }
        self.checked = now;
        let stalled = self.threads.stalled();
        if stalled.is_empty() {
            service_manager::feed_watchdog();
        }
        // There may be no watchdog, so that only state and /health show it. A thread that is busy for a
        // moment is not shown.
        let health = &self.context.health;
        let stalled_twice = stalled.into_iter().filter(|(_, checks)| *checks > 1);
        let names: Vec<&str> = stalled_twice.map(|(name, _)| name).collect();
        if names.is_empty() {
            health.clear(Component::Threads);
        } else {
            let names = names.join(", ");
            health.set_degraded(Component::Threads, format!("threads not responding: {names}"));
        }
        if let Some(bus) = &self.bus {
            // If the queue is full, the missing heartbeat shows that.
            let _ = bus.try_send(BusCommand::Heartbeat);
        }
    }

    /// Returns the error behind the end of a thread. A thread that has ended without an error has lost a
    /// neighbour, whose own notification is on its way.
    fn why_ended(&self, first: Notification) -> DaemonError {
        const PATIENCE: Duration = Duration::from_millis(500);
        let mut name = "signals";
        let mut next = Some(first);
        while let Some(Notification::Ended { thread, result }) = next {
            if let Err(error) = result {
                return DaemonError::ThreadEnded { thread, reason: error.to_string() };
            }
            name = thread;
            next = self.notifications.recv_timeout(PATIENCE).ok();
        }
        DaemonError::ThreadEnded { thread: name, reason: "without an error".to_owned() }
    }

    /// Ends every thread, in the order in which a packet travels. The firewall thread removes its rules.
    fn stop(mut self) -> Result<(), DaemonError> {
        self.capture.stop();
        self.threads.join("capture");
        // Ends with capture.
        self.threads.join("detector");
        self.stop_host.raise();
        self.threads.join("host");
        // Ends with the host thread.
        self.threads.join("sessions");
        let _ = self.firewall.send(Command::Stop);
        self.threads.join("firewall");
        // Ends with the firewall thread, the only one that writes.
        self.threads.join("store");
        if let Some(stop) = &self.stop_metrics {
            stop.raise();
            self.threads.join("metrics");
        }
        if let Some(bus) = &self.bus {
            // Waits if the queue is full: the thread empties it.
            let _ = bus.send_blocking(BusCommand::Stop);
            self.threads.join("bus");
        }
        // The journal thread ends when nothing is left that could emit an event.
        let Self { mut threads, notifications, context, settings, .. } = self;
        settings.log_filter.stop_queue();
        drop(context);
        threads.join("journal");
        notifications.try_iter().try_for_each(|notification| match notification {
            Notification::Ended { thread, result: Err(error) } => {
                Err(DaemonError::ThreadEnded { thread, reason: error.to_string() })
            }
            _ => Ok(()),
        })
    }
}
