//! Decoys: sources that try the same first ports at the same time, as `nmap -D` forges them around the
//! real scanner.
//!
//! Pure. Owns the latest probes of sources that have tried several ports, in a ring of fixed size. Thus the
//! first source of a group to be reported is known to be one of several, although the others have tried one
//! port fewer.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::types::{Attempt, DECOYS_NAMED, Moment, Port};

/// How close together the probes for one port must be. nmap sends those of all decoys at once.
const TOGETHER: Duration = Duration::from_secs(2);

/// How many ports must be the same, if the rule allows that many.
const SAME_PORTS: usize = 3;

/// How many probes are remembered: three of each of 85 sources, in 8 KiB.
const REMEMBERED: usize = 256;

#[derive(Clone, Copy, Debug)]
struct Probe {
    source: IpAddr,
    port: Port,
    moment: Moment,
}

/// The latest probes of sources that have tried several ports and are not reported yet.
pub struct Decoys {
    ring: Vec<Probe>,
    next: usize,
}

impl Decoys {
    pub fn new() -> Self {
        Self { ring: Vec::with_capacity(REMEMBERED), next: 0 }
    }

    /// Takes note of a source that has tried several ports, the latest just now.
    pub fn note(
        &mut self,
        source: IpAddr,
        latest: Attempt,
        mut attempts: impl Iterator<Item = Attempt>,
    ) {
        // The first port becomes interesting with the second one.
        if let (Some(first), Some(_), None) = (attempts.next(), attempts.next(), attempts.next()) {
            self.remember(source, first);
        }
        self.remember(source, latest);
    }

    /// Other sources that tried the first of these ports when this source did. At most [`DECOYS_NAMED`].
    pub fn around(&self, source: &IpNet, attempts: &[Attempt]) -> Vec<IpAddr> {
        // The last port made it a scan. The others may be about to try that port.
        let earlier = attempts.split_last().map_or(&[][..], |(_, earlier)| earlier);
        let mut ports = earlier.iter().take(SAME_PORTS);
        let Some(first) = ports.next() else { return Vec::new() };
        let mut others = Vec::new();
        for other in self.sources_with(first) {
            let known = source.contains(&other) || others.contains(&other);
            if !known
                && ports.clone().all(|port| self.sources_with(port).any(|source| source == other))
            {
                others.push(other);
                if others.len() == DECOYS_NAMED {
                    break;
                }
            }
        }
        others
    }

    /// The sources that tried this port at this time.
    fn sources_with(&self, attempt: &Attempt) -> impl Iterator<Item = IpAddr> {
        let Attempt { port, moment, .. } = *attempt;
        let same = move |probe: &&Probe| {
            probe.port == port
                && !probe.moment.is_past(moment, TOGETHER)
                && !moment.is_past(probe.moment, TOGETHER)
        };
        self.ring.iter().filter(same).map(|probe| probe.source)
    }

