//! On which ports somebody is known to answer, or did until lately.
//!
//! Pure. Such a port is no secret, and that it does not answer now is no fault of those who try it.

use std::sync::Arc;

use crate::detect::balanced::thresholds::{KNOWN_OPEN_FOR, LISTENED_WITHIN, OPEN_PORTS};
use crate::types::clock::Moment;
use crate::types::host::Listening;
use crate::types::segment::Port;

/// What was seen within an hour, such as a port that has answered. Each has one place, which the latest takes.
pub struct RecentlySeen(Vec<(u64, Moment)>);

impl RecentlySeen {
    pub fn new() -> Self {
        Self(vec![(0, Moment::default()); OPEN_PORTS])
    }

    /// What has this hash was seen now.
    pub fn note(&mut self, hash: u64, now: Moment) {
        self.0[place(hash)] = (hash | 1, now);
    }

    /// Whether it was seen lately.
    pub fn knows(&self, hash: u64, now: Moment) -> bool {
        let (known, moment) = self.0[place(hash)];
        known == hash | 1 && !now.is_past(moment, KNOWN_OPEN_FOR)
    }
}

fn place(hash: u64) -> usize {
    (hash >> 32) as usize & (OPEN_PORTS - 1)
}

/// The ports on which this host itself listens, and did.
#[derive(Default)]
pub struct OwnPorts {
    /// Unknown at first, and where the kernel does not tell.
    listening: Option<Arc<Listening>>,
    /// On which somebody has stopped to listen: in this span of time, and in the one before.
    stopped: [Listening; 2],
    turned: Moment,
    /// Somebody else has answered for this host, later than it would have itself.
    forwarded: Option<Moment>,
}

impl OwnPorts {
    /// The host listens on these ports from now on.
    pub fn follow(&mut self, ports: Arc<Listening>, now: Moment) {
        self.turn(now);
        if let Some(before) = &self.listening {
            self.stopped[0].insert_missing(before, &ports);
        }
        self.listening = Some(ports);
    }

    /// Whether nothing listens on a port, as far as is known, nor behind this host.
    pub fn is_closed(&self, port: Port, now: Moment) -> bool {
        let forwards = self.forwarded.is_some_and(|then| !now.is_past(then, KNOWN_OPEN_FOR));
        !forwards && self.listening.as_ref().is_some_and(|ports| !ports.contains(port))
    }

    /// A port on which nothing listens has answered after all: it is forwarded to somewhere far.
    pub fn forward(&mut self, now: Moment) {
        self.forwarded = Some(now);
    }

    /// Whether somebody has stopped to listen on a port lately.
    pub fn has_stopped(&mut self, port: Port, now: Moment) -> bool {
        self.turn(now);
        self.stopped.iter().any(|ports| ports.contains(port))
    }

    fn turn(&mut self, now: Moment) {
        if now.is_past(self.turned, LISTENED_WITHIN) {
            let long_ago = now.is_past(self.turned, LISTENED_WITHIN * 2);
            let latest = std::mem::take(&mut self.stopped[0]);
            self.stopped[1] = if long_ago { Listening::default() } else { latest };
            self.turned = now;
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
    fn a_service_that_has_stopped_is_remembered_for_an_hour_at_least_and_two_at_most() {
        let mut own = OwnPorts::default();
        assert!(!own.is_closed(Port(25), at(10_000)), "nobody has told");
        own.follow(listening(&[25, 80]), at(10_000));
        own.follow(listening(&[80]), at(10_100));
        assert!(own.is_closed(Port(25), at(10_101)) && own.has_stopped(Port(25), at(10_101)));
        assert!(own.has_stopped(Port(25), at(10_100 + 3599)));
        assert!(!own.has_stopped(Port(25), at(10_100 + 7200)));
        assert!(!own.has_stopped(Port(80), at(10_101)) && !own.has_stopped(Port(22), at(10_101)));
    }
}
