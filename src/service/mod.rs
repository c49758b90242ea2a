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
pub mod memory;
mod nftables;
pub mod reload;
pub mod report;
pub mod rules;
pub mod sessions;
pub mod store;
pub mod supervisor;

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel};
use std::time::Duration;

use crate::api::dbus::link::BusError;
use crate::api::journal as log;
use crate::api::log_filter::LogFilter;
use crate::api::metrics::Metrics;
use crate::block::backend::FirewallError;
use crate::block::backend::rules_handle::RulesHandle;
use crate::block::backend::select::{Selected, select};
use crate::config::{Config, ConfigError, Effective, Preset, Sources};
use crate::handles::bus as bus_handle;
use crate::handles::firewall::QUEUE as FIREWALL_QUEUE;
use crate::handles::{
    BusCommand, CaptureHandle, Command, Component, DetectorCommand, EventSink, FirewallHandle,
    Health, Notification, Reloader, StopFlag,
};
use crate::service::firewall::Backends;
use crate::service::journal::Journal;
use crate::service::memory::MemoryError;
use crate::service::rules::AtStart;
use crate::service::supervisor::{Failure, Supervisor, protects};
use crate::system::capture::CaptureError;
use crate::system::capture::batch;
use crate::system::capture::live::LiveCapture;
use crate::system::lock::{Lock, LockError};
use crate::system::netlink::NetlinkError;
use crate::system::reserve;
use crate::system::scheduling::Budget;
use crate::system::service_manager;
use crate::types::{BackendNote, Event, IfName, Moment, Warning};

/// How often main checks that every thread makes progress. Each ticks at least once a second.
const ROUND: Duration = Duration::from_secs(2);

/// How long the stop waits for the threads that only tell others what happens, and then for the journal.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long the stop waits for the end of a thread that has no more work.
const LEAVE: Duration = Duration::from_millis(200);

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
    #[error(transparent)]
    Memory(#[from] MemoryError),
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

    let waited = service.wait();
    let was_ready = service.is_ready;
    let outcome = match waited {
        Ok(signal) => {
            service_manager::stopping();
            service.stop().map(|()| signal)
        }
        // A start that fails leaves nothing. The first error is the one to report.
        Err(error) if !was_ready => {
            let _ = service.stop();
            Err(error)
        }
        // As after a crash: the kernel continues to block until blocks expire or the service restarts.
        Err(error) => Err(error),
    };
    // The program itself prints why it does not start.
    if was_ready || outcome.is_ok() {
        service.end_journal(&outcome);
    }
    outcome.map(drop)
}

/// Returns whether the detector of a configuration uses what tells the outcomes of probes.
fn uses_outcomes(config: &Config) -> bool {
    config.detection.preset == Preset::Balanced
}

/// Prevents a second instance on the same interface.
fn lock(interface: &IfName, events: &EventSink) -> Result<Lock, DaemonError> {
    let name = format!("tcptracker@{interface}");
    match Lock::take(&name) {
        Ok(lock) => {
            if let Some(uid) = lock.stranger() {
                let warning = Warning::LockHeldByOther { socket: format!("@{name}"), uid };
                events.emit(Event::Warning(warning));
            }
            Ok(lock)
        }
        Err(LockError::Taken) => Err(DaemonError::AlreadyRunning(interface.clone())),
        Err(LockError::System(error)) => Err(error.into()),
    }
}

