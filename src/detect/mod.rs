//! The detector: segments and moments in, scans out.
//!
//! Pure: it knows no clock, no thread and no kernel, so the live service and a replay of a capture decide
//! alike. Owns the two engines, one per preset, behind the trait [`Detector`].

pub mod balanced;
pub mod classic;
pub mod decisions;
pub mod decoys;
pub mod effort;
pub mod index;
pub mod key;
pub mod memory;
pub mod ongoing;
pub mod slots;
pub mod table;
#[cfg(test)]
mod tests;
pub mod traps;

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use tracing::debug;

use crate::config::{DetectionConfig, Preset};
use crate::detect::balanced::BalancedDetector;
use crate::detect::classic::ClassicDetector;
use crate::types::{
    Host, Moment, Pending, PortSet, Scan, Segment, Summary, shares_network_with_ipv4, show_network,
};

/// How many segments an engine looks up at once: about as many reads of memory as a processor can wait for
/// at a time.
const BATCH: usize = 64;

/// Receives what a detector has considered and found, in order. An engine calls it once for many segments,
/// never once per segment.
pub trait Observer {
    /// The detector has considered these segments.
    fn segments(&mut self, segments: &[Segment]);

    /// The detector has found a scan, with the last of the segments so far or with the passage of time.
    /// Returns whether the scan was delivered.
    fn scan(&mut self, scan: Arc<Scan>) -> bool;
}

/// An engine.
pub trait Detector: Send {
    fn preset(&self) -> Preset;

    /// Considers segments in order.
    fn observe(&mut self, segments: &[Segment], host: &Host, observer: &mut dyn Observer);

    /// Takes note that it is `now` and that no further segment has arrived.
    fn pass_time(&mut self, _now: Moment, _host: &Host, _observer: &mut dyn Observer) {}

    /// Applies another rule of the same preset. Returns false if the detector had to forget its sources.
    fn reconfigure(&mut self, rule: DetectionConfig) -> bool;

    /// Summaries of the reported scans that are over by `now`, and the number of summaries that were dropped.
    fn sum_up(&mut self, now: Moment) -> (Vec<Summary>, u64);

    /// Forgets everything about the sources in a network, because it was unblocked.
    fn forget(&mut self, network: IpNet);

    /// Takes note that a scan was not delivered: the next probe of its source reports it again.
    fn not_delivered(&mut self, scan: &Scan);

    /// Explains how far a source is from a block: which of its failures count at `now`, and which do not. Takes
    /// a fraction of a millisecond.
    fn explain(&mut self, source: IpNet, now: Moment, host: &Host) -> Pending;

    /// How many sources are remembered.
    fn sources(&self) -> usize;

    /// How many sources were evicted while what was known of them could still lead to a scan.
    fn evicted(&self) -> u64;

    /// Whether a verdict waits for time to pass.
    fn is_waiting(&self) -> bool {
        false
    }

    /// Whether replies are missing from the capture, all or some of them.
    fn is_one_sided(&self) -> bool {
        false
    }

    /// Whether replies were ever missing from the capture.
    fn was_one_sided(&self) -> bool {
        false
    }

    /// Takes note of the ports on which this host listens.
    fn set_listening(&mut self, _ports: &Arc<PortSet>) {}

    /// Takes note that the capture has lost packets, perhaps replies: no pending probe counts as unanswered.
    fn packets_lost(&mut self) {}
}

/// The detector for a rule.
pub fn new(rule: DetectionConfig) -> Box<dyn Detector> {
    match rule.preset {
        Preset::Classic => Box::new(ClassicDetector::new(rule)),
        Preset::Balanced => Box::new(BalancedDetector::new(rule)),
    }
}

/// Applies another rule, with another engine if the preset differs. Returns false if the detector had to
/// forget its sources.
pub fn reconfigure(detector: &mut Box<dyn Detector>, rule: DetectionConfig) -> bool {
    if detector.preset() == rule.preset {
        return detector.reconfigure(rule);
    }
    *detector = new(rule);
    false
}

/// The network that an address is counted and blocked as. An IPv6 host can change its address within its
/// network at will, so the network is the unit. Hosts on the links of this host are neighbours, and each
/// address of a neighbour is a unit.
#[inline]
pub fn unit_of(rule: &DetectionConfig, address: IpAddr, host: &Host) -> IpNet {
    match address {
        IpAddr::V4(_) => IpNet::from(address),
        IpAddr::V6(_) => network_of(rule, address, host),
    }
}

fn network_of(rule: &DetectionConfig, address: IpAddr, host: &Host) -> IpNet {
    let IpAddr::V6(v6) = address else { return IpNet::from(address) };
    match IpNet::new(address, rule.ipv6_prefix.get()) {
        // Behind NAT64, each address is another IPv4 host.
        Ok(network) if !shares_network_with_ipv4(v6) && !host.is_within(&network.trunc()) => {
            network.trunc()
        }
        _ => IpNet::from(address),
    }
}

/// Logs a verdict with its evidence and passes it on.
fn report(detector: &mut impl Detector, scan: Scan, observer: &mut dyn Observer) {
    debug!(
        "verdict: {} scan by {} on {}: {}; {} probes",
        scan.kind.as_str(),
        show_network(&scan.source),
        scan.destination,
        scan.evidence(),
        scan.probes
    );
    let scan = Arc::new(scan);
    if !observer.scan(Arc::clone(&scan)) {
        detector.not_delivered(&scan);
    }
}
