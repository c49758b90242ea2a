//! Detection: a probe and a moment in, perhaps a scan out.
//!
//! Pure: it knows no clock, no thread and no kernel, so a live service and a replay of a capture
//! decide alike. Owns what is remembered of each source, in fixed memory: the least recently seen
//! source goes when a new one needs its place, and that is counted.

mod entry_limit;
mod episodes;
mod first_contact;
mod sources;
mod window;
mod worker;

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

pub use episodes::Summary;
pub use window::{Attempt, Window};
pub use worker::{Control, Worker};

use crate::clock::Moment;
use crate::config::{DetectionConfig, Per};
use crate::events::Direction;
use crate::host::Host;
use crate::probe::{Port, Probe};
use episodes::Episodes;
use sources::{Key, Sources};

/// What kind of scan it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanKind {
    /// Many ports by ordinary connection attempts.
    Vertical,
    /// Many ports, and at least one of them by a segment no honest client sends.
    Stealth,
}

impl ScanKind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Vertical, Self::Stealth];

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Vertical => "vertical",
            Self::Stealth => "stealth",
        }
    }
}

/// A source that tried more ports than the rule allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    /// Who: an address, or for IPv6 a network.
    pub source: IpNet,
    /// The address the last probe came from.
    pub address: IpAddr,
    /// The host the last probe was for.
    pub destination: IpAddr,
    /// What kind of scan.
    pub kind: ScanKind,
    /// The ports that make it one, in the order they were tried.
    pub attempts: Vec<Attempt>,
    /// When the last probe was captured.
    pub moment: Moment,
    /// The source's probes since it was first remembered, this one included.
    pub probes: u64,
    /// The threshold it exceeded.
    pub threshold: usize,
    /// Within this span.
    pub span: Duration,
    /// The same source was reported a window ago and has gone on since.
    pub continued: bool,
}

impl Scan {
    /// The ports alone.
    pub fn ports(&self) -> Vec<Port> {
        self.attempts.iter().map(|attempt| attempt.port).collect()
    }
}

/// The detector.
pub struct Detector {
    rule: DetectionConfig,
    sources: Sources,
    episodes: Episodes,
    latest: Moment,
}

impl Detector {
    /// A detector that has seen nothing.
    pub fn new(rule: DetectionConfig) -> Self {
        let sources = Sources::new(rule.max_sources.get(), rule.window.get());
        Self { rule, sources, episodes: Episodes::new(), latest: Moment::default() }
    }

    /// Which way a probe goes. Everything sent by the host itself is outbound.
    pub fn direction(host: &Host, probe: &Probe) -> Direction {
        if host.owns(probe.source) {
            Direction::Outbound
        } else if host.owns(probe.destination) {
            Direction::Inbound
        } else {
            Direction::Forwarded
        }
    }

    /// Considers a probe that is not outbound. A scan is reported when it is recognised and, while
    /// it goes on, once a window.
    pub fn observe(&mut self, probe: &Probe, host: &Host) -> Option<Scan> {
        if !probe.kind.opens_connection() && !self.rule.stealth {
            return None;
        }
        // A clock that runs backwards, as in a capture file put together from several, stands still
        // here instead.
        let now = self.latest.max(probe.moment);
        self.latest = now;

        let threshold = self.rule.ports.get();
        let span = self.rule.window.get();
        let source = self.unit_of(probe.source, host);
        let destination = (self.rule.per == Per::Pair).then_some(probe.destination);
        let key = Key { source, destination };
        let episodes = &mut self.episodes;
        self.sources.on_probe(key, probe, now, threshold, span, |memory| {
            // A source silent for a whole window begins anew.
            if memory.window.latest().is_some_and(|latest| now.is_past(latest, span)) {
                memory.stealthy = false;
                memory.reported = None;
            }
            memory.probes += 1;
            memory.stealthy |= !probe.kind.opens_connection();
            if memory.reported.is_some() {
                episodes.go_on(&key, probe.port, now);
            }
            if !memory.window.record(probe.port, now, threshold, span) {
                return None;
            }
            let continued = match memory.reported {
                Some(reported) if !now.is_past(reported, span) => return None,
                earlier => earlier.is_some(),
            };
            memory.reported = Some(now);
            let attempts: Vec<Attempt> = memory.window.attempts().collect();
            if !continued {
                episodes.begin(key, &attempts, memory.probes, now);
            }
            Some(Scan {
                source,
                address: probe.source,
                destination: probe.destination,
                kind: if memory.stealthy { ScanKind::Stealth } else { ScanKind::Vertical },
                attempts,
                moment: probe.moment,
                probes: memory.probes,
                threshold,
                span,
                continued,
            })
        })
    }

