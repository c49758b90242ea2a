//! Metrics: the counters and gauges, and the HTTP server that shows them.
//!
//! Owns the counters, each resolved once, so that counting is one atomic addition. A sink: threads count
//! and set, and no value here may decide anything.

pub mod http;
pub mod private_server;
pub mod reference;
pub mod relay;

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Counter, Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

use crate::handles::{CountEvents, Reader};
use crate::types::{
    BlockCause, CaptureCounters, Direction, Event, Family, ScanKind, State, Status, UnblockCause,
};

/// From 50 µs to 1 s: a block takes about a millisecond from the probe.
const LATENCY_BUCKETS: [f64; 13] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0,
];

type Made<T> = Result<T, prometheus::Error>;

/// All counters and gauges.
pub struct Metrics {
    registry: Registry,
    new_connections: IntCounter,
    connections: [[IntCounter; 2]; 3],
    scans: [IntCounter; ScanKind::ALL.len()],
    blocks: [IntCounter; 3],
    unblocks: [IntCounter; 4],
    blocked: [IntGauge; 2],
    enforced: [IntGauge; 2],
    dropped_packets: [IntCounter; 2],
    states: [IntGauge; 3],
    sources: IntGauge,
    sources_evicted: IntCounter,
    block_latency: Histogram,
    scans_lost: IntCounter,
    /// In the order of [`Reader`].
    events_lost: [IntCounter; 2],
    capture: CaptureMetrics,
}

/// What the capture thread counts.
#[derive(Clone)]
pub struct CaptureMetrics {
    packets: IntCounter,
    /// In the kernel, in the interface, and in the queue to the detector.
    lost: [IntCounter; 3],
    /// Seconds in which no capture was open.
    gap: Counter,
}

impl CaptureMetrics {
    /// Adds what the kernel has counted, and what was lost in the queue, since the last call.
    pub fn publish(&self, new: CaptureCounters, lost: u64) {
        self.packets.inc_by(new.received.into());
        let [kernel, interface, queue] = &self.lost;
        kernel.inc_by(new.dropped_by_kernel.into());
        interface.inc_by(new.dropped_by_interface.into());
        queue.inc_by(lost);
    }

    /// Adds a time in which no capture was open.
    pub fn add_gap(&self, gap: Duration) {
        self.gap.inc_by(gap.as_secs_f64());
    }
}

impl Metrics {
    /// All counters at zero.
    pub fn new() -> Made<Self> {
        let r = Registry::new();
        let begun = ("cause", BlockCause::ALL.map(BlockCause::as_str));
        let ended = ("cause", UnblockCause::ALL.map(UnblockCause::as_str));
        let families = ("family", Family::ALL.map(Family::as_str));
        let kinds = ("kind", ScanKind::ALL.map(ScanKind::as_str));
        let states = ("state", State::ALL.map(State::as_str));
        let places = ("where", ["kernel", "interface", "queue"]);
        let readers = ("where", ["journal", "bus"]);
        let version = ("version", [env!("CARGO_PKG_VERSION")]);
        gauges(&r, named("build_info", "The running version."), version)?[0].set(1);
        r.register(Box::new(ProcessCollector::for_self()))?;
        let seen = named("connections_total", "New TCP connections seen.");
        let seen = register(&r, IntCounterVec::new(seen, &["direction", "family"])?)?;
        let sources = named("sources", "Sources that the detector remembers.");
        let evicted = named("sources_evicted_total", "Sources evicted to make room for others.");
        let lost_scans = named("scans_lost_total", "Scans for which the firewall had no room.");
        let lost_events =
            named("events_lost_total", "Events not emitted: too many at a time, or no bus.");
        let latency = named("block_latency_seconds", "From a probe to the block in the kernel.");
        let latency = HistogramOpts::from(latency).buckets(LATENCY_BUCKETS.to_vec());
        let dropped = named("dropped_packets_total", "Packets of blocked sources dropped.");
        let packets = named("capture_packets_total", "Packets that passed the capture filter.");
        let gap = named("capture_gap_seconds_total", "Time in which no capture was open.");
        let lost = named("capture_dropped_total", "Packets lost before the detector saw them.");
        Ok(Self {
            new_connections: counter(&r, named("new_connections", "New TCP connections seen."))?,
            connections: Direction::ALL.map(|direction| {
                families.1.map(|family| seen.with_label_values(&[direction.as_str(), family]))
            }),
            scans: counters(&r, named("scans_total", "Port scans detected."), kinds)?,
            blocks: counters(&r, named("blocks_total", "Blocks added."), begun)?,
            unblocks: counters(&r, named("unblocks_total", "Blocks ended."), ended)?,
            blocked: gauges(&r, named("blocked", "Networks to be blocked."), families)?,
            enforced: gauges(&r, named("enforced", "Networks the kernel blocks."), families)?,
            dropped_packets: counters(&r, dropped, families)?,
            states: gauges(&r, named("state", "1 for the current state."), states)?,
            sources: register(&r, IntGauge::with_opts(sources)?)?,
            sources_evicted: counter(&r, evicted)?,
            block_latency: register(&r, Histogram::with_opts(latency)?)?,
            scans_lost: counter(&r, lost_scans)?,
            events_lost: counters(&r, lost_events, readers)?,
            capture: CaptureMetrics {
                packets: counter(&r, packets)?,
                lost: counters(&r, lost, places)?,
                gap: register(&r, Counter::with_opts(gap)?)?,
            },
            registry: r,
        })
    }

