//! What is known of ports: that they have replied, and that a source has used them.
//!
//! Pure. Owns what was seen of replies and what this host reports of its own ports. A failure at such a port is
//! the fault of its service.

#![expect(
    clippy::cast_possible_truncation,
    reason = "hashes are cut to the bits that are needed, seconds are compared modulo their type"
)]

use std::ops::Range;
use std::sync::Arc;

use crate::detect::balanced::thresholds::{KNOWN_OPEN_FOR, USED_FOR};
use crate::types::{Moment, Port, PortSet};

/// How many hashes are remembered. 16 bytes each.
const SEEN: usize = 1 << 13;

/// How many ports are remembered that a source has used. 8 bytes each.
const USED: usize = 1 << 17;
/// How many of them share a set. The one whose last use is the oldest makes room.
const SET: usize = 4;

/// Hashes that were seen within the last hour, such as those of ports that were used. Each hash has one
/// place, and a later hash with the same place overwrites it.
pub struct RecentlySeen(Vec<(u64, Moment)>);

impl RecentlySeen {
    pub fn new() -> Self {
        Self(vec![(0, Moment::default()); SEEN])
    }

    pub fn note(&mut self, hash: u64, now: Moment) {
        self.0[place(hash)] = (hash | 1, now);
    }

    /// Whether a hash was seen recently.
    pub fn knows(&self, hash: u64, now: Moment) -> bool {
        let (known, moment) = self.0[place(hash)];
        known == hash | 1 && !now.is_past(moment, KNOWN_OPEN_FOR)
    }
}

fn place(hash: u64) -> usize {
    (hash >> 32) as usize & (SEEN - 1)
}

/// Ports that sources have used: complete connections, which no sender of forged segments has. Each is a tag and
/// the second of its last use.
pub struct UsedPorts(Vec<[u32; 2]>);

impl UsedPorts {
    pub fn new() -> Self {
        Self(vec![[0; 2]; USED])
    }

    /// Takes note that a source has used a port.
    pub fn note(&mut self, hash: u64, now: Moment) {
        let now = seconds(now);
        let set = self.set(hash);
        let age =
            |[tag, used]: &[u32; 2]| if *tag == 0 { u32::MAX } else { now.wrapping_sub(*used) };
        let known = set.iter().position(|[tag, _]| *tag == tag_of(hash));
        let oldest = || (0..SET).max_by_key(|at| age(&set[*at])).unwrap_or(0);
        let at = known.unwrap_or_else(oldest);
        set[at] = [tag_of(hash), now];
    }

    /// Whether a source has used a port within a day.
    pub fn knows(&self, hash: u64, now: Moment) -> bool {
        let is_recent = |used: u32| u64::from(seconds(now).wrapping_sub(used)) < USED_FOR.as_secs();
        self.0[places(hash)].iter().any(|[tag, used]| *tag == tag_of(hash) && is_recent(*used))
    }

    /// Whether a source has used a port within a day. If so, it stays known for another day.
    pub fn renew(&mut self, hash: u64, now: Moment) -> bool {
        let is_known = self.knows(hash, now);
        if is_known {
            self.note(hash, now);
        }
        is_known
    }

    fn set(&mut self, hash: u64) -> &mut [[u32; 2]] {
        &mut self.0[places(hash)]
    }
}

/// The places that share a set.
fn places(hash: u64) -> Range<usize> {
    let at = (hash as usize & (USED / SET - 1)) * SET;
    at..at + SET
}

/// Never zero, because zero marks an unused place.
fn tag_of(hash: u64) -> u32 {
    (hash >> 32) as u32 | 1
}

fn seconds(moment: Moment) -> u32 {
    (moment.as_nanos() / 1_000_000_000) as u32
}

/// The ports on which this host listens or has listened.
#[derive(Default)]
pub struct OwnPorts {
    /// Unknown until the kernel has reported them.
    listening: Option<Arc<PortSet>>,
    /// Ports on which services have stopped to listen, in the present span and in the one before.
    stopped: [PortSet; 2],
    /// The beginning of the present span.
    span: Moment,
    /// When another host last replied for this host, later than this host would have.
    forwarded: Option<Moment>,
}

impl OwnPorts {
    /// Takes note of the ports on which this host listens now.
    pub fn set_listening(&mut self, ports: Arc<PortSet>, now: Moment) {
        self.start_span(now);
        if let Some(before) = &self.listening {
            self.stopped[0].insert_missing(before, &ports);
        }
        self.listening = Some(ports);
    }

    /// Whether no service listens on a port, as far as known, neither on this host nor behind it.
    pub fn is_closed(&self, port: Port, now: Moment) -> bool {
        let forwards = self.forwarded.is_some_and(|then| !now.is_past(then, KNOWN_OPEN_FOR));
        !forwards && self.listening.as_ref().is_some_and(|ports| !ports.contains(port))
    }

    /// Takes note of a reply from a port on which no service listens: it is forwarded to a distant host.
    pub fn forward(&mut self, now: Moment) {
        self.forwarded = Some(now);
    }

    /// Whether a service has stopped to listen on a port recently.
    pub fn has_stopped(&mut self, port: Port, now: Moment) -> bool {
        self.start_span(now);
        self.stopped.iter().any(|ports| ports.contains(port))
    }

    fn start_span(&mut self, now: Moment) {
        if now.is_past(self.span, KNOWN_OPEN_FOR) {
            let long_ago = now.is_past(self.span, KNOWN_OPEN_FOR * 2);
            let latest = std::mem::take(&mut self.stopped[0]);
            self.stopped[1] = if long_ago { PortSet::default() } else { latest };
            self.span = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::from_nanos(seconds * 1_000_000_000)
    }

    fn listening(ports: &[u16]) -> Arc<PortSet> {
        let mut listening = PortSet::default();
        for port in ports {
            listening.insert(Port(*port));
        }
        Arc::new(listening)
    }

    #[test]
    fn used_port_stays_known_for_a_day_after_each_try() {
        let mut used = UsedPorts::new();
        used.note(1, at(1_000_000));
        for day in 0..5 {
            assert!(used.renew(1, at(1_000_000 + 86_399 * day)));
        }
        assert!(!used.renew(1, at(1_000_000 + 86_399 * 4 + 86_400)));
        assert!(!used.renew(2, at(1_000_000)));
        // Five hashes share a set of four.
        let hash = |number: u64| number << 32;
        (1..=5).for_each(|number| used.note(hash(2 * number), at(2_000_000 + number)));
        let known = (1..=5).filter(|number| used.renew(hash(2 * number), at(2_000_100)));
        assert_eq!(known.collect::<Vec<_>>(), [2, 3, 4, 5]);
    }

    #[test]
    fn stopped_service_is_remembered_for_one_to_two_hours() {
        let mut own = OwnPorts::default();
        assert!(!own.is_closed(Port(25), at(10_000)), "unknown");
        own.set_listening(listening(&[25, 80]), at(10_000));
        own.set_listening(listening(&[80]), at(10_100));
        assert!(own.is_closed(Port(25), at(10_101)) && own.has_stopped(Port(25), at(10_101)));
        assert!(own.has_stopped(Port(25), at(10_100 + 3599)));
        assert!(!own.has_stopped(Port(25), at(10_100 + 7200)));
        assert!(!own.has_stopped(Port(80), at(10_101)) && !own.has_stopped(Port(22), at(10_101)));
    }
}
