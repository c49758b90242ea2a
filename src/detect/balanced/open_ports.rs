//! Ports that are known to be open, or were until recently.
//!
//! Pure. Owns what was seen of replies and what this host reports of its own ports. A probe of such a port does
//! not count as failed: the port is known, and its service is at fault.

use std::sync::Arc;

use crate::detect::balanced::thresholds::{KNOWN_OPEN_FOR, LISTENED_WITHIN, OPEN_PORTS};
use crate::types::{Listening, Moment, Port};

/// Hashes that were seen within the last hour, such as those of ports that have replied. Each hash has one
/// place, and a later hash with the same place overwrites it.
pub struct RecentlySeen(Vec<(u64, Moment)>);

impl RecentlySeen {
    pub fn new() -> Self {
        Self(vec![(0, Moment::default()); OPEN_PORTS])
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
    (hash >> 32) as usize & (OPEN_PORTS - 1)
}

/// The ports on which this host listens or has listened.
#[derive(Default)]
pub struct OwnPorts {
    /// Unknown until the kernel has reported them.
    listening: Option<Arc<Listening>>,
    /// Ports on which services have stopped to listen, in the present span and in the one before.
    stopped: [Listening; 2],
    /// The beginning of the present span.
    span: Moment,
    /// When another host last replied for this host, later than this host would have.
    forwarded: Option<Moment>,
}

impl OwnPorts {
    /// Takes note of the ports on which this host listens now.
    pub fn set_listening(&mut self, ports: Arc<Listening>, now: Moment) {
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
        if now.is_past(self.span, LISTENED_WITHIN) {
            let long_ago = now.is_past(self.span, LISTENED_WITHIN * 2);
            let latest = std::mem::take(&mut self.stopped[0]);
            self.stopped[1] = if long_ago { Listening::default() } else { latest };
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

    fn listening(ports: &[u16]) -> Arc<Listening> {
        let mut listening = Listening::default();
        for port in ports {
            listening.insert(*port);
        }
        Arc::new(listening)
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
