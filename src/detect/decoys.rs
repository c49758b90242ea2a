//! Decoys: sources that try the same first ports at the same time, as `nmap -D` forges them around the
//! real one.
//!
//! Pure. Remembers the latest probes of sources on their way to a scan, in a ring of fixed size: so the
//! first of a group to be recognised is known to be one of several, though the others lack a port.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::types::clock::Moment;
use crate::types::scan::Attempt;
use crate::types::segment::Port;

/// As close together as probes for one port have to be. nmap sends those of all decoys at once.
const TOGETHER: Duration = Duration::from_secs(2);

/// Ports that have to be the same, in case the rule allows so many.
const SAME_PORTS: usize = 3;

/// Probes remembered: three of each of 85 sources, in 8 KiB.
const REMEMBERED: usize = 256;

/// Others named at most for a scan.
pub const NAMED: usize = 16;

#[derive(Clone, Copy, Debug)]
struct Note {
    source: IpAddr,
    port: Port,
    moment: Moment,
}

/// The latest probes of sources that have tried several ports and are not reported yet.
pub struct Decoys {
    ring: Vec<Note>,
    next: usize,
}

impl Decoys {
    pub fn new() -> Self {
        Self { ring: Vec::with_capacity(REMEMBERED), next: 0 }
    }

    /// A source has tried several ports, the latest just now.
    pub fn note(
        &mut self,
        source: IpAddr,
        latest: Attempt,
        mut attempts: impl Iterator<Item = Attempt>,
    ) {
        // With the second port the first is of interest, too.
        if let (Some(first), Some(_), None) = (attempts.next(), attempts.next(), attempts.next()) {
            self.save_changes(source, first);
        }
        self.save_changes(source, latest);
    }

    /// Others that tried the first of these ports when this source did; some of them, if there are many.
    pub fn around(&self, source: &IpNet, attempts: &[Attempt]) -> Vec<IpAddr> {
        // Not the last, which makes it a scan: the others may be about to try it.
        let earlier = attempts.split_last().map_or(&[][..], |(_, earlier)| earlier);
        let mut ports = earlier.iter().take(SAME_PORTS);
        let Some(first) = ports.next() else { return Vec::new() };
        let mut others = Vec::new();
        for other in self.sources_with(first) {
            let known = source.contains(&other) || others.contains(&other);
            if !known && ports.clone().all(|port| self.sources_with(port).any(|who| who == other)) {
                others.push(other);
                if others.len() == NAMED {
                    break;
                }
            }
        }
        others
    }

    /// Who tried this port at this time.
    fn sources_with(&self, attempt: &Attempt) -> impl Iterator<Item = IpAddr> {
        let Attempt { port, moment, .. } = *attempt;
        let same = move |note: &&Note| {
            note.port == port
                && !note.moment.is_past(moment, TOGETHER)
                && !moment.is_past(note.moment, TOGETHER)
        };
        self.ring.iter().filter(same).map(|note| note.source)
    }

    fn save_changes(&mut self, source: IpAddr, Attempt { port, moment, .. }: Attempt) {
        let note = Note { source, port, moment };
        if self.ring.len() < REMEMBERED {
            self.ring.push(note);
        } else {
            self.ring[self.next] = note;
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

    /// These sources try these ports, one after the other, with a pause after each port.
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
    fn the_first_to_be_recognised_knows_the_others() {
        let decoys = tried(&[1, 2, 3], &[22, 80, 443], 100);
        assert_eq!(around(&decoys, 1, &[22, 80, 443, 25], 100), [address(2), address(3)]);
    }

    #[test]
    fn slow_scans_have_decoys_as_well() {
        let decoys = tried(&[1, 2], &[22, 80, 443], 15_000);
        assert_eq!(around(&decoys, 1, &[22, 80, 443, 25], 15_000), [address(2)]);
    }

    #[test]
    fn other_ports_or_other_times_make_no_decoys() {
        let decoys = tried(&[1, 2, 3], &[22, 80, 443], 100);
        assert_eq!(around(&decoys, 9, &[22, 81, 443, 25], 100), Vec::<IpAddr>::new());
        let later = [22, 80, 443, 25].map(|port| attempt(port, 2_200));
        assert_eq!(decoys.around(&address(9).into(), &later), Vec::<IpAddr>::new());
        let network = "198.51.100.0/24".parse().unwrap();
        let together = [22, 80, 443, 25].map(|port| attempt(port, 100));
        assert_eq!(decoys.around(&network, &together), Vec::<IpAddr>::new(), "itself");
    }

    #[test]
    fn a_source_with_fewer_ports_or_others_is_none() {
        let mut decoys = tried(&[1], &[22, 80, 443], 0);
        note(&mut decoys, 2, [attempt(22, 0), attempt(80, 0)].into_iter());
        for _ in 0..3 {
            // The same port over and over is one.
            note(&mut decoys, 2, [attempt(22, 0), attempt(80, 0)].into_iter());
        }
        assert_eq!(around(&decoys, 1, &[22, 80, 443, 25], 0), Vec::<IpAddr>::new());
    }

    #[test]
    fn a_crowd_takes_no_more_room_and_not_all_are_named() {
        let everybody: Vec<u8> = (0..=u8::MAX).collect();
        let decoys = tried(&everybody, &[22, 80, 443], 0);
        assert_eq!(decoys.ring.len(), REMEMBERED);
        let some: Vec<u8> = (0..40).collect();
        let decoys = tried(&some, &[22, 80, 443], 0);
        assert_eq!(around(&decoys, 1, &[22, 80, 443, 25], 0).len(), NAMED);
    }

    proptest! {
        /// Whatever comes, nobody is named who has not tried the same ports at the same time.
        #[test]
        fn nobody_is_named_for_nothing(
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
                        prop_assert!(all.iter().any(|(who, other_try)| *who == other
                            && other_try.port == wanted.port
                            && wanted.moment.as_nanos().abs_diff(other_try.moment.as_nanos())
                                < 2_000_000_000));
                    }
                }
            }
        }
    }
}
