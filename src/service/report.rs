//! What follows from a detection: it is counted, logged, and handed to the firewall.
//!
//! Owns the limits of the log (`log.connections`, `log.rate`). It never waits: the firewall or a reader of
//! the log that is too slow costs entries, which are counted.

use std::sync::Arc;

use crate::api::metrics::Metrics;
use crate::config::LogConfig;
use crate::detect::Observer;
use crate::handles::{Command, EventSink, FirewallHandle};
use crate::types::{
    Direction, Event, Host, Moment, RateLimit, Scan, Segment, Summary, Suppressed, Suppression,
};

/// How much is logged one by one.
struct Limits {
    /// None: connections are not logged.
    connections: Option<RateLimit>,
    scans: RateLimit,
    summaries: RateLimit,
}

impl Limits {
    fn new(log: &LogConfig) -> Self {
        let limit = RateLimit::per_second(log.rate.0);
        Self {
            connections: log.connections.then(|| limit.clone()),
            scans: limit.clone(),
            summaries: limit,
        }
    }
}

/// Reports what the detector finds.
pub struct Reporter {
    events: EventSink,
    metrics: Arc<Metrics>,
    firewall: FirewallHandle,
    limits: Limits,
    /// The time of the batch in hand: a limit needs no clock of its own.
    now: Moment,
}

impl Reporter {
    /// Makes a reporter with the limits of `log`.
    pub fn new(
        log: &LogConfig,
        events: EventSink,
        metrics: Arc<Metrics>,
        firewall: FirewallHandle,
    ) -> Self {
        Self { events, metrics, firewall, limits: Limits::new(log), now: Moment::now() }
    }

    /// Applies other limits. Reports first what the old ones have suppressed.
    pub fn reconfigure(&mut self, log: &LogConfig) {
        self.finish(Moment::now());
        self.limits = Limits::new(log);
    }

    /// Begins a batch, and reports how many entries were suppressed in the second that has passed.
    pub fn begin(&mut self, now: Moment) {
        self.now = now;
        self.report_suppressed(RateLimit::take_suppressed);
    }

    /// Reports how many entries were suppressed since then.
    pub fn finish(&mut self, now: Moment) {
        self.now = now;
        self.report_suppressed(RateLimit::finish);
    }

    fn report_suppressed(&mut self, take: impl Fn(&mut RateLimit, Moment) -> Option<Suppression>) {
        let Limits { connections, scans, summaries } = &mut self.limits;
        for (what, limit) in [
            (Suppressed::Connections, connections.as_mut()),
            (Suppressed::Scans, Some(scans)),
            (Suppressed::Summaries, Some(summaries)),
        ] {
            let suppression = limit.and_then(|limit| take(limit, self.now));
            if let Some(Suppression { count, span }) = suppression {
                self.events.emit(Event::Suppressed { what, count, span });
            }
        }
    }

    /// Counts and logs a segment that opens a connection.
    #[inline]
    fn connection(&mut self, segment: &Segment, direction: Direction) {
        self.metrics.new_connection(direction, segment.source.is_ipv4());
        if self.limits.connections.as_mut().is_some_and(|limit| limit.allow(self.now)) {
            self.events.emit(Event::Connection {
                direction,
                source: segment.source,
                source_port: segment.source_port,
                destination: segment.destination,
                port: segment.port,
            });
        }
    }

    /// Counts and logs a scan, and hands it to the firewall if its rule blocks.
    ///
    /// Returns false if the firewall had no room for it.
    fn scan(&mut self, scan: Arc<Scan>) -> bool {
        let listed = !scan.continued && self.limits.scans.allow(self.now);
        if listed {
            self.events.emit(Event::Scan(Arc::clone(&scan)));
        } else if !scan.continued {
            self.metrics.count_scan(scan.kind);
        }
        if !scan.rule.blocks() || self.firewall.try_send(Command::Scan { scan, listed }) {
            return true;
        }
        self.metrics.count_lost_scan();
        false
    }

    /// Logs the totals of scans that have ended. The detector itself suppressed `more` of them.
    pub fn summaries(&mut self, summaries: Vec<Summary>, more: u64) {
        self.limits.summaries.suppress(more);
        for summary in summaries {
            if self.limits.summaries.allow(self.now) {
                self.events.emit(Event::ScanSummary(summary));
            }
        }
    }
}

/// A reporter and the host that it reports for.
pub struct Findings<'a> {
    pub reporter: &'a mut Reporter,
    pub host: &'a Host,
}

impl Observer for Findings<'_> {
    fn segments(&mut self, segments: &[Segment]) {
        for segment in segments {
            if segment.kind.opens_connection() {
                self.reporter.connection(segment, self.host.direction_of(segment));
            }
        }
    }

    fn scan(&mut self, scan: Arc<Scan>) -> bool {
        self.reporter.scan(scan)
    }
}
