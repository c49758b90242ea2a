//! Scans that go on: how many ports they try in all, until they fall silent or a minute is over.
//!
//! Pure. A scan is reported once, at the probe that makes it one; what came after is told once more, in
//! sum. The evidence of one scan is a bit for each port, and only so many scans are followed at a time.

use crate::types::scan::Summary;
use std::num::NonZeroUsize;
use std::time::Duration;

use ipnet::IpNet;
use lru::LruCache;

use crate::detect::key::Key;
use crate::types::clock::Moment;
use crate::types::network::overlap;
use crate::types::scan::Attempt;
use crate::types::segment::Port;

/// Scans followed at a time: 4 MiB of evidence. When there are more, the one longest silent is summed up
/// early.
const AT_ONCE: NonZeroUsize = NonZeroUsize::new(512).unwrap();

/// A scanner silent for this long has done what it wanted; nmap's slower templates, which pause for
/// longer, are summed up by the other limit.
const SILENCE: Duration = Duration::from_secs(10);

/// After this long a scan is summed up, though it goes on.
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

struct Episode {
    first: Moment,
    last: Moment,
    probes: u64,
    ports: PortSet,
}

impl Episode {
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

/// The scans that are followed.
pub struct OngoingScans {
    ongoing: LruCache<Key, Episode>,
    /// Summed up early.
    crowded_out: Vec<Summary>,
    /// Likewise, but only counted: there were too many at a time.
    untold: u64,
}

impl OngoingScans {
    pub fn new() -> Self {
        Self { ongoing: LruCache::new(AT_ONCE), crowded_out: Vec::new(), untold: 0 }
    }

    /// A scan was recognised by these attempts, after so many probes.
    pub fn begin(&mut self, key: Key, attempts: &[Attempt], probes: u64, now: Moment) {
        // The evidence of the scan that has to go serves the new one.
        let full = self.ongoing.len() == AT_ONCE.get() && !self.ongoing.contains(&key);
        let oldest = full.then(|| self.ongoing.pop_lru()).flatten();
        let mut ports = match oldest {
            None => PortSet(Box::new([0; 1024])),
            Some((old, episode)) => {
                if self.crowded_out.len() < AT_ONCE.get() {
                    let goes_on = now.since(episode.last) < SILENCE;
                    self.crowded_out.push(episode.summary(&old, goes_on));
                } else {
                    self.untold += 1;
                }
                let mut ports = episode.ports;
                ports.0.fill(0);
                ports
            }
        };
        for attempt in attempts {
            ports.insert(attempt.port);
        }
        let first = attempts.first().map_or(now, |attempt| attempt.moment);
        let episode = Episode { first, last: now, probes, ports };
        self.ongoing.put(key, episode);
    }

    /// A network was let in again: nothing more is said of it.
    pub fn forget(&mut self, network: IpNet) {
        let known: Vec<Key> = self.ongoing.iter().map(|(key, _)| *key).collect();
        for key in known.into_iter().filter(|key| overlap(&key.source, &network)) {
            self.ongoing.pop(&key);
        }
    }

    /// A source that was reported has tried another port, or one of its ports again.
    pub fn go_on(&mut self, key: &Key, port: Port, now: Moment) {
        if let Some(episode) = self.ongoing.get_mut(key) {
            episode.ports.insert(port);
            episode.probes += 1;
            episode.last = now;
        }
    }

    /// Sums up what has fallen silent, or has gone on for long enough; and says how many scans there were
    /// beyond, of which nothing is known any more.
    pub fn sum_up(&mut self, now: Moment) -> (Vec<Summary>, u64) {
        let over: Vec<Key> = self
            .ongoing
            .iter()
            .filter(|(_, e)| now.since(e.last) >= SILENCE || now.since(e.first) >= LONGEST)
            .map(|(key, _)| *key)
            .collect();
        let mut summaries = std::mem::take(&mut self.crowded_out);
        for key in over {
            if let Some(episode) = self.ongoing.pop(&key) {
                summaries.push(episode.summary(&key, now.since(episode.last) < SILENCE));
            }
        }
        (summaries, std::mem::take(&mut self.untold))
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
    fn a_scan_is_summed_up_when_it_falls_silent() {
        let mut episodes = OngoingScans::new();
        episodes.begin(key(1), &first_four(), 5, at(1));
        for port in (5..=1000).chain([1000, 65_535]) {
            episodes.go_on(&key(1), Port(port), at(3));
        }
        episodes.go_on(&key(2), Port(1), at(3));
        assert_eq!(episodes.sum_up(at(12)).0, []);
        let [summary] = episodes.sum_up(at(13)).0[..] else { panic!() };
        assert_eq!((summary.ports, summary.probes), (1001, 5 + 998));
        assert_eq!((summary.length, summary.goes_on), (Duration::from_secs(2), false));
        assert_eq!(episodes.sum_up(at(99)).0, [], "once");
    }

    #[test]
    fn a_scan_that_goes_on_is_summed_up_after_a_minute() {
        let mut episodes = OngoingScans::new();
        episodes.begin(key(1), &first_four(), 4, at(1));
        episodes.go_on(&key(1), Port(5), at(60));
        let [summary] = episodes.sum_up(at(61)).0[..] else { panic!() };
        assert!(summary.goes_on && summary.ports == 5);
    }

    #[test]
    fn a_crowd_of_scans_takes_no_more_room() {
        let mut episodes = OngoingScans::new();
        for number in 0..=u8::MAX {
            for third in 0..8 {
                let source = std::net::IpAddr::from([198, 51, third, number]).into();
                let key = Key { source, destination: None };
                episodes.begin(key, &first_four(), 4, at(1));
            }
        }
        assert_eq!(episodes.ongoing.len(), AT_ONCE.get());
        let (summaries, untold) = episodes.sum_up(at(99));
        assert_eq!(summaries.len(), 2 * AT_ONCE.get());
        assert_eq!(summaries.len() as u64 + untold, 256 * 8, "each is told or counted");
    }
}
