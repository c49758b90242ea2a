//! The detector's thread: probes in, scans out.
//!
//! Owns the detector and the list of what to do around it: count, list connections, hand scans to
//! the firewall. Never waits for anybody but capture.

use crate::api::metrics::Metrics;
use crate::handles::detector::DetectorCommand;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use crate::config::LogConfig;
use crate::detect::{Detector, Scratch};
use crate::handles::events::EventSink;
use crate::handles::firewall::{Command, FirewallHandle};
use crate::service::entry_limit::EntryLimit;
use crate::system::capture::batch::BatchReceiver;
use crate::types::clock::Moment;
use crate::types::event::{Event, Suppressed, Warning};
use crate::types::host::{Host, Listening};
use crate::types::scan::Scan;
use crate::types::segment::Direction;
use crate::types::segment::Segment;

/// How long the thread waits at most before it shows that it is alive.
const TICK: Duration = Duration::from_millis(500);

/// The same while connections wait for what becomes of them.
const SHORT_TICK: Duration = Duration::from_millis(50);

/// How far behind the clock capture may be on an idle interface, with a wide margin: a hundred times as
/// long as the kernel holds a packet back.
const CAPTURE_LAG: Duration = Duration::from_millis(100);

/// How long it takes capture to let through what another preset wants, and connections from before that
/// to be of no interest.
const CHANGE_OVER: Duration = Duration::from_secs(3);

/// Requests carried out between two batches of probes: those must not wait for long.
const REQUESTS_AT_ONCE: usize = 1024;

/// Behind one request there may be thousands, whose sender waits as soon as the channel is full.
const MORE_MAY_COME: Duration = Duration::from_millis(1);

/// Everything the thread works with.
pub struct Worker {
    /// The detector.
    pub detector: Detector,
    /// The host whose probes are outbound.
    pub host: Arc<Host>,
    /// What is said about connections and scans.
    pub log: LogConfig,
    /// Requests of others.
    pub control: Receiver<DetectorCommand>,
    /// Where scans go.
    pub firewall: FirewallHandle,
    /// Where events go.
    pub events: EventSink,
    /// Where packets and connections are counted.
    pub metrics: Arc<Metrics>,
    /// When scans were last summed up.
    pub summed_up: Moment,
    /// Tells capture whether to let through what became of probes.
    pub outcomes: Arc<AtomicBool>,
}

/// How much is listed one by one.
struct Limits {
    connections: EntryLimit,
    scans: EntryLimit,
    summaries: EntryLimit,
}

impl Limits {
    fn new(log: &LogConfig) -> Self {
        let rate = log.rate.0;
        Self {
            connections: EntryLimit::new(log.connections.then_some(rate)),
            scans: EntryLimit::new(Some(rate)),
            summaries: EntryLimit::new(Some(rate)),
        }
    }
}

impl Worker {
    /// Works until capture ends.
    pub fn run(mut self, batches: &BatchReceiver, beat: impl Fn()) {
        let mut limits = Limits::new(&self.log);
        let mut taken = 0;
        let mut work = Scratch::default();
        let mut found = Vec::new();
        let mut ports: Option<Arc<Listening>> = None;
        let mut sight = Sight { changed: None, lost: 0, one_sided: false };
        loop {
            beat();
            let tick = match (taken, self.detector.is_waiting()) {
                (REQUESTS_AT_ONCE.., _) => Duration::ZERO,
                (1.., _) => MORE_MAY_COME,
                (0, true) => SHORT_TICK,
                (0, false) => TICK,
            };
            let batch = match batches.next(tick) {
                Ok(batch) => Some(batch),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => {
                    self.sum_up(&mut limits, true);
                    return;
                }
            };
            // Before the probes: a source let in again must not be judged by its past.
            taken = 0;
            let mut another = None;
            while taken < REQUESTS_AT_ONCE
                && let Ok(request) = self.control.try_recv()
            {
                taken += 1;
                match request {
                    DetectorCommand::Host(host) => self.host = host,
                    DetectorCommand::Forget(networks) => {
                        taken += networks.len();
                        for network in networks {
                            self.detector.forget(network);
                        }
                    }
                    DetectorCommand::Listening(other) => {
                        self.detector.listens_on(&other);
                        ports = Some(other);
                    }
                    DetectorCommand::Reconfigure(detection, log, reply) => {
                        another = Some((detection, log, reply));
                    }
                }
            }
            if let Some((detection, log, reply)) = another {
                let wanted = self.detector.wants_outcomes();
                let kept = self.detector.reconfigure(detection);
                if wanted != self.detector.wants_outcomes() {
                    self.outcomes.store(!wanted, Ordering::Relaxed);
                    sight.changed = Some(Moment::now());
                    if let Some(ports) = &ports {
                        self.detector.listens_on(ports);
                    }
                }
                if log != self.log {
                    // What was left out until now is told; then the new limits begin.
                    self.sum_up(&mut limits, true);
                    limits = Limits::new(&log);
                    self.log = log;
                }
                let _ = reply.try_send(kept);
            }
            self.sum_up(&mut limits, false);
            sight.look(&mut self.detector, &self.events, &self.metrics);
            if let Some(mut batch) = batch {
                if sight.changed.is_some() && !self.detector.wants_outcomes() {
                    batch.retain(|segment| segment.kind.is_probe());
                }
                let Self { detector, host, events, metrics, firewall, .. } = &mut self;
                detector.consider(
                    &batch,
                    host,
                    &mut work,
                    |detector, segment, direction, found| {
                        list(segment, direction, events, metrics, &mut limits);
                        for scan in found.drain(..) {
                            hand_on(scan, detector, (events, metrics), firewall, &mut limits);
                        }
                    },
                );
                batches.give_back(batch);
                self.metrics.set_sources(self.detector.sources(), self.detector.evicted());
            } else if self.detector.is_waiting() {
                let Self { detector, host, events, metrics, firewall, .. } = &mut self;
                let captured_until = Moment::now().before(CAPTURE_LAG);
                detector.pass_time(captured_until, host, &mut found);
                for scan in found.drain(..) {
                    hand_on(scan, detector, (events, metrics), firewall, &mut limits);
                }
            }
        }
    }