    /// What the capture thread counts.
    pub fn capture(&self) -> CaptureMetrics {
        self.capture.clone()
    }

    /// Counts a new connection.
    pub fn new_connection(&self, direction: Direction, ipv4: bool) {
        self.new_connections.inc();
        self.connections[direction as usize][usize::from(!ipv4)].inc();
    }

    /// Counts a scan. Scans above `log.rate` are counted without an event.
    pub fn count_scan(&self, kind: ScanKind) {
        self.scans[kind as usize].inc();
    }

    /// Counts a scan for which the firewall queue had no room.
    pub fn count_lost_scan(&self) {
        self.scans_lost.inc();
    }

    /// Records the time from a probe's capture to the kernel's acknowledgement of the block.
    pub fn observe_block_latency(&self, latency: Duration) {
        self.block_latency.observe(latency.as_secs_f64());
    }

    /// Sets how many sources the detector remembers, and how many it has evicted since the start.
    pub fn set_sources(&self, remembered: usize, evicted: u64) {
        self.sources.set(i64::try_from(remembered).unwrap_or(i64::MAX));
        raise(&self.sources_evicted, evicted);
    }

    /// Shows the service's condition at the moment of a scrape.
    fn show(&self, status: &Status) {
        for (gauge, state) in self.states.iter().zip(State::ALL) {
            gauge.set(i64::from(state == status.state));
        }
        for (family, figures) in status.families.iter().enumerate() {
            self.blocked[family].set(figures.blocked.into());
            self.enforced[family].set(figures.enforced.into());
            raise(&self.dropped_packets[family], figures.dropped_packets);
        }
    }

    /// The counters and gauges, summed over their labels, by name.
    pub fn summary(&self, status: &Status) -> Vec<(&'static str, u64)> {
        self.show(status);
        let sum = |counters: &[IntCounter]| counters.iter().map(IntCounter::get).sum();
        let connections = |direction: Direction| sum(&self.connections[direction as usize]);
        let gauge = |gauge: &IntGauge| u64::try_from(gauge.get()).unwrap_or(0);
        vec![
            ("connections", self.new_connections.get()),
            ("connections_inbound", connections(Direction::Inbound)),
            ("connections_forwarded", connections(Direction::Forwarded)),
            ("connections_outbound", connections(Direction::Outbound)),
            ("scans", sum(&self.scans)),
            ("blocks", sum(&self.blocks)),
            ("unblocks", sum(&self.unblocks)),
            ("blocked", self.blocked.iter().map(gauge).sum()),
            ("enforced", self.enforced.iter().map(gauge).sum()),
            ("dropped_packets", sum(&self.dropped_packets)),
            ("sources", gauge(&self.sources)),
            ("sources_evicted", self.sources_evicted.get()),
            ("capture_packets", self.capture.packets.get()),
            ("capture_dropped_kernel", self.capture.lost[0].get()),
            ("capture_dropped_interface", self.capture.lost[1].get()),
            ("capture_dropped_queue", self.capture.lost[2].get()),
            ("scans_lost", self.scans_lost.get()),
            ("events_lost_journal", self.events_lost[Reader::Journal as usize].get()),
            ("events_lost_bus", self.events_lost[Reader::Bus as usize].get()),
        ]
    }

