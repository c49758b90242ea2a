//! Reported scans that are still running, and their summaries.
//!
//! Pure. A scan is reported once, at the probe that exceeds the rule. Everything after that probe appears in
//! one summary. Owns a bit for each port of a running scan, for a limited number of scans.

use std::num::NonZeroUsize;
use std::time::Duration;

use ipnet::IpNet;
use lru::LruCache;

use crate::detect::key::Key;
use crate::types::{Attempt, Moment, Port, Summary, overlap};

/// How many scans are followed at a time: 4 MiB of ports. If there are more, the scan that has been silent
/// for the longest time is summed up early.
const AT_ONCE: NonZeroUsize = NonZeroUsize::new(512).unwrap();

/// A scan that was silent for this long is over. nmap's slower templates pause for longer; [`LONGEST`]
/// applies to them.
const SILENCE: Duration = Duration::from_secs(10);

/// After this long a scan is summed up although it continues.
const LONGEST: Duration = Duration::from_secs(60);

/// A set of ports.
struct PortSet(Box<[u64; 1024]>);

impl PortSet {
    fn insert(&mut self, port: Port) {
        self.0[usize::from(port.0 >> 6)] |= 1 << (port.0 & 63);
    }

    fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }
}

struct Ongoing {
    first: Moment,
    last: Moment,
    probes: u64,
    ports: PortSet,
}

impl Ongoing {
    fn summary(&self, key: &Key, goes_on: bool) -> Summary {
        Summary {
            source: key.source,
            ports: self.ports.len(),
            probes: self.probes,
            length: self.last.since(self.first),
            goes_on,
        }
    }
}

/// The running scans.
pub struct OngoingScans {
    ongoing: LruCache<Key, Ongoing>,
    /// Scans that were summed up early.
    evicted: Vec<Summary>,
    /// How many summaries were dropped because too many scans were summed up early.
    dropped: u64,
}

impl OngoingScans {
    pub fn new() -> Self {
        Self { ongoing: LruCache::new(AT_ONCE), evicted: Vec::new(), dropped: 0 }
    }

    /// Adds a scan that was reported with these attempts.
    pub fn begin(&mut self, key: Key, attempts: &[Attempt], probes: u64, now: Moment) {
        // The new scan reuses the memory of the evicted one.
        let full = self.ongoing.len() == AT_ONCE.get() && !self.ongoing.contains(&key);
        let oldest = full.then(|| self.ongoing.pop_lru()).flatten();
        let mut ports = match oldest {
            None => PortSet(Box::new([0; 1024])),
            Some((old, scan)) => {
                if self.evicted.len() < AT_ONCE.get() {
                    let goes_on = now.since(scan.last) < SILENCE;
                    self.evicted.push(scan.summary(&old, goes_on));
                } else {
                    self.dropped += 1;
                }
                let mut ports = scan.ports;
                ports.0.fill(0);
                ports
            }
        };
        for attempt in attempts {
            ports.insert(attempt.port);
        }
        let first = attempts.first().map_or(now, |attempt| attempt.moment);
        self.ongoing.put(key, Ongoing { first, last: now, probes, ports });
    }

    /// Drops the scans of a network that was unblocked.
    pub fn forget(&mut self, network: IpNet) {
        let known: Vec<Key> = self.ongoing.iter().map(|(key, _)| *key).collect();
        for key in known.into_iter().filter(|key| overlap(&key.source, &network)) {
            self.ongoing.pop(&key);
        }
    }

    /// Adds a probe of a source that was reported.
    pub fn add_probe(&mut self, key: &Key, port: Port, now: Moment) {
        if let Some(scan) = self.ongoing.get_mut(key) {
            scan.ports.insert(port);
            scan.probes += 1;
            scan.last = now;
        }
    }

    /// Summaries of the scans that are silent or have run for long enough, and how many summaries were
    /// dropped.
    pub fn sum_up(&mut self, now: Moment) -> (Vec<Summary>, u64) {
        let over: Vec<Key> = self
            .ongoing
            .iter()
            .filter(|(_, scan)| now.since(scan.last) >= SILENCE || now.since(scan.first) >= LONGEST)
            .map(|(key, _)| *key)
            .collect();
        let mut summaries = std::mem::take(&mut self.evicted);
        for key in over {
            if let Some(scan) = self.ongoing.pop(&key) {
                summaries.push(scan.summary(&key, now.since(scan.last) < SILENCE));
            }
        }
        (summaries, std::mem::take(&mut self.dropped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::from_nanos(seconds * 1_000_000_000)
    }

    fn key(last: u8) -> Key {
        Key { source: std::net::IpAddr::from([192, 0, 2, last]).into(), destination: None }
    }

    fn first_four() -> [Attempt; 4] {
        [1, 2, 3, 4].map(|port| Attempt::at(Port(port), at(1)))
    }

    #[test]
    fn silent_scan_is_summed_up_once() {
        let mut scans = OngoingScans::new();
        scans.begin(key(1), &first_four(), 5, at(1));
        for port in (5..=1000).chain([1000, 65_535]) {
            scans.add_probe(&key(1), Port(port), at(3));
        }
        scans.add_probe(&key(2), Port(1), at(3));
        assert_eq!(scans.sum_up(at(12)).0, []);
        let [summary] = scans.sum_up(at(13)).0[..] else { panic!() };
        assert_eq!((summary.ports, summary.probes), (1001, 5 + 998));
        assert_eq!((summary.length, summary.goes_on), (Duration::from_secs(2), false));
        assert_eq!(scans.sum_up(at(99)).0, []);
    }

    #[test]
    fn running_scan_is_summed_up_after_a_minute() {
        let mut scans = OngoingScans::new();
        scans.begin(key(1), &first_four(), 4, at(1));
        scans.add_probe(&key(1), Port(5), at(60));
        let [summary] = scans.sum_up(at(61)).0[..] else { panic!() };
        assert!(summary.goes_on && summary.ports == 5);
    }

    #[test]
    fn many_scans_take_no_more_room() {
        let mut scans = OngoingScans::new();
        for number in 0..=u8::MAX {
            for third in 0..8 {
                let source = std::net::IpAddr::from([198, 51, third, number]).into();
                let key = Key { source, destination: None };
                scans.begin(key, &first_four(), 4, at(1));
            }
        }
        assert_eq!(scans.ongoing.len(), AT_ONCE.get());
        let (summaries, dropped) = scans.sum_up(at(99));
        assert_eq!(summaries.len(), 2 * AT_ONCE.get());
        assert_eq!(summaries.len() as u64 + dropped, 256 * 8, "each is listed or counted");
    }
}