    /// Says what scans were in all that are over, and how much was left out in the second that has
    /// passed; at the end, in what there was of it.
    fn sum_up(&mut self, limits: &mut Limits, at_the_end: bool) {
        let now = Moment::now();
        if now.since(self.summed_up) >= TICK {
            self.summed_up = now;
            let (summaries, untold) = self.detector.sum_up(now);
            limits.summaries.leave_out(untold);
            for summary in summaries {
                if limits.summaries.lists() {
                    self.events.emit(Event::ScanSummary(summary));
                }
            }
        }
        let Limits { connections, scans, summaries } = limits;
        for (what, limit) in [
            (Suppressed::Connections, connections),
            (Suppressed::Scans, scans),
            (Suppressed::Summaries, summaries),
        ] {
            let summary = if at_the_end { limit.rest(now) } else { limit.summary(now) };
            if let Some((count, span)) = summary {
                self.events.emit(Event::Suppressed { what, count, span });
            }
        }
    }
}

/// Counts a connection that begins, and lists it.
#[inline]
fn list(
    probe: &Segment,
    direction: Direction,
    events: &EventSink,
    metrics: &Metrics,
    limits: &mut Limits,
) {
    if !probe.kind.opens_connection() {
        return;
    }
    metrics.new_connection(direction, probe.source.is_ipv4());
    if limits.connections.lists() {
        events.emit(Event::Connection {
            direction,
            source: probe.source,
            source_port: probe.source_port,
            destination: probe.destination,
            port: probe.port,
        });
    }
}

/// Tells of a scan, and hands it to the firewall unless it is only reported.
fn hand_on(
    scan: Scan,
    detector: &mut Detector,
    (events, metrics): (&EventSink, &Metrics),
    firewall: &FirewallHandle,
    limits: &mut Limits,
) {
    let scan = Arc::new(scan);
    let listed = !scan.continued && limits.scans.lists();
    if listed {
        events.emit(Event::Scan(Arc::clone(&scan)));
    } else if !scan.continued {
        metrics.count_scan(scan.kind);
    }
    if scan.rule.blocks() && !firewall.try_send(Command::Scan { scan: Arc::clone(&scan), listed }) {
        metrics.count_lost_scan();
        detector.not_delivered(&scan);
    }
}

/// What stands in the way of seeing what becomes of probes.
struct Sight {
    /// Capture is about to let through more, or less.
    changed: Option<Moment>,
    /// Packets capture has lost, ever.
    lost: u64,
    one_sided: bool,
}

impl Sight {
    fn look(&mut self, detector: &mut Detector, events: &EventSink, metrics: &Metrics) {
        if !detector.wants_outcomes() && self.changed.is_none() {
            return;
        }
        let lost = metrics.capture_lost();
        if std::mem::replace(&mut self.lost, lost) != lost || self.changed.is_some() {
            detector.has_lost();
        }
        self.changed = self.changed.filter(|since| Moment::now().since(*since) < CHANGE_OVER);
        let one_sided = detector.is_one_sided();
        if std::mem::replace(&mut self.one_sided, one_sided) != one_sided {
            let warning = if one_sided { Warning::RepliesMissing } else { Warning::RepliesVisible };
            events.emit(Event::Warning(warning));
        }
    }
}