    /// All metrics in the text format of Prometheus.
    pub fn render(&self, status: &Status) -> Made<Vec<u8>> {
        self.show(status);
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

impl CountEvents for Metrics {
    fn count(&self, event: &Event) {
        match event {
            Event::Scan(scan) => self.count_scan(scan.kind),
            Event::Blocked { cause, .. } => self.blocks[*cause as usize].inc(),
            Event::Unblocked { cause, .. } => self.unblocks[*cause as usize].inc(),
            _ => {}
        }
    }

    fn count_lost(&self, reader: Reader) {
        self.events_lost[reader as usize].inc();
    }
}

/// Raises a counter to a total that another component counts.
fn raise(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

fn named(name: &str, help: &str) -> Opts {
    Opts::new(format!("tcptracker_{name}"), help)
}

fn register<T: Collector + Clone + 'static>(registry: &Registry, collector: T) -> Made<T> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

fn counter(registry: &Registry, opts: Opts) -> Made<IntCounter> {
    register(registry, IntCounter::with_opts(opts)?)
}

/// The name of a label and its values.
type Label<'a, const N: usize> = (&'a str, [&'a str; N]);

fn counters<const N: usize>(r: &Registry, opts: Opts, label: Label<N>) -> Made<[IntCounter; N]> {
    let counters = register(r, IntCounterVec::new(opts, &[label.0])?)?;
    Ok(label.1.map(|value| counters.with_label_values(&[value])))
}

fn gauges<const N: usize>(r: &Registry, opts: Opts, label: Label<N>) -> Made<[IntGauge; N]> {
    let gauges = register(r, IntGaugeVec::new(opts, &[label.0])?)?;
    Ok(label.1.map(|value| gauges.with_label_values(&[value])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metric_names_are_stable() {
        let metrics = Metrics::new().unwrap();
        metrics.new_connection(Direction::Outbound, false);
        let text = String::from_utf8(metrics.render(&Status::default()).unwrap()).unwrap();
        for line in [
            "tcptracker_new_connections 1",
            r#"tcptracker_connections_total{direction="outbound",family="ipv6"} 1"#,
            r#"tcptracker_connections_total{direction="inbound",family="ipv4"} 0"#,
            r#"tcptracker_scans_total{kind="vertical"} 0"#,
            r#"tcptracker_blocks_total{cause="scan"} 0"#,
            r#"tcptracker_unblocks_total{cause="expired"} 0"#,
            r#"tcptracker_blocked{family="ipv4"} 0"#,
            r#"tcptracker_enforced{family="ipv6"} 0"#,
            r#"tcptracker_dropped_packets_total{family="ipv4"} 0"#,
            "tcptracker_sources 0",
            "tcptracker_sources_evicted_total 0",
            "tcptracker_capture_packets_total 0",
            r#"tcptracker_capture_dropped_total{where="kernel"} 0"#,
            "tcptracker_capture_gap_seconds_total 0",
            r#"tcptracker_block_latency_seconds_bucket{le="0.001"} 0"#,
            r#"tcptracker_state{state="enforcing"} 1"#,
            r#"tcptracker_state{state="degraded"} 0"#,
            "process_resident_memory_bytes",
        ] {
            assert!(text.contains(line), "{line} is missing from:\n{text}");
        }
    }

    #[test]
    fn kernel_counters_may_wrap() {
        let metrics = Metrics::new().unwrap();
        let counters = |received| CaptureCounters { received, ..CaptureCounters::default() };
        metrics.capture().publish(counters(3).since(counters(u32::MAX - 1)), 7);
        let summary = metrics.summary(&Status::default());
        for expected in [("capture_packets", 5), ("capture_dropped_queue", 7)] {
            assert!(summary.contains(&expected), "{expected:?}");
        }
    }
}