    /// Reported scans that have fallen silent by `now`, or have gone on for a minute, in sum: each once.
    pub fn sum_up(&mut self, now: Moment) -> Vec<Summary> {
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
        let single = IpNet::from(address);
        let IpAddr::V6(_) = address else { return single };
        match IpNet::new(address, self.rule.ipv6_prefix.get()) {
            Ok(network) if !host.is_within(&network.trunc()) => network.trunc(),
            _ => single,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::ProbeKind;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    fn probe(source: &str, port: u16, seconds: u64) -> Probe {
        Probe {
            moment: Moment::from_nanos(seconds * SECOND),
            source: source.parse().unwrap(),
            destination: if source.contains(':') { "fd00::2" } else { "10.0.0.2" }.parse().unwrap(),
            source_port: Port(40_000),
            port: Port(port),
            kind: ProbeKind::Syn,
        }
    }

    fn rule(edit: impl FnOnce(&mut DetectionConfig)) -> DetectionConfig {
        let mut rule = DetectionConfig::default();
        edit(&mut rule);
        rule
    }

    fn host() -> Host {
        Host::with_addresses(["10.0.0.2/24".parse().unwrap(), "fd00::2/64".parse().unwrap()])
    }

    fn scan(detector: &mut Detector, probes: impl IntoIterator<Item = Probe>) -> Vec<Scan> {
        let host = host();
        probes.into_iter().filter_map(|probe| detector.observe(&probe, &host)).collect()
    }

    #[test]
    fn a_scan_is_reported_at_the_fourth_port_and_once() {
        let mut detector = Detector::new(rule(|_| {}));
        let scans = scan(&mut detector, (1..=50).map(|port| probe("192.0.2.1", port, 1)));
        assert_eq!(scans.len(), 1);
        assert_eq!(scans[0].ports(), [Port(1), Port(2), Port(3), Port(4)]);
        assert_eq!((scans[0].probes, scans[0].kind), (4, ScanKind::Vertical));
        assert_eq!(scans[0].source, "192.0.2.1/32".parse().unwrap());
    }

    #[test]
    fn a_scan_that_goes_on_is_reported_once_a_window() {
        let mut detector = Detector::new(rule(|_| {}));
        let scans = scan(&mut detector, (1..=150).map(|n| probe("192.0.2.1", n, n.into())));
        let reports: Vec<_> =
            scans.iter().map(|s| (s.moment.as_nanos() / SECOND, s.continued)).collect();
        assert_eq!(reports, [(4, false), (64, true), (124, true)]);
    }

    #[test]
    fn a_source_silent_for_a_window_begins_anew() {
        let mut detector = Detector::new(rule(|_| {}));
        let first = (1..=4).map(|port| probe("192.0.2.1", port, 0));
        let second = (1..=4).map(|port| probe("192.0.2.1", port, 60));
        let scans = scan(&mut detector, first.chain(second));
        assert_eq!(scans.iter().map(|s| s.continued).collect::<Vec<_>>(), [false, false]);
    }

    #[test]
    fn sources_are_counted_apart() {
        let mut detector = Detector::new(rule(|_| {}));
        let probes = (1..=3)
            .flat_map(|port| [probe("192.0.2.1", port, 1), probe("192.0.2.2", port + 10, 1)]);
        assert_eq!(scan(&mut detector, probes), []);
    }

    #[test]
    fn per_pair_counts_destinations_apart() {
        let probes = |per| {
            let mut detector = Detector::new(rule(|r| r.per = per));
            let to = |last: u8, port| Probe {
                destination: [10, 0, 0, last].into(),
                ..probe("192.0.2.1", port, 1)
            };
            scan(&mut detector, [to(2, 1), to(2, 2), to(3, 3), to(3, 4)]).len()
        };
        assert_eq!(probes(Per::Source), 1);
        assert_eq!(probes(Per::Pair), 0);
    }

    #[test]
    fn stealth_probes_count_unless_switched_off() {
        for (stealth, kinds) in [(true, vec![ScanKind::Stealth]), (false, vec![])] {
            let mut detector = Detector::new(rule(|r| r.stealth = stealth));
            let fin =
                (1..=4).map(|port| Probe { kind: ProbeKind::Fin, ..probe("192.0.2.1", port, 1) });
            let found: Vec<_> = scan(&mut detector, fin).iter().map(|s| s.kind).collect();
            assert_eq!(found, kinds);
        }
    }

    #[test]
    fn an_ipv6_network_is_one_source_but_neighbours_are_not() {
        let mut detector = Detector::new(rule(|_| {}));
        let hopping = (1..=4).map(|n| probe(&format!("2001:db8::{n}"), n, 1));
        let scans = scan(&mut detector, hopping);
        assert_eq!(scans[0].source, "2001:db8::/64".parse().unwrap());

        let neighbours = (1..=4).map(|n| probe(&format!("fd00::1{n}"), n, 1));
        assert_eq!(scan(&mut detector, neighbours), []);
        let neighbour = (1..=4).map(|n| probe("fd00::99", n, 1));
        assert_eq!(scan(&mut detector, neighbour)[0].source, "fd00::99/128".parse().unwrap());
    }

    #[test]
    fn a_clock_that_runs_backwards_does_no_harm() {
        let mut detector = Detector::new(rule(|_| {}));
        let times = [100, 90, 80, 70];
        let probes = times.into_iter().zip(1..).map(|(t, port)| probe("192.0.2.1", port, t));
        assert_eq!(scan(&mut detector, probes).len(), 1);
    }

    #[test]
    fn memory_is_bounded_and_what_goes_is_counted() {
        let mut detector = Detector::new(rule(|r| r.max_sources = 1024.try_into().unwrap()));
        let flood = (0..5000u32).map(|n| Probe {
            source: std::net::Ipv4Addr::from(0x0b00_0000 + n).into(),
            ..probe("192.0.2.1", 80, 1)
        });
        assert_eq!(scan(&mut detector, flood), []);
        assert_eq!((detector.sources(), detector.evicted()), (3 * 1024, 5000 - 3 * 1024));
    }

    #[test]
    fn forgetting_lets_a_source_begin_anew() {
        let mut detector = Detector::new(rule(|_| {}));
        scan(&mut detector, (1..=4).map(|port| probe("192.0.2.1", port, 1)));
        detector.forget("192.0.2.1/32".parse().unwrap());
        assert_eq!(scan(&mut detector, [probe("192.0.2.1", 5, 2)]), []);
        assert_eq!(scan(&mut detector, (6..=8).map(|p| probe("192.0.2.1", p, 2))).len(), 1);
    }

    /// The rule as one would write it down, remembering every probe of every source.
    fn naive(probes: &[Probe], threshold: usize, span: Duration) -> Vec<(IpAddr, u64)> {
        let mut fired = Vec::new();
        for (at, probe) in probes.iter().enumerate() {
            let own = || probes[..=at].iter().filter(|earlier| earlier.source == probe.source);
            let recent = own().filter(|earlier| probe.moment.since(earlier.moment) < span);
            let ports: std::collections::BTreeSet<Port> =
                recent.map(|recent| recent.port).collect();
            let first = !fired.iter().any(|(source, _)| *source == probe.source);
            if ports.len() > threshold && first {
                fired.push((probe.source, own().count() as u64));
            }
        }
        fired
    }

    proptest! {
        /// Through both stages, for several sources at once: who fires, and at which of its probes.
        #[test]
        fn equals_the_naive_rule(
            threshold in 1..=64u64,
            seconds in 1..=3600u64,
            steps in proptest::collection::vec((0..6u8, 0..80u16, 0..3u64), 1..250),
        ) {
            let unit = seconds * SECOND / (2 * threshold);
            let mut now = 0;
            let probes: Vec<Probe> = steps
                .into_iter()
                .map(|(source, port, pause)| {
                    now += pause * unit;
                    let source = IpAddr::from([198, 51, 100, source]);
                    Probe { moment: Moment::from_nanos(now), source, ..probe("192.0.2.1", port, 0) }
                })
                .collect();
            let window = crate::config::Span::try_from(format!("{seconds}s")).unwrap();
            let mut detector = Detector::new(rule(|rule| {
                rule.ports = threshold.try_into().unwrap();
                rule.window = window.try_into().unwrap();
            }));
            let mut found: Vec<(IpAddr, u64)> = Vec::new();
            for scan in scan(&mut detector, probes.iter().copied()) {
                if !found.iter().any(|(source, _)| *source == scan.address) {
                    found.push((scan.address, scan.probes));
                }
            }
            prop_assert_eq!(found, naive(&probes, usize::try_from(threshold).unwrap(), window.get()));
        }
    }
}
