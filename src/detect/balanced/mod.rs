//! BalancedDetector detection: only what failed counts.
//!
//! Pure, as the classic rule: segments and moments in, scans out, in fixed memory. A probe is followed
//! until it is known what became of it; a failure is held against its source, per host and per port.
//! Every number stands in [`numbers`], with its reason.

pub mod connections;
pub mod credit;
pub mod distributed;
pub mod first_failure;
pub mod handshake;
pub mod hash;
pub mod hosts;
pub mod open_ports;
pub mod ports;
pub mod rules;
pub mod table;
pub mod thresholds;
pub mod visibility;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::config::{DetectionConfig, Per};
use crate::detect::balanced::connections::{Due, Flow, Pending};
use crate::detect::balanced::credit::Credits;
use crate::detect::balanced::distributed::Crowds;
use crate::detect::balanced::first_failure::FirstFailures;
use crate::detect::balanced::hash::Hashes;
use crate::detect::balanced::hosts::RecentHosts;
use crate::detect::balanced::open_ports::{OwnPorts, RecentlySeen};
use crate::detect::balanced::rules::{Record, SweepKey, Tried};
use crate::detect::balanced::table::Table;
use crate::detect::balanced::thresholds::{FOLLOWED, SOUNDINGS};
use crate::detect::balanced::visibility::Sight;
use crate::detect::classic::sources::Lookup;
use crate::detect::classic::{ClassicDetector, unit_of};
use crate::detect::decoys::Decoys;
use crate::detect::key::Key;
use crate::detect::ongoing::OngoingScans;
use crate::types::clock::Moment;
use crate::types::host::{Host, Listening};
use crate::types::network::overlap;
use crate::types::scan::Scan;
use crate::types::scan::Summary;
use crate::types::segment::{Outcome, Port, Segment, SegmentKind};

/// Sources that sweep, and sources of stray segments, for each that fails on several ports: there are
/// fewer of them.
const SHARE_OF_OTHERS: usize = 16;

/// The detector of the balanced rules.
pub struct BalancedDetector {
    rule: DetectionConfig,
    pending: Pending,
    first_ports: FirstFailures,
    records: Table<Key, Record>,
    credits: Credits,
    /// Failures that were forgiven.
    forgiven: RecentlySeen,
    /// Who seems to have sounded out ports, and when it is time to see whether that was all.
    soundings: VecDeque<(Moment, Flow)>,
    first_hosts: FirstFailures,
    sweeps: Table<SweepKey, RecentHosts>,
    strays: Table<Key, Record>,
    crowds: Crowds,
    sight: Sight,
    /// Ports on which somebody has answered.
    open: RecentlySeen,
    own: OwnPorts,
    /// Somebody has tried to reach another host than this one.
    sees_others: bool,
    /// What is gone back to where answers are not seen.
    classic: ClassicDetector,
    sought: Vec<Lookup>,
    episodes: OngoingScans,
    decoys: Decoys,
    hashes: Hashes,
    latest: Moment,
    evicted: u64,
}

impl BalancedDetector {
    /// A detector that has seen nothing.
    pub fn new(rule: DetectionConfig) -> Self {
        let sources = rule.max_sources.get();
        Self {
            pending: Pending::new(FOLLOWED),
            first_ports: FirstFailures::new(sources * 2),
            records: Table::new(sources),
            credits: Credits::new(),
            forgiven: RecentlySeen::new(),
            soundings: VecDeque::with_capacity(SOUNDINGS),
            first_hosts: FirstFailures::new(sources),
            sweeps: Table::new(sources / SHARE_OF_OTHERS),
            strays: Table::new(sources / SHARE_OF_OTHERS),
            crowds: Crowds::new(),
            sight: Sight::new(),
            open: RecentlySeen::new(),
            own: OwnPorts::default(),
            sees_others: false,
            classic: ClassicDetector::new(per_host(&rule)),
            sought: Vec::with_capacity(1),
            episodes: OngoingScans::new(),
            decoys: Decoys::new(),
            hashes: Hashes::new(),
            latest: Moment::default(),
            evicted: 0,
            rule,
        }
    }

    /// Goes by another configuration; false where what is remembered had to be given up.
    pub fn reconfigure(&mut self, rule: DetectionConfig) -> bool {
        let same_sources = |rule: &DetectionConfig| (rule.max_sources, rule.ipv6_prefix);
        let kept = same_sources(&rule) == same_sources(&self.rule);
        if kept {
            self.classic.reconfigure(per_host(&rule));
            self.rule = rule;
        } else {
            let own = std::mem::take(&mut self.own);
            *self = Self { latest: self.latest, own, ..Self::new(rule) };
        }
        kept
    }

    /// Reads what these segments, and what is due meanwhile, will ask of memory: all at once, instead of one
    /// after the other, is most of what a flood costs.
    pub fn read_ahead(&self, segments: &[Segment]) {
        let mut read = 0;
        for segment in segments {
            read ^= self.pending.read(self.hashes.of_flow(&Flow::from_client(segment)));
        }
        for begun in self.pending.soon_due(segments.len()) {
            read ^= self.first_ports.read(begun.pair);
        }
        std::hint::black_box(read);
    }

