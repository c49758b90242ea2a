//! The detector of a preset.
//!
//! Pure. The same for a live service and a replay, so that both decide alike.

pub mod balanced;
pub mod classic;
pub mod decoys;
pub mod key;
pub mod ongoing;

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::config::{DetectionConfig, Preset};
use crate::detect::balanced::BalancedDetector;
use crate::detect::classic::sources::Lookup;
use crate::detect::classic::{ClassicDetector, SEEK_AT_ONCE};
use crate::types::clock::Moment;
use crate::types::host::{Host, Listening};
use crate::types::scan::{Scan, Summary};
use crate::types::segment::Direction;
use crate::types::segment::Segment;

/// A detector.
pub enum Detector {
    /// Counts what is tried.
    Classic(Box<ClassicDetector>),
    /// Counts what has failed.
    Balanced(Box<BalancedDetector>),
}

impl Detector {
    /// The detector for a rule.
    pub fn new(rule: DetectionConfig) -> Self {
        match rule.preset {
            Preset::Classic => Self::Classic(Box::new(ClassicDetector::new(rule))),
            Preset::Balanced => Self::Balanced(Box::new(BalancedDetector::new(rule))),
        }
    }

    /// Considers segments; `each` gets every probe, the way it goes and the scans known with it. For the
    /// classic rule all of them must be probes.
    pub fn consider(
        &mut self,
        segments: &[Segment],
        host: &Host,
        work: &mut Scratch,
        mut each: impl FnMut(&mut Self, &Segment, Direction, &mut Vec<Scan>),
    ) {
        let Scratch { sought, found } = work;
        for segments in segments.chunks(SEEK_AT_ONCE) {
            if let Self::Classic(detector) = self {
                detector.seek(segments, host, sought);
                for (at, probe) in segments.iter().enumerate() {
                    let Self::Classic(detector) = self else { return };
                    found.extend(detector.observe(probe, &sought[at], host));
                    each(self, probe, sought[at].direction, found);
                    found.clear();
                }
            } else {
                if let Self::Balanced(balanced) = self {
                    balanced.read_ahead(segments);
                }
                for segment in segments {
                    let Self::Balanced(balanced) = self else { return };
                    balanced.observe(segment, host, found);
                    if segment.kind.is_probe() || !found.is_empty() {
                        each(self, segment, ClassicDetector::direction(host, segment), found);
                        found.clear();
                    }
                }
            }
        }
    }

    /// It is `now`, and nothing more has been seen.
    pub fn pass_time(&mut self, now: Moment, host: &Host, found: &mut Vec<Scan>) {
        if let Self::Balanced(balanced) = self {
            balanced.pass_time(now, host, found);
        }
    }

    /// Goes by another rule from now on; false where what was remembered of sources had to be given up.
    pub fn reconfigure(&mut self, rule: DetectionConfig) -> bool {
        match (&mut *self, rule.preset) {
            (Self::Classic(detector), Preset::Classic) => detector.reconfigure(rule),
            (Self::Balanced(balanced), Preset::Balanced) => balanced.reconfigure(rule),
            _ => {
                *self = Self::new(rule);
                false
            }
        }
    }

    /// Whether it looks at what became of probes.
    pub fn wants_outcomes(&self) -> bool {
        matches!(self, Self::Balanced(_))
    }

    /// Reported scans that are over by `now`, in sum, and how many more there were.
    pub fn sum_up(&mut self, now: Moment) -> (Vec<Summary>, u64) {
        match self {
            Self::Classic(detector) => detector.sum_up(now),
            Self::Balanced(balanced) => balanced.sum_up(now),
        }
    }

    /// Forgets everything about the sources in a network: it has been let in again.
    pub fn forget(&mut self, network: IpNet) {
        match self {
            Self::Classic(detector) => detector.forget(network),
            Self::Balanced(balanced) => balanced.forget(network),
        }
    }

    /// A scan could not be handed on.
    pub fn not_delivered(&mut self, scan: &Scan) {
        match self {
            Self::Classic(detector) => detector.not_delivered(scan),
            Self::Balanced(balanced) => balanced.not_delivered(scan),
        }
    }

    /// Sources remembered at the moment.
    pub fn sources(&self) -> usize {
        match self {
            Self::Classic(detector) => detector.sources(),
            Self::Balanced(balanced) => balanced.sources(),
        }
    }

    /// Whether anything waits for time to pass.
    pub fn is_waiting(&self) -> bool {
        matches!(self, Self::Balanced(balanced) if balanced.is_waiting())
    }

    /// Whether answers are not seen, or not all.
    pub fn is_one_sided(&self) -> bool {
        matches!(self, Self::Balanced(balanced) if balanced.is_one_sided())
    }

    /// On these ports this host listens.
    pub fn listens_on(&mut self, ports: &Arc<Listening>) {
        if let Self::Balanced(balanced) = self {
            balanced.listens_on(Arc::clone(ports));
        }
    }

    /// Answers may have been lost: nobody who waits for one is given up.
    pub fn has_lost(&mut self) {
        if let Self::Balanced(balanced) = self {
            balanced.has_lost();
        }
    }

    /// The network an address is counted as.
    pub fn unit_of(&self, rule: &DetectionConfig, address: IpAddr, host: &Host) -> IpNet {
        classic::unit_of(rule, address, host)
    }

    /// Sources that had to go for others while what was known of them was of use.
    pub fn evicted(&self) -> u64 {
        match self {
            Self::Classic(detector) => detector.evicted(),
            Self::Balanced(balanced) => balanced.evicted(),
        }
    }
}

/// Room to work in, used over and over.
#[derive(Default)]
pub struct Scratch {
    sought: Vec<Lookup>,
    found: Vec<Scan>,
}
