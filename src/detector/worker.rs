//! The detector's thread: probes in, scans out.
//!
//! Owns the detector and the list of what to do around it: count, list connections, hand scans to
//! the firewall. Never waits for anybody but capture.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use ipnet::IpNet;

use super::Detector;
use super::entry_limit::EntryLimit;
use crate::capture::Batches;
use crate::clock::Moment;
use crate::config::LogConfig;
use crate::events::{Direction, Event, Reporter};
use crate::firewall::{Firewall, Order};
use crate::host::Host;
use crate::probe::Probe;

/// How long the thread waits at most before it shows that it is alive.
const TICK: Duration = Duration::from_millis(500);

/// Requests carried out between two batches of probes: those must not wait for long.
const REQUESTS_AT_ONCE: usize = 1024;

/// What others ask of the detector.
#[derive(Clone, Debug)]
pub enum Control {
    /// The host has other addresses.
    Host(Arc<Host>),
    /// This network was let in again: its past is forgotten.
    Forget(IpNet),
}

/// Everything the thread works with.
pub struct Worker {
    /// The detector.
    pub detector: Detector,
    /// The host whose probes are outbound.
    pub host: Arc<Host>,
    /// What is said about connections and scans.
    pub log: LogConfig,
    /// Requests of others.
    pub control: Receiver<Control>,
    /// Where scans go.
    pub firewall: Firewall,
    /// Where events go.
    pub reporter: Reporter,
    /// When scans were last summed up.
    pub summed_up: Moment,
}

/// How much is listed one by one.
struct Limits {
    connections: EntryLimit,
    scans: EntryLimit,
    summaries: EntryLimit,
}

impl Worker {
    /// Works until capture ends.
    pub fn run(mut self, batches: &Batches, beat: impl Fn()) {
        let rate = self.log.rate.0;
        let mut limits = Limits {
            connections: EntryLimit::new(self.log.connections.then_some(rate)),
            scans: EntryLimit::new(Some(rate)),
            summaries: EntryLimit::new(Some(rate)),
        };
        let mut more_requests = false;
        loop {
            beat();
            let batch = match batches.next(if more_requests { Duration::ZERO } else { TICK }) {
                Ok(batch) => Some(batch),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => {
                    self.sum_up(&mut limits, true);
                    return;
                }
            };
            // Before the probes: a source let in again must not be judged by its past.
            let mut taken = 0;
            for request in self.control.try_iter().take(REQUESTS_AT_ONCE) {
                taken += 1;
                match request {
                    Control::Host(host) => self.host = host,
                    Control::Forget(network) => self.detector.forget(network),
                }
            }
            more_requests = taken == REQUESTS_AT_ONCE;
            self.sum_up(&mut limits, false);
            if let Some(batch) = batch {
                for probe in &batch {
                    self.consider(probe, &mut limits);
                }
                batches.give_back(batch);
                let metrics = self.reporter.metrics();
                metrics.sources.set(i64::try_from(self.detector.sources()).unwrap_or(i64::MAX));
                metrics.set_evicted(self.detector.evicted());
            }
        }
    }

    /// Says what scans were in all that are over, and how much was left out in the second that has
    /// passed; at the end, in what there was of it.
    fn sum_up(&mut self, limits: &mut Limits, at_the_end: bool) {
        let now = Moment::now();
        if now.since(self.summed_up) >= TICK {
            self.summed_up = now;
            for summary in self.detector.sum_up(now) {
                if limits.summaries.lists() {
                    self.reporter.tell(Event::ScanSummary(summary));
                }
            }
        }
        let Limits { connections, scans, summaries } = limits;
        for (what, limit) in [
            ("new connections", connections),
            ("port scans", scans),
            ("summaries of port scans", summaries),
        ] {
            let summary = if at_the_end { limit.rest(now) } else { limit.summary(now) };
            if let Some((count, span)) = summary {
                self.reporter.tell(Event::NotListed { what, count, span });
            }
        }
    }

    fn consider(&mut self, probe: &Probe, limits: &mut Limits) {
        let direction = Detector::direction(&self.host, probe);
        let metrics = self.reporter.metrics();
        if probe.kind.opens_connection() {
            metrics.new_connection(direction, probe.source.is_ipv4());
            if limits.connections.lists() {
                self.reporter.tell(Event::Connection {
                    direction,
                    source: probe.source,
                    source_port: probe.source_port,
                    destination: probe.destination,
                    port: probe.port,
                    kind: probe.kind,
                });
            }
        }
        if direction == Direction::Outbound {
            return;
        }
        let Some(scan) = self.detector.observe(probe, &self.host) else { return };
        let scan = Arc::new(scan);
        let listed = !scan.continued && limits.scans.lists();
        if listed {
            self.reporter.tell(Event::Scan(Arc::clone(&scan)));
        } else if !scan.continued {
            self.reporter.metrics().scan(scan.kind);
        }
        if !self.firewall.try_order(Order::Scan { scan: Arc::clone(&scan), listed }) {
            self.reporter.metrics().scans_lost.inc();
            self.detector.not_delivered(&scan);
        }
    }
}
