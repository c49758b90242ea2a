//! Metrics: what is counted, and how it is served.
//!
//! Owns the counters, resolved once so that counting is one atomic addition. Reads nothing from
//! anybody: those who know something set it here.

pub mod http;
pub mod private_server;
pub mod reference;
pub mod relay;

use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::handles::events::{CountEvents, Reader};
use crate::handles::health::Status;
use crate::types::block::{BlockCause, UnblockCause};
use crate::types::capture::CaptureCounters;
use crate::types::event::Event;
use crate::types::network::Family;
use crate::types::scan::ScanKind;
use crate::types::segment::Direction;
use crate::types::state::State;

/// From 50 µs to a second: a block takes about a millisecond from the probe.
const LATENCY_BUCKETS: [f64; 13] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0,
];

/// Everything that is counted.
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
    /// Sources the detector remembers.
    pub sources: IntGauge,
    sources_evicted: IntCounter,
    /// From a probe's capture to the kernel's acknowledgement of the block.
    pub block_latency: Histogram,
    /// Scans the firewall had no room for.
    pub scans_lost: IntCounter,
    /// Events the journal had no room for.
    pub events_lost_on_journal: IntCounter,
    /// Events the bus had no room for, or no business with at this rate.
    pub events_lost_on_bus: IntCounter,
    capture: CaptureMetrics,
}

/// What the capture thread counts.
#[derive(Clone)]
pub struct CaptureMetrics {
    packets: IntCounter,
    dropped_by_kernel: IntCounter,
    dropped_by_interface: IntCounter,
    dropped_by_queue: IntCounter,
}

impl CaptureMetrics {
    /// Adds what has come since the last reading of the kernel's counters, which wrap at 32 bits.
    pub fn publish(&self, before: &CaptureCounters, after: &CaptureCounters, lost: u64) {
        let since = |before: u32, after: u32| u64::from(after.wrapping_sub(before));
        self.packets.inc_by(since(before.received, after.received));
        self.dropped_by_kernel.inc_by(since(before.dropped_by_kernel, after.dropped_by_kernel));
        let by_interface = since(before.dropped_by_interface, after.dropped_by_interface);
        self.dropped_by_interface.inc_by(by_interface);
        self.dropped_by_queue.inc_by(lost);
    }
}

impl Metrics {
    /// All counters at zero.
    pub fn new() -> Result<Self, prometheus::Error> {
        let r = Registry::new();
        let direction_family = ["direction", "family"];
        let connections =
            counters(&r, "connections_total", "New TCP connections seen.", &direction_family)?;
        let scans = counters(&r, "scans_total", "Port scans recognised.", &["kind"])?;
        let blocks = counters(&r, "blocks_total", "Blocks begun.", &["cause"])?;
        let unblocks = counters(&r, "unblocks_total", "Blocks ended.", &["cause"])?;
        let blocked = gauges(&r, "blocked", "Networks that ought to be blocked.", "family")?;
        let enforced = gauges(&r, "enforced", "Networks the kernel blocks in fact.", "family")?;
        let dropped_packets = counters(
            &r,
            "dropped_packets_total",
            "Packets of blocked sources the kernel has dropped.",
            &["family"],
        )?;
        let states = gauges(&r, "state", "1 for the state the service is in.", "state")?;
        let dropped = counters(
            &r,
            "capture_dropped_total",
            "Packets lost before the detector saw them.",
            &["where"],
        )?;
        let events_lost =
            counters(&r, "events_lost_total", "Events dropped, too many at a time.", &["where"])?;
        let build = gauges(&r, "build_info", "The running version.", "version")?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        register_process(&r)?;
        Ok(Self {
            new_connections: counter(
                &r,
                "new_connections",
                "New TCP connections seen, inbound and outbound.",
            )?,
            connections: Direction::ALL.map(|direction| {
                Family::ALL.map(|family| {
                    connections.with_label_values(&[direction.as_str(), family.as_str()])
                })
            }),
            scans: ScanKind::ALL.map(|kind| scans.with_label_values(&[kind.as_str()])),
            blocks: [BlockCause::Scan, BlockCause::Manual, BlockCause::Found]
                .map(|cause| blocks.with_label_values(&[cause.as_str()])),
            unblocks: UnblockCause::ALL.map(|cause| unblocks.with_label_values(&[cause.as_str()])),
            blocked: Family::ALL.map(|family| blocked.with_label_values(&[family.as_str()])),
            enforced: Family::ALL.map(|family| enforced.with_label_values(&[family.as_str()])),
            dropped_packets: Family::ALL
                .map(|family| dropped_packets.with_label_values(&[family.as_str()])),
            states: State::ALL.map(|state| states.with_label_values(&[state.as_str()])),
            sources: gauge(&r, "sources", "Sources the detector remembers.")?,
            sources_evicted: counter(
                &r,
                "sources_evicted_total",
                "Sources forgotten to make room for others.",
            )?,
            block_latency: latency(&r)?,
            scans_lost: counter(
                &r,
                "scans_lost_total",
                "Recognised scans the firewall had no room for.",
            )?,
            events_lost_on_journal: events_lost.with_label_values(&["journal"]),
            events_lost_on_bus: events_lost.with_label_values(&["bus"]),
            capture: CaptureMetrics {
                packets: counter(
                    &r,
                    "capture_packets_total",
                    "Packets the capture filter let through.",
                )?,
                dropped_by_kernel: dropped.with_label_values(&["kernel"]),
                dropped_by_interface: dropped.with_label_values(&["interface"]),
                dropped_by_queue: dropped.with_label_values(&["queue"]),
            },
            registry: r,
        })
    }

