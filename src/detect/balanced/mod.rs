//! The balanced rules: only failed probes count.
//!
//! Pure: segments and moments in, scans out, in fixed memory. [`Handshakes`] follows each probe until its
//! outcome is known. [`Rules`] counts the outcome for the source, per host and per port. Every threshold is in
//! [`thresholds`], with its reason.

pub mod connections;
pub mod credit;
pub mod distributed;
pub mod early;
pub mod first_failure;
pub mod handshake;
pub mod hash;
pub mod hosts;
pub mod known;
pub mod ports;
pub mod record;
pub mod rules;
pub mod sweeps;
pub mod thresholds;
pub mod visibility;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use ipnet::IpNet;

use crate::config::{DetectionConfig, Preset};
use crate::detect::balanced::handshake::Handshakes;
use crate::detect::balanced::rules::Rules;
use crate::detect::{BATCH, Detector, Observer, report};
use crate::types::{Host, Moment, Pending, PortSet, Scan, Segment, SegmentKind, Summary};

/// The present moment, and the host as it is now.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub now: Moment,
    pub host: &'a Host,
}

/// The detector of the preset `balanced`.
pub struct BalancedDetector {
    handshakes: Handshakes,
    rules: Rules,
    latest: Moment,
}

impl BalancedDetector {
    pub fn new(rule: DetectionConfig) -> Self {
        Self { handshakes: Handshakes::new(), rules: Rules::new(rule), latest: Moment::default() }
    }

    fn consider(&mut self, segment: &Segment, host: &Host) {
        self.advance(segment.moment, host);
        let Self { handshakes, rules, .. } = self;
        let context = Context { now: self.latest, host };
        if segment.kind.is_probe() && context.host.is_impossible_source(segment.source) {
            return;
        }
        rules.trap(segment, host);
        match segment.kind {
            SegmentKind::Syn => handshakes.on_syn(segment, context, rules),
            SegmentKind::Fin | SegmentKind::Null | SegmentKind::Xmas | SegmentKind::Fragment => {
                rules.stealth_probe(segment, context);
            }
            SegmentKind::SynAck => handshakes.on_syn_ack(segment, context, rules),
            SegmentKind::Reset | SegmentKind::ResetAck => {
                handshakes.on_reset(segment, context, rules);
            }
            SegmentKind::FinAck => handshakes.on_fin(segment, context, rules),
            SegmentKind::Unreachable => handshakes.on_unreachable(segment, context, rules),
        }
    }

    /// Handles everything that is due by `now`, each at its own time: the next segment may arrive much later.
    fn advance(&mut self, now: Moment, host: &Host) {
        loop {
            let check = self.rules.next_check().filter(|due| *due <= now);
            if let Some(timeout) = self.handshakes.next_timeout(check.unwrap_or(now)) {
                self.latest = self.latest.max(timeout.at);
                let context = Context { now: self.latest, host };
                self.handshakes.on_timeout(&timeout, context, &mut self.rules);
            } else if let Some(due) = check {
                self.latest = self.latest.max(due);
                self.rules.run_check(Context { now: self.latest, host });
            } else {
                break;
            }
        }
        // A clock that runs backwards, as in a capture file that was merged from several, stands still here.
        self.latest = self.latest.max(now);
    }

    fn report_all(&mut self, observer: &mut dyn Observer) {
        for scan in self.rules.take_scans() {
            report(self, scan, observer);
        }
    }
}

impl Detector for BalancedDetector {
    fn preset(&self) -> Preset {
        Preset::Balanced
    }

    fn observe(&mut self, segments: &[Segment], host: &Host, observer: &mut dyn Observer) {
        for batch in segments.chunks(BATCH) {
            self.handshakes.read_ahead(batch, &self.rules);
            let mut passed = 0;
            for (at, segment) in batch.iter().enumerate() {
                self.consider(segment, host);
                if self.rules.has_scans() {
                    observer.segments(&batch[passed..=at]);
                    passed = at + 1;
                    self.report_all(observer);
                }
            }
            observer.segments(&batch[passed..]);
        }
    }

    fn pass_time(&mut self, now: Moment, host: &Host, observer: &mut dyn Observer) {
        self.advance(now, host);
        self.report_all(observer);
    }

    fn reconfigure(&mut self, rule: DetectionConfig) -> bool {
        let kept = self.rules.reconfigure(rule);
        if !kept {
            self.handshakes = Handshakes::new();
        }
        kept
    }

    fn sum_up(&mut self, now: Moment) -> (Vec<Summary>, u64) {
        self.rules.sum_up(now)
    }

    fn forget(&mut self, network: IpNet) {
        self.rules.forget(network);
    }

    fn not_delivered(&mut self, scan: &Scan) {
        self.rules.not_delivered(scan);
    }

    fn explain(&mut self, source: IpNet, now: Moment, host: &Host) -> Pending {
        self.rules.explain(source, Context { now: now.max(self.latest), host })
    }

    fn sources(&self) -> usize {
        self.rules.sources()
    }

    fn evicted(&self) -> u64 {
        self.rules.evicted()
    }

    fn is_waiting(&self) -> bool {
        self.handshakes.is_waiting() || self.rules.next_check().is_some()
    }

    fn is_one_sided(&self) -> bool {
        self.handshakes.visibility().is_one_sided()
    }

    fn was_one_sided(&self) -> bool {
        self.handshakes.visibility().was_one_sided()
    }

    fn set_listening(&mut self, ports: &Arc<PortSet>) {
        self.rules.set_listening(Arc::clone(ports), self.latest);
    }

    fn packets_lost(&mut self) {
        self.handshakes.packets_lost();
    }
}
