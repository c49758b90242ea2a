//! The story of the service: read the configuration, open what is needed, start the threads, say
//! that it is ready, wait, and stop in order.
//!
//! Composes; decides nothing about packets. What can fail at the start fails before anything is
//! changed: the firewall comes last.

mod lock;
mod threads;

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel, sync_channel};
use std::time::Duration;

use crate::capture::{self, CaptureError, LiveCapture, Watch};
use crate::clock::Moment;
use crate::config::{Config, ConfigError, Effective, Listen, Sources};
use crate::crew::{Crew, Notice, StopFlag};
use crate::dbus::{self, BusError, OneAtATime, Task, Tracker};
use crate::detector::{Detector, Worker};
use crate::events::{Event, Reporter};
use crate::firewall::{
    self, Actor, Backend, Blocking, Firewall, FirewallError, KernelSets, Observer, Order,
};
use crate::host::{self, Host};
use crate::interface::InterfaceName;
use crate::metrics::{Metrics, MetricsStop};
use crate::netlink::NetlinkError;
use crate::state::StateBoard;
use crate::{journal, service_manager};
use lock::lock;
use threads::{Followers, start_bus, start_firewall, start_host, start_journal, start_metrics};

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
    Firewall(#[from] FirewallError),
    /// The bus cannot be reached.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The host's addresses cannot be read.
    #[error("cannot read this host's addresses: {0}")]
    Host(#[from] NetlinkError),
    /// Another instance watches the interface.
    #[error("another tcptracker is running on {0}; stop it first: systemctl stop tcptracker@{0}")]
    AlreadyRunning(InterfaceName),
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
pub fn run(interface: &InterfaceName, sources: &Sources) -> Result<(), DaemonError> {
    let config = Effective::load(sources)?.config;
    journal::init();

    let capture = LiveCapture::open(interface)?;
    let host = host::now()?;
    let backend = backend(interface, &config)?;
    let mut service = Service::start(interface, config, capture, host, backend)?;

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

/// What holds the blocks. Changes nothing yet.
fn backend(
    interface: &InterfaceName,
    config: &Config,
) -> Result<Box<dyn Backend + Send>, FirewallError> {
    let kernel = KernelSets::connect(interface, &config.firewall, config.block.established);
    if config.block.enabled {
        Ok(Box::new(kernel?))
    } else {
        // Without the privilege to look there is nothing it could have left either.
        Ok(Box::new(Observer::new(kernel.ok())))
    }
}

/// The running service.
struct Service {
    interface: InterfaceName,
    crew: Crew,
    notices: Receiver<Notice>,
    stop_capture: Arc<StopFlag>,
    stop_host: Arc<StopFlag>,
    stop_metrics: Option<MetricsStop>,
    firewall: Firewall,
    bus: Option<async_channel::Sender<Task>>,
    reporter: Reporter,
    board: Arc<StateBoard>,
    /// Keeps a second instance away.
    _lock: Option<UnixListener>,
}

impl Service {
    fn start(
        interface: &InterfaceName,
        config: Config,
        capture: LiveCapture,
        host: Arc<Host>,
        backend: Box<dyn Backend + Send>,
    ) -> Result<Self, DaemonError> {
        let metrics = Arc::new(Metrics::new()?);
        let (notices_in, notices) = channel();
        let mut crew = Crew::new(notices_in);
        // From here on a signal ends the service in order, however early it comes.
        crew.forward_signals()?;

        let (events_in, events) = sync_channel(journal::QUEUE);
        let (tasks_in, tasks) = async_channel::bounded(dbus::QUEUE);
        let bus = config.bus.enabled.then_some(tasks_in);
        let reporter = Reporter::new(events_in, bus.clone(), Arc::clone(&metrics));
        let board = Arc::new(StateBoard::new(!config.block.enabled, reporter.clone()));
        let (orders_in, orders) = sync_channel(firewall::QUEUE);
        let firewall = Firewall::new(orders_in);
        let (control_in, control) = sync_channel(CONTROL_QUEUE);

        start_journal(&mut crew, interface, events)?;
        // Before the bus, where it would only be refused its name: this says the same without a bus.
        let lock = lock(interface, &reporter)?;
        if bus.is_some() {
            let tracker = Tracker {
                interface: interface.clone(),
                backend: backend.name(),
                firewall: firewall.clone(),
                board: Arc::clone(&board),
                metrics: Arc::clone(&metrics),
                one_list: OneAtATime::default(),
            };
            start_bus(&mut crew, interface, tracker, tasks, Arc::clone(&metrics))?;
        }
        let stop_metrics = match config.metrics.listen {
            Listen::Off => None,
            Listen::At(address) => start_metrics(&mut crew, address, &reporter, &board)?,
        };

        let (hand_over, batches) = capture::channel();
        let worker = Worker {
            detector: Detector::new(config.detection),
            host: Arc::clone(&host),
            log: config.log,
            control,
            firewall: firewall.clone(),
            reporter: reporter.clone(),
            summed_up: Moment::now(),
        };
        crew.start("detector", move |pulse| {
            worker.run(&batches, || pulse.beat());
            Ok::<(), DaemonError>(())
        })?;
        let stop_capture = Arc::new(StopFlag::new().map_err(std::io::Error::from)?);
        let watch = Watch {
            interface: interface.clone(),
            out: hand_over,
            metrics: metrics.capture(),
            board: Arc::clone(&board),
            stop: Arc::clone(&stop_capture),
        };
        crew.start("capture", move |pulse| watch.run(capture, pulse))?;

        let stop_host = Arc::new(StopFlag::new().map_err(std::io::Error::from)?);
        let followers = Followers {
            interface: interface.clone(),
            firewall: firewall.clone(),
            detector: control_in.clone(),
            board: Arc::clone(&board),
        };
        start_host(&mut crew, Arc::clone(&host), followers, Arc::clone(&stop_host))?;
        // Last, so that nothing can fail any more once the kernel is changed.
        let blocking = Blocking { block: config.block, exempt: config.exempt, host };
        let actor = Actor::new(backend, blocking, reporter.clone(), Arc::clone(&board), control_in);
        start_firewall(&mut crew, actor, orders)?;
        Ok(Self {
            interface: interface.clone(),
            crew,
            notices,
            stop_capture,
            stop_host,
            stop_metrics,
            firewall,
            bus,
            reporter,
            board,
            _lock: lock,
        })
    }

    /// One line for people.
    fn status(&self) -> String {
        let (state, reason) = self.board.current();
        let blocked = self.reporter.metrics().blocked();
        let why = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
        format!("watching {}, {state}{why}, {blocked} blocked", self.interface)
    }

    /// Waits for a signal, whose name it returns, or for a thread to end, which is an error. Feeds the
    /// watchdog as long as every thread makes progress.
    fn wait(&mut self) -> Result<&'static str, DaemonError> {
        let round =
            service_manager::watchdog_interval().map_or(ROUND, |interval| ROUND.min(interval / 3));
        let mut status = self.status();
        loop {
            if let Some(bus) = &self.bus {
                // A full queue is shown by the pulse that does not come.
                let _ = bus.try_send(Task::Beat);
            }
            match self.notices.recv_timeout(round) {
                Ok(Notice::Signal(name)) => return Ok(name),
                Ok(ended) => return Err(self.why_ended(ended)),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            let stalled = self.crew.stalled();
            if stalled.is_empty() {
                service_manager::feed_watchdog();
            } else {
                let names = stalled.join(", ");
                self.reporter.tell(Event::Warning(format!("no sign of life from: {names}")));
            }
            let now = self.status();
            if now != status {
                service_manager::status(&now);
                status = now;
            }
        }
    }

    /// The error behind the end of a thread. One that has none has ended because its neighbour did, whose
    /// notice is on its way.
    fn why_ended(&self, first: Notice) -> DaemonError {
        const PATIENCE: Duration = Duration::from_millis(500);
        let mut name = "signals";
        let mut notice = Some(first);
        while let Some(Notice::Ended { thread, result }) = notice {
            if let Err(error) = result {
                return DaemonError::ThreadEnded { thread, reason: error.to_string() };
            }
            name = thread;
            notice = self.notices.recv_timeout(PATIENCE).ok();
        }
        DaemonError::ThreadEnded { thread: name, reason: "without an error".to_owned() }
    }

    /// Ends every thread, in the order in which a packet travels. The firewall's takes down its rules.
    fn stop(mut self) -> Result<(), DaemonError> {
        self.stop_capture.raise();
        self.crew.join("capture");
        // Without capture there is no more to detect.
        self.crew.join("detector");
        self.stop_host.raise();
        self.crew.join("host");
        self.firewall.order(Order::Stop);
        self.crew.join("firewall");
        if let Some(stop) = &self.stop_metrics {
            stop.raise();
            self.crew.join("metrics");
        }
        if let Some(bus) = &self.bus {
            // Not lost in a full queue: the thread takes one after the other.
            let _ = bus.send_blocking(Task::Stop);
            self.crew.join("bus");
        }
        // The journal ends when nobody is left who could tell it anything.
        let Self { mut crew, notices, reporter, board, .. } = self;
        drop((reporter, board));
        crew.join("journal");
        notices.try_iter().try_for_each(|notice| match notice {
            Notice::Ended { thread, result: Err(error) } => {
                Err(DaemonError::ThreadEnded { thread, reason: error.to_string() })
            }
            Notice::Ended { .. } | Notice::Signal(_) => Ok(()),
        })
    }
}