    /// Packets capture has lost, wherever.
    pub fn capture_lost(&self) -> u64 {
        let capture = &self.capture;
        [&capture.dropped_by_kernel, &capture.dropped_by_interface, &capture.dropped_by_queue]
            .map(IntCounter::get)
            .iter()
            .sum()
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

    /// Counts a scan.
    pub fn scan(&self, kind: ScanKind) {
        self.scans[kind as usize].inc();
    }

    /// Shows the service's condition, as it is at a scrape.
    fn show(&self, status: &Status) {
        for (gauge, one) in self.states.iter().zip(State::ALL) {
            gauge.set(i64::from(one == status.state));
        }
        for (family, figures) in Family::ALL.into_iter().zip(&status.families) {
            let family = family as usize;
            self.blocked[family].set(figures.blocked.into());
            self.enforced[family].set(figures.enforced.into());
            let dropped = &self.dropped_packets[family];
            dropped.inc_by(figures.dropped_packets.saturating_sub(dropped.get()));
        }
    }

    /// Shows how many sources were forgotten, ever.
    pub fn set_evicted(&self, ever: u64) {
        self.sources_evicted.inc_by(ever.saturating_sub(self.sources_evicted.get()));
    }

    /// The counters and gauges without labels added up: a name and a number each, in order.
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
            ("capture_dropped_kernel", self.capture.dropped_by_kernel.get()),
            ("capture_dropped_interface", self.capture.dropped_by_interface.get()),
            ("capture_dropped_queue", self.capture.dropped_by_queue.get()),
            ("scans_lost", self.scans_lost.get()),
            ("events_lost_journal", self.events_lost_on_journal.get()),
            ("events_lost_bus", self.events_lost_on_bus.get()),
        ]
    }

    /// Everything in Prometheus' text format.
    pub fn render(&self, status: &Status) -> Result<Vec<u8>, prometheus::Error> {
        self.show(status);
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

impl CountEvents for Metrics {
    fn count(&self, event: &Event) {
        match event {
            Event::Scan(scan) => self.scan(scan.kind),
            Event::Blocked { cause, .. } => self.blocks[*cause as usize].inc(),
            Event::Unblocked { cause, .. } => self.unblocks[*cause as usize].inc(),
            _ => {}
        }
    }

    fn count_lost(&self, reader: Reader) {
        match reader {
            Reader::Journal => self.events_lost_on_journal.inc(),
            Reader::Bus => self.events_lost_on_bus.inc(),
        }
    }
}

type Made<T> = Result<T, prometheus::Error>;

fn named(name: &str, help: &str) -> Opts {
    Opts::new(format!("tcptracker_{name}"), help)
}

fn counter(registry: &Registry, name: &str, help: &str) -> Made<IntCounter> {
    let counter = IntCounter::with_opts(named(name, help))?;
    registry.register(Box::new(counter.clone()))?;
    Ok(counter)
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> Made<IntCounterVec> {
    let counters = IntCounterVec::new(named(name, help), labels)?;
    registry.register(Box::new(counters.clone()))?;
    Ok(counters)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> Made<IntGauge> {
    let gauge = IntGauge::with_opts(named(name, help))?;
    registry.register(Box::new(gauge.clone()))?;
    Ok(gauge)
}

fn gauges(registry: &Registry, name: &str, help: &str, label: &str) -> Made<IntGaugeVec> {
    let gauges = IntGaugeVec::new(named(name, help), &[label])?;
    registry.register(Box::new(gauges.clone()))?;
    Ok(gauges)
}

fn latency(registry: &Registry) -> Made<Histogram> {
    let help =
        "From the capture of a scan's last probe to the kernel's acknowledgement of the block.";
    let opts = HistogramOpts::new("tcptracker_block_latency_seconds", help)
        .buckets(LATENCY_BUCKETS.to_vec());
    let histograms = HistogramVec::new(opts, &[])?;
    registry.register(Box::new(histograms.clone()))?;
    Ok(histograms.with_label_values::<&str>(&[]))
}

fn register_process(registry: &Registry) -> Made<()> {
    let process = prometheus::process_collector::ProcessCollector::for_self();
    registry.register(Box::new(process))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_those_of_the_contract() {
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
            r#"tcptracker_block_latency_seconds_bucket{le="0.001"} 0"#,
            r#"tcptracker_state{state="enforcing"} 1"#,
            r#"tcptracker_state{state="degraded"} 0"#,
            "process_resident_memory_bytes",
        ] {
            assert!(text.contains(line), "{line} is missing from:\n{text}");
        }
    }

    #[test]
    fn the_kernels_counters_may_wrap() {
        let metrics = Metrics::new().unwrap();
        let counters = |received| CaptureCounters { received, ..CaptureCounters::default() };
        metrics.capture().publish(&counters(u32::MAX - 1), &counters(3), 7);
        let summary: std::collections::BTreeMap<_, _> =
            metrics.summary(&Status::default()).into_iter().collect();
        assert_eq!(summary["capture_packets"], 5);
        assert_eq!(summary["capture_dropped_queue"], 7);
    }
}