/// Chooses the back end. Returns it, what the rules thread has to do at the start, and a note on the choice.
fn open_backends(
    interface: &IfName,
    config: &Config,
    rules: &RulesHandle,
) -> Result<(Backends, AtStart, Option<BackendNote>), FirewallError> {
    let is_enabled = config.block.enabled;
    match select(interface, config, rules) {
        Ok(Selected { backend, plan, others, old_plan, note }) => {
            let at_start = match (plan, old_plan, is_enabled) {
                (Some(plan), _, true) => AtStart::Install(plan),
                (Some(plan), _, false) | (None, Some(plan), _) => AtStart::Remove(plan),
                (None, None, _) => AtStart::Nothing,
            };
            let backends = Backends { used: Some(backend), others };
            Ok((backends, at_start, note.filter(|_| is_enabled)))
        }
        Err(error) if is_enabled => Err(error),
        // A process that may not look at the firewall cannot have left anything there.
        Err(_) => Ok((Backends::default(), AtStart::Nothing, None)),
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
    rules: RulesHandle,
    /// Blocks are in force.
    is_ready: bool,
    bus: Option<async_channel::Sender<BusCommand>>,
    stop_host: Arc<StopFlag>,
    stop_metrics: Option<Arc<StopFlag>>,
    journal: Journal,
    /// When the heartbeats were last checked.
    checked: Moment,
    is_short_of_memory: bool,
    /// Prevents a second instance.
    _lock: Lock,
}

impl Service {
    fn start(interface: &IfName, settings: Settings) -> Result<Self, DaemonError> {
        let config = settings.effective.config().clone();
        memory::check(interface, &config, memory::blocks_in_store(interface))?;
        reserve::fill();
        // First, because nothing is started or changed by then. There is no capture if the interface is down,
        // and no back end while the service only observes.
        let capture = LiveCapture::open_if_up(interface, uses_outcomes(&config))?;
        let host = crate::system::host::now()?;
        let (rules, rules_commands) = RulesHandle::new();
        let (backends, at_start, note) = open_backends(interface, &config, &rules)?;

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

        let journal = Journal::spawn(&mut threads, interface)?;
        let events = EventSink::new(journal.queue.clone(), bus.clone(), Arc::clone(&metrics) as _);
        settings.log_filter.start_queue(events.clone());
        let name = backends.used.as_ref().filter(|_| config.block.enabled);
        let name = name.map_or("none", |backend| backend.name());
        let health = Health::new(!config.block.enabled, name, events.clone());
        let interface = interface.clone();
        let (health, realtime) = (Arc::new(health), Arc::default());
        let context = Context { interface, events, metrics, health, realtime };
        if let Some(note) = note {
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
        let (sessions, hosts) = sessions::spawn(&mut threads, &config, &host, &firewall)?;
        let readers = (&firewall, &detector, hosts);
        let stop_host = host::spawn(&mut threads, &context, &config, &host, readers, &wants_ports)?;
        nftables::spawn(&mut threads, name, &firewall, &stop_host)?;
        let store = store::spawn(&mut threads, &context.interface)?;
        // Last, so that nothing can fail once the kernel is changed.
        let rules_ways = (rules.clone(), rules_commands);
        rules::spawn(&mut threads, &context, rules_ways, &firewall, at_start)?;
        let owned = (backends, (host, sessions), store);
        let neighbours = (detector.clone(), rules.clone());
        firewall::spawn(&mut threads, &context, config, owned, neighbours, firewall_commands)?;
        Ok(Self {
            settings,
            context,
            threads,
            notifications,
            capture,
            detector,
            wants_ports,
            firewall,
            rules,
            is_ready: false,
            bus,
            stop_host,
            stop_metrics,
            journal,
            checked: Moment::now(),
            is_short_of_memory: false,
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
    /// Reports that the service is ready when blocks are in force. Meanwhile it reloads when asked to, and feeds
    /// the watchdog as long as every thread makes progress that protection needs.
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
                Ok(Notification::InForce) => {
                    status = self.status();
                    if !std::mem::replace(&mut self.is_ready, true) {
                        service_manager::ready(&status);
                        self.context.events.emit(Event::Started { status: status.clone() });
                    }
                }
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

    /// Feeds the watchdog if every thread that protects makes progress, and shows the threads that do not.
    /// Does nothing if the last check was less than a round ago, as after a reload: heartbeats take time.
    fn check_watchdog(&mut self) {
        let now = Moment::now();
        if now.since(self.checked) < Self::round() {
            return;
        }
        self.checked = now;
        let stalled = self.threads.stalled();
        if !stalled.iter().any(|(name, _)| protects(name)) {
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
        self.check_memory();
        // What was in use may be free again.
        reserve::fill();
        if let Some(bus) = &self.bus {
            // If the queue is full, the missing heartbeat shows that.
            let _ = bus.try_send(BusCommand::Heartbeat);
        }
    }

    /// Shows when so many blocks may need too much memory, once and not at each further block.
    fn check_memory(&mut self) {
        let health = &self.context.health;
        let (config, blocks) = (self.settings.effective.config(), health.status().blocked());
        let result = memory::check(&self.context.interface, config, blocks.into());
        if result.is_err() != self.is_short_of_memory {
            self.is_short_of_memory = result.is_err();
            match result {
                Ok(()) => health.clear(Component::Memory),
                Err(error) => health.set_degraded(Component::Memory, error.to_string()),
            }
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
                return match error.downcast::<FirewallError>() {
                    // The user need not know which thread has found that the service cannot start.
                    Ok(error) if !self.is_ready => DaemonError::Firewall(*error),
                    Ok(error) => DaemonError::ThreadEnded { thread, reason: error.to_string() },
                    Err(error) => DaemonError::ThreadEnded { thread, reason: error.to_string() },
                };
            }
            name = thread;
            next = self.notifications.recv_timeout(PATIENCE).ok();
        }
        DaemonError::ThreadEnded { thread: name, reason: "without an error".to_owned() }
    }

    /// Ends every thread but the journal's, in the order in which a packet travels. The firewall thread removes
    /// everything from the kernel, with the help of the rules thread.
    fn stop(&mut self) -> Result<(), DaemonError> {
        self.capture.stop();
        self.threads.join("capture");
        // Ends with capture.
        self.threads.join("detector");
        self.stop_host.raise();
        // The sessions thread ends with the host thread.
        let mut failures = self.leave(&["host", "sessions"]);
        // A start that still tries ends.
        self.rules.activity().stop(Moment::now());
        let _ = self.firewall.send(Command::Stop);
        self.threads.join("firewall");
        // It may wait for a program that does not end.
        failures.extend(self.threads.leave(&["rules"], LEAVE, &self.notifications));
        // Ends with the firewall thread, the only one that writes.
        self.threads.join("store");
        if let Some(stop) = &self.stop_metrics {
            stop.raise();
        }
        if let Some(bus) = &self.bus {
            // The thread still sends the signals that wait, and then finds the queue closed.
            let _ = bus.try_send(BusCommand::Stop);
            bus.close();
        }
        failures.extend(self.leave(&["metrics", "bus"]));
        failures.extend(self.notifications.try_iter().filter_map(
            |notification| match notification {
                Notification::Ended { thread, result } => Some((thread, result.err()?)),
                _ => None,
            },
        ));
        match failures.into_iter().next() {
            Some((thread, error)) => {
                Err(DaemonError::ThreadEnded { thread, reason: error.to_string() })
            }
            None => Ok(()),
        }
    }

    /// Logs why the service ends, and waits until the journal thread has written everything, but not for a log
    /// that is not read.
    fn end_journal(&mut self, outcome: &Result<&'static str, DaemonError>) {
        self.journal.end(match outcome {
            Ok(signal) => Event::Stopped { signal },
            Err(error) => Event::Failed { error: error.to_string() },
        });
        self.leave(&["journal"]);
    }

    /// Waits for threads to end that may not be able to.
    fn leave(&mut self, names: &[&str]) -> Vec<Failure> {
        self.threads.leave(names, PATIENCE, &self.notifications)
    }
}