    fn remember(&mut self, source: IpAddr, Attempt { port, moment, .. }: Attempt) {
        let probe = Probe { source, port, moment };
        if self.ring.len() < REMEMBERED {
            self.ring.push(probe);
        } else {
            self.ring[self.next] = probe;
            self.next = (self.next + 1) % REMEMBERED;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attempt(port: u16, millis: u64) -> Attempt {
        Attempt::at(Port(port), Moment::from_nanos(millis * 1_000_000))
    }

    fn address(last: u8) -> IpAddr {
        [198, 51, 100, last].into()
    }

    fn note(decoys: &mut Decoys, source: u8, attempts: impl Iterator<Item = Attempt> + Clone) {
        decoys.note(address(source), attempts.clone().last().unwrap(), attempts);
    }

    /// These sources try these ports in turn, with a pause after each port.
    fn tried(sources: &[u8], ports: &[u16], pause: u64) -> Decoys {
        let mut decoys = Decoys::new();
        for upto in 2..=ports.len() {
            let attempts = (0..).zip(ports).take(upto).map(|(at, port)| attempt(*port, at * pause));
            for source in sources {
                note(&mut decoys, *source, attempts.clone());
            }
        }
        decoys
    }

    fn around(decoys: &Decoys, source: u8, ports: &[u16], pause: u64) -> Vec<IpAddr> {
        let attempts = (0..).zip(ports).map(|(at, port)| attempt(*port, at * pause));
        decoys.around(&address(source).into(), &attempts.collect::<Vec<_>>())
    }

    #[test]
    fn first_reported_source_names_the_others() {
        let decoys = tried(&[1, 2, 3], &[22, 80, 443], 100);
        assert_eq!(around(&decoys, 1, &[22, 80, 443, 25], 100), [address(2), address(3)]);
    }

    #[test]
    fn slow_scans_have_decoys_too() {
        let decoys = tried(&[1, 2], &[22, 80, 443], 15_000);
        assert_eq!(around(&decoys, 1, &[22, 80, 443, 25], 15_000), [address(2)]);
    }

    #[test]
    fn other_ports_or_times_make_no_decoys() {
        let decoys = tried(&[1, 2, 3], &[22, 80, 443], 100);
        assert_eq!(around(&decoys, 9, &[22, 81, 443, 25], 100), Vec::<IpAddr>::new());
        let later = [22, 80, 443, 25].map(|port| attempt(port, 2_200));
        assert_eq!(decoys.around(&address(9).into(), &later), Vec::<IpAddr>::new());
        let network = "198.51.100.0/24".parse().unwrap();
        let together = [22, 80, 443, 25].map(|port| attempt(port, 100));
        assert_eq!(
            decoys.around(&network, &together),
            Vec::<IpAddr>::new(),
            "a source is no decoy of itself"
        );
    }

    #[test]
    fn source_with_fewer_ports_is_no_decoy() {
        let mut decoys = tried(&[1], &[22, 80, 443], 0);
        note(&mut decoys, 2, [attempt(22, 0), attempt(80, 0)].into_iter());
        for _ in 0..3 {
            // A repeated port counts once.
            note(&mut decoys, 2, [attempt(22, 0), attempt(80, 0)].into_iter());
        }
        assert_eq!(around(&decoys, 1, &[22, 80, 443, 25], 0), Vec::<IpAddr>::new());
    }

    #[test]
    fn many_sources_take_no_more_room_and_not_all_are_named() {
        let all: Vec<u8> = (0..=u8::MAX).collect();
        let decoys = tried(&all, &[22, 80, 443], 0);
        assert_eq!(decoys.ring.len(), REMEMBERED);
        let some: Vec<u8> = (0..40).collect();
        let decoys = tried(&some, &[22, 80, 443], 0);
        assert_eq!(around(&decoys, 1, &[22, 80, 443, 25], 0).len(), DECOYS_NAMED);
    }

    proptest! {
        /// Only sources that have tried the same ports at the same time are named.
        #[test]
        fn only_sources_with_the_same_ports_are_named(
            steps in proptest::collection::vec((0..5u8, 0..5u16, 0..1_500u64), 1..60),
        ) {
            let mut decoys = Decoys::new();
            let mut tried = vec![Vec::new(); 5];
            let mut all: Vec<(IpAddr, Attempt)> = Vec::new();
            let mut now = 0;
            for (source, port, pause) in steps {
                now += pause;
                let latest = attempt(port, now);
                let own = &mut tried[usize::from(source)];
                own.retain(|earlier: &Attempt| earlier.port != latest.port);
                own.push(latest);
                all.push((address(source), latest));
                if own.len() > 1 {
                    note(&mut decoys, source, own.iter().copied());
                }
                for other in decoys.around(&address(source).into(), own) {
                    prop_assert!(other != address(source));
                    for wanted in own[..own.len() - 1].iter().take(SAME_PORTS) {
                        prop_assert!(all.iter().any(|(source, other_try)| *source == other
                            && other_try.port == wanted.port
                            && wanted.moment.as_nanos().abs_diff(other_try.moment.as_nanos())
                                < 2_000_000_000));
                    }
                }
            }
        }
    }
}