    /// Considers a segment. Scans it makes known are added to `found`: of its own source, or of one that
    /// has waited for an answer in vain.
    pub fn observe(&mut self, segment: &Segment, host: &Host, found: &mut Vec<Scan>) {
        self.pass_time(segment.moment, host, found);
        match segment.kind {
            SegmentKind::Syn => self.on_syn(segment, host, found),
            SegmentKind::Fin | SegmentKind::Null | SegmentKind::Xmas | SegmentKind::Fragment => {
                if self.rule.stealth && !host.owns(segment.source) {
                    // Whatever comes of it, nobody honest sends it.
                    let flow = Flow::from_client(segment);
                    let pair = self.pair_of(&flow, host);
                    let tried = Tried { flow, pair, moment: self.latest, crafted: true };
                    self.failed(tried, Outcome::Unknown, host, found);
                }
            }
            SegmentKind::SynAck => self.on_answer(segment, host, found),
            SegmentKind::Reset | SegmentKind::ResetAck => self.on_reset(segment, host, found),
            SegmentKind::FinAck => self.on_close(segment, host, found),
            SegmentKind::Unreachable => self.on_unreachable(segment, host, found),
        }
    }

    /// It is `now`, and nothing more has been seen.
    pub fn pass_time(&mut self, now: Moment, host: &Host, found: &mut Vec<Scan>) {
        loop {
            let sounding = self.soundings.front().map(|(due, _)| *due).filter(|due| *due <= now);
            // Each by its own time: the next segment may come a long while later.
            if let Some(Due { begun, at, answered }) = self.pending.due(sounding.unwrap_or(now)) {
                self.latest = self.latest.max(at);
                if answered {
                    self.settled(&begun, host, found);
                } else {
                    self.unanswered(&begun, host, found);
                }
            } else if let Some((at, flow)) = sounding.and_then(|_| self.soundings.pop_front()) {
                self.latest = self.latest.max(at);
                self.sounded(&flow, host, found);
            } else {
                break;
            }
        }
        // A clock that runs backwards, as in a capture file put together from several, stands still.
        self.latest = self.latest.max(now);
    }

    /// Whether anything waits for time to pass.
    pub fn is_waiting(&self) -> bool {
        self.pending.is_waiting() || !self.soundings.is_empty()
    }

    /// Whether answers are not seen, or not all, so that the classic rule holds for what seems
    /// unanswered.
    pub fn is_one_sided(&self) -> bool {
        self.sight.is_one_sided()
    }

    /// On these ports this host listens.
    pub fn listens_on(&mut self, ports: Arc<Listening>) {
        self.own.follow(ports, self.latest);
    }

    /// Capture has lost packets, answers perhaps: nobody who waits for one is given up.
    pub fn has_lost(&mut self) {
        self.pending.give_nobody_up();
    }

    /// Judges a probe by the classic rule, unless its port has answered while answers were seen: where a host
    /// has gone, all its clients go on asking.
    fn fall_back(&mut self, flow: &Flow, host: &Host, found: &mut Vec<Scan>) {
        if self.is_no_secret(flow, host) {
            return;
        }
        let probe = Segment {
            moment: self.latest,
            source: flow.client,
            destination: flow.server,
            source_port: flow.client_port,
            port: flow.port,
            kind: SegmentKind::Syn,
            sequence: 0,
            acknowledged: 0,
            crafted: false,
        };
        let mut sought = std::mem::take(&mut self.sought);
        self.classic.seek(std::slice::from_ref(&probe), host, &mut sought);
        if let Some(sought) = sought.first() {
            found.extend(self.classic.observe(&probe, sought, host));
        }
        self.sought = sought;
    }

    /// Reported scans that have fallen silent by `now`, or have gone on for a minute, in sum.
    pub fn sum_up(&mut self, now: Moment) -> (Vec<Summary>, u64) {
        let (mut summaries, untold) = self.episodes.sum_up(now);
        let (of_classic, more) = self.classic.sum_up(now);
        summaries.extend(of_classic);
        (summaries, untold + more)
    }

    /// Forgets everything about the sources in a network: it has been let in again.
    pub fn forget(&mut self, network: IpNet) {
        let within = |source: &IpNet| overlap(source, &network);
        self.records.remove_where(|key| within(&key.source));
        self.strays.remove_where(|key| within(&key.source));
        self.sweeps.remove_where(|key| within(&key.source));
        self.episodes.forget(network);
        self.classic.forget(network);
    }

    /// A scan could not be handed on: its source's next failure makes it one again.
    pub fn not_delivered(&mut self, scan: &Scan) {
        let key = Key { source: scan.source, destination: Some(scan.destination) };
        let hash = self.hashes.of_pair(&scan.source, scan.destination);
        let records = [self.records.look(hash, &key), self.strays.look(hash, &key)];
        for record in records.into_iter().flatten() {
            record.reported = None;
        }
        let port = scan.attempts.first().map_or(Port(0), |attempt| attempt.port);
        let hash = self.hashes.of_sweep(&scan.source, port);
        if let Some(sweep) = self.sweeps.look(hash, &SweepKey { source: scan.source, port }) {
            sweep.reported = None;
        }
        self.classic.not_delivered(scan);
    }

    /// Sources remembered at the moment.
    pub fn sources(&self) -> usize {
        self.records.len() + self.classic.sources()
    }

    /// Sources, and connections, that had to go for others while what was known of them was of use.
    pub fn evicted(&self) -> u64 {
        self.evicted + self.pending.evicted() + self.classic.evicted()
    }

    /// The network an address is counted and blocked as.
    pub fn unit_of(&self, address: IpAddr, host: &Host) -> IpNet {
        unit_of(&self.rule, address, host)
    }
}

/// The classic rule, counting the ports of each host for itself, as the balanced ones do: nobody is to be
/// taken for a scanner who uses many servers.
fn per_host(rule: &DetectionConfig) -> DetectionConfig {
    DetectionConfig { per: Per::Pair, ..rule.clone() }
}
