//! Detection: a probe and a moment in, perhaps a scan out.
//!
//! Pure: it knows no clock, no thread and no kernel, so a live service and a replay of a capture
//! decide alike. Owns what is remembered of each source, in fixed memory: the least recently seen
//! source goes when a new one needs its place, and that is counted.

pub mod candidates;
pub mod index;
pub mod lru;
pub mod sources;
pub mod window;

#[cfg(test)]
mod tests;

use crate::detect::classic::sources::Lookup;
use crate::types::rule::Rule;
use crate::types::scan::Attempt;
use crate::types::scan::Scan;
use crate::types::scan::ScanKind;
use crate::types::scan::Summary;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::{DetectionConfig, Per};
use crate::detect::classic::sources::Sources;
use crate::detect::decoys::Decoys;
use crate::detect::key::Key;
use crate::detect::ongoing::OngoingScans;
use crate::types::clock::Moment;
use crate::types::host::Host;
use crate::types::segment::Direction;
use crate::types::segment::Segment;

/// How many sources to look for before the first probe is dealt with: about as many reads of memory as
/// a processor can wait for at a time.
pub const SEEK_AT_ONCE: usize = 64;

/// The detector.
pub struct ClassicDetector {
    rule: DetectionConfig,
    sources: Sources,
    episodes: OngoingScans,
    decoys: Decoys,
    latest: Moment,
}

impl ClassicDetector {
    /// A detector that has seen nothing.
    pub fn new(rule: DetectionConfig) -> Self {
        let sources = Sources::new(rule.max_sources.get(), rule.ports.get(), rule.window.get());
        Self {
            rule,
            sources,
            episodes: OngoingScans::new(),
            decoys: Decoys::new(),
            latest: Moment::default(),
        }
    }

    /// Goes by another rule from now on. What is remembered of sources is kept where it means the same
    /// under both; false where it had to be given up.
    pub fn reconfigure(&mut self, rule: DetectionConfig) -> bool {
        let same_sources =
            |rule: &DetectionConfig| (rule.preset, rule.per, rule.max_sources, rule.ipv6_prefix);
        let kept = same_sources(&rule) == same_sources(&self.rule);
        if kept {
            self.sources.follow_rule(rule.ports.get(), rule.window.get());
            self.rule = rule;
        } else {
            let evicted = self.sources.evicted();
            *self = Self { latest: self.latest, ..Self::new(rule) };
            self.sources.count_on_from(evicted);
        }
        kept
    }

    /// The rule it goes by.
    pub fn rule(&self) -> &DetectionConfig {
        &self.rule
    }

    /// Which way a probe goes. Everything sent by the host itself is outbound.
    #[inline]
    pub fn direction(host: &Host, probe: &Segment) -> Direction {
        if host.owns(probe.source) {
            Direction::Outbound
        } else if host.owns(probe.destination) {
            Direction::Inbound
        } else {
            Direction::Forwarded
        }
    }

    /// Looks for the sources of several probes, about [`SEEK_AT_ONCE`] of them, and says which way each
    /// probe goes.
    pub fn seek(&self, probes: &[Segment], host: &Host, found: &mut Vec<Lookup>) {
        found.clear();
        found.extend(probes.iter().map(|probe| {
            let direction = Self::direction(host, probe);
            match probe.source {
                IpAddr::V4(source) if self.rule.per == Per::Source => {
                    self.sources.sought_ipv4(direction, source)
                }
                _ => self.sources.sought(direction, &key_of(&self.rule, probe, host)),
            }
        }));
        self.sources.seek(found);
    }

