//! Trap ports: ports that no honest host tries, so that a single probe is a scan.
//!
//! Pure. Owns the ports of the configuration and the sources that were reported lately. Both engines ask here
//! first; what they count is their own.

use std::num::NonZeroUsize;
use std::time::Duration;

use ipnet::IpNet;
use lru::LruCache;

use crate::config::DetectionConfig;
use crate::detect::unit_of;
use crate::types::{Attempt, Host, Moment, PortSet, Rule, Scan, ScanKind, Segment, overlap};

/// How many reported sources are remembered. A source that is forgotten is reported again.
const REPORTED: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// A source that goes on is reported once in this time.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// The trap ports, if there are any.
pub struct Traps {
    ports: Option<PortSet>,
    reported: LruCache<IpNet, Moment>,
}

impl Traps {
    pub fn new(rule: &DetectionConfig) -> Self {
        let mut traps = Self { ports: None, reported: LruCache::new(REPORTED) };
        traps.reconfigure(rule);
        traps
    }

    /// Applies another configuration.
    pub fn reconfigure(&mut self, rule: &DetectionConfig) {
        let mut ports = PortSet::default();
        rule.trap_ports.iter().for_each(|port| ports.insert(*port));
        self.ports = (!rule.trap_ports.is_empty()).then_some(ports);
    }

    /// Returns a scan if a segment is a probe of a trap port whose source was not reported lately.
    #[inline]
    pub fn consider(
        &mut self,
        probe: &Segment,
        rule: &DetectionConfig,
        host: &Host,
    ) -> Option<Scan> {
        let ports = self.ports.as_ref()?;
        if !probe.kind.is_probe() || !ports.contains(probe.port) {
            return None;
        }
        let counts = rule.stealth || probe.kind.opens_connection();
        if !counts || host.owns(probe.source) || host.is_impossible_source(probe.source) {
            return None;
        }
        let source = unit_of(rule, probe.source, host);
        let before = self.reported.get(&source).copied();
        if before.is_some_and(|before| !probe.moment.is_past(before, AGAIN_AFTER)) {
            return None;
        }
        self.reported.put(source, probe.moment);
        Some(Scan {
            source,
            address: probe.source,
            destination: probe.destination,
            kind: ScanKind::Trap,
            attempts: vec![Attempt::at(probe.port, probe.moment)],
            moment: probe.moment,
            probes: 1,
            rule: Rule::TrapPort,
            threshold: 0,
            span: AGAIN_AFTER,
            tried: 1,
            continued: before.is_some(),
            decoy: false,
            others: Vec::new(),
        })
    }

    /// Forgets the sources in a network, because it was unblocked.
    pub fn forget(&mut self, network: IpNet) {
        let known: Vec<IpNet> = self.reported.iter().map(|(source, _)| *source).collect();
        for source in known.into_iter().filter(|source| overlap(source, &network)) {
            self.reported.pop(&source);
        }
    }

    /// A scan was not delivered: the next probe of its source reports it again.
    pub fn not_delivered(&mut self, scan: &Scan) {
        if scan.rule == Rule::TrapPort {
            self.reported.pop(&scan.source);
        }
    }
}
