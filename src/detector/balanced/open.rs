//! On which ports somebody is known to answer, or did until lately.
//!
//! Pure. Such a port is no secret, and that it does not answer now is no fault of those who try it.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;

use super::numbers::{KNOWN_OPEN_FOR, LISTENED_WITHIN, OPEN_PORTS};
use crate::clock::Moment;
use crate::host::Listening;
use crate::probe::Port;

/// The ports on which somebody has answered. Each has one place, which the latest takes.
pub(super) struct OpenPorts {
    places: Vec<(u64, Moment)>,
    hasher: RandomState,
}

impl OpenPorts {
    pub(super) fn new() -> Self {
        Self { places: vec![(0, Moment::default()); OPEN_PORTS], hasher: RandomState::new() }
    }

    /// A host has answered on a port.
    pub(super) fn note(&mut self, host: IpAddr, port: Port, now: Moment) {
        let (tag, at) = self.place(host, port);
        self.places[at] = (tag, now);
    }

    /// Whether a host has answered anybody on a port lately.
    pub(super) fn knows(&self, host: IpAddr, port: Port, now: Moment) -> bool {
        let (tag, at) = self.place(host, port);
        let (known, moment) = self.places[at];
        known == tag && !now.is_past(moment, KNOWN_OPEN_FOR)
    }

    fn place(&self, host: IpAddr, port: Port) -> (u64, usize) {
        let tag = self.hasher.hash_one((host, port)) | 1;
        (tag, (tag >> 32) as usize & (OPEN_PORTS - 1))
    }
}

/// The ports on which this host itself listens, and did.
#[derive(Default)]
pub(super) struct OwnPorts {
    /// Unknown at first, and where the kernel does not tell.
    listening: Option<Arc<Listening>>,
    /// On which somebody has stopped to listen: in this span of time, and in the one before.
    stopped: [Listening; 2],
    turned: Moment,
}

impl OwnPorts {
    /// The host listens on these ports from now on.
    pub(super) fn follow(&mut self, ports: Arc<Listening>, now: Moment) {
        self.turn(now);
        if let Some(before) = &self.listening {
            self.stopped[0].insert_missing(before, &ports);
        }
        self.listening = Some(ports);
    }

    /// Whether nothing listens on a port, as far as is known.
    pub(super) fn is_closed(&self, port: Port) -> bool {
        self.listening.as_ref().is_some_and(|ports| !ports.contains(port))
    }

    /// Whether somebody has stopped to listen on a port lately.
    pub(super) fn has_stopped(&mut self, port: Port, now: Moment) -> bool {
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
        assert!(!own.is_closed(Port(25)), "nobody has told");
        own.follow(listening(&[25, 80]), at(10_000));
        own.follow(listening(&[80]), at(10_100));
        assert!(own.is_closed(Port(25)) && own.has_stopped(Port(25), at(10_101)));
        assert!(own.has_stopped(Port(25), at(10_100 + 3599)));
        assert!(!own.has_stopped(Port(25), at(10_100 + 7200)));
        assert!(!own.has_stopped(Port(80), at(10_101)) && !own.has_stopped(Port(22), at(10_101)));
    }
}