    /// Considers a probe whose source has been looked for. A scan is reported when it is recognised and,
    /// while it goes on, once a window; what the host itself sends never is.
    pub fn observe(&mut self, probe: &Segment, sought: &Lookup, host: &Host) -> Option<Scan> {
        let outbound = sought.direction == Direction::Outbound;
        if outbound || !(probe.kind.opens_connection() || self.rule.stealth) {
            return None;
        }
        // A clock that runs backwards, as in a capture file put together from several, stands still
        // here instead.
        let now = self.latest.max(probe.moment);
        self.latest = now;

        let span = self.rule.window.get();
        let (rule, sources) = (&self.rule, &mut self.sources);
        let key = || key_of(rule, probe, host);
        let mut memory = sources.on_probe(sought, key, probe, now)?;
        // A source silent for a whole window begins anew.
        if now.is_past(memory.window().latest(), span) {
            *memory.stealthy() = false;
            memory.set_reported(None);
        }
        let probes = memory.count(1);
        *memory.stealthy() |= !probe.kind.opens_connection();
        let reported = memory.reported();
        if reported.is_some() {
            self.episodes.go_on(&key(), probe.port, now);
        }
        let tried = memory.window().record(probe.port, now, span);
        if tried.new_port && reported.is_none() {
            let latest = Attempt::at(probe.port, now);
            self.decoys.note(probe.source, latest, memory.window().attempts());
        }
        if !tried.too_many || reported.is_some_and(|reported| !now.is_past(reported, span)) {
            return None;
        }
        memory.set_reported(Some(now));
        let continued = reported.is_some();
        let attempts: Vec<Attempt> = memory.window().attempts().collect();
        let mut others = Vec::new();
        if !continued {
            others = self.decoys.around(&key().source, &attempts);
            self.episodes.begin(key(), &attempts, probes, now);
        }
        let kind = if *memory.stealthy() { ScanKind::Stealth } else { ScanKind::Vertical };
        Some(Scan {
            source: key().source,
            address: probe.source,
            destination: probe.destination,
            kind,
            attempts,
            moment: probe.moment,
            probes,
            rule: match self.rule.per {
                Per::Source => Rule::Ports,
                Per::Pair => Rule::PortsOfHost,
            },
            threshold: self.rule.ports.get(),
            span,
            continued,
            others,
        })
    }

    /// Reported scans that have fallen silent by `now`, or have gone on for a minute, in sum: each once. And
    /// how many more there were, of which too many came at a time.
    pub fn sum_up(&mut self, now: Moment) -> (Vec<Summary>, u64) {
        self.episodes.sum_up(now)
    }

    /// Forgets everything about the sources in a network: it has been let in again.
    pub fn forget(&mut self, network: IpNet) {
        self.sources.forget(network);
        self.episodes.forget(network);
    }

    /// A scan could not be handed on: its source's next probe makes it one again.
    pub fn not_delivered(&mut self, scan: &Scan) {
        let destination = (self.rule.per == Per::Pair).then_some(scan.destination);
        self.sources.not_reported(Key { source: scan.source, destination });
    }

    /// Sources remembered at the moment.
    pub fn sources(&self) -> usize {
        self.sources.len()
    }

    /// Sources that had to go for others, ever, while what was known of them was still of use.
    pub fn evicted(&self) -> u64 {
        self.sources.evicted()
    }

    /// The network an address is counted and blocked as. An IPv6 host can change its address within
    /// its network at will, so the network is the unit; but hosts on the links this one is itself
    /// connected to are neighbours with an address each.
    pub fn unit_of(&self, address: IpAddr, host: &Host) -> IpNet {
        unit_of(&self.rule, address, host)
    }
}

#[inline]
pub fn unit_of(rule: &DetectionConfig, address: IpAddr, host: &Host) -> IpNet {
    match address {
        IpAddr::V4(_) => IpNet::from(address),
        IpAddr::V6(_) => network_of(rule, address, host),
    }
}

fn network_of(rule: &DetectionConfig, address: IpAddr, host: &Host) -> IpNet {
    match IpNet::new(address, rule.ipv6_prefix.get()) {
        Ok(network) if !host.is_within(&network.trunc()) => network.trunc(),
        _ => IpNet::from(address),
    }
}

#[inline]
fn key_of(rule: &DetectionConfig, probe: &Segment, host: &Host) -> Key {
    let source = unit_of(rule, probe.source, host);
    Key { source, destination: (rule.per == Per::Pair).then_some(probe.destination) }
}
