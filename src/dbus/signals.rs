//! Signals: what has happened, told to everyone who listens, at a rate nobody minds.

use std::time::Duration;

use zbus::Connection;
use zbus::object_server::SignalEmitter;

use super::interface::Tracker;
use super::names::object_path;
use crate::clock::Moment;
use crate::events::Event;
use crate::interface::InterfaceName;
use crate::network::show_network;

/// Signals a second. A flood of scans must not become a flood on the bus, which would disconnect
/// slow listeners; the journal and the list have all of them.
const RATE: u32 = 100;

const SECOND: Duration = Duration::from_secs(1);

/// At most [`RATE`] signals in each second.
#[derive(Default)]
pub(super) struct Limiter {
    second: Moment,
    sent: u32,
}

impl Limiter {
    /// Whether one more may go out now.
    pub(super) fn permits(&mut self) -> bool {
        self.permits_at(Moment::now())
    }

    fn permits_at(&mut self, now: Moment) -> bool {
        if now.since(self.second) >= SECOND {
            *self = Self { second: now, sent: 0 };
        }
        self.sent += 1;
        self.sent <= RATE
    }
}

/// Emits the signal of an event that has one.
pub(super) async fn emit(
    connection: &Connection,
    interface: &InterfaceName,
    event: Event,
) -> zbus::Result<()> {
    let emitter = SignalEmitter::new(connection, object_path(interface))?;
    match event {
        Event::Scan(scan) => {
            let ports: Vec<u16> = scan.ports().iter().map(|port| port.0).collect();
            let source = show_network(&scan.source);
            Tracker::scan_detected(&emitter, &source, &ports, scan.kind.as_str()).await
        }
        Event::Blocked { network, until, reason, .. } => {
            Tracker::blocked(&emitter, &show_network(&network), until, &reason).await
        }
        Event::Unblocked { network, cause, .. } => {
            Tracker::unblocked(&emitter, &show_network(&network), cause.as_str()).await
        }
        Event::StateChanged { state, .. } => Tracker::state_changed(&emitter, state.as_str()).await,
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_events_is_no_flood_of_signals() {
        let at = |millis: u64| Moment::from_nanos(millis * 1_000_000);
        let mut limiter = Limiter::default();
        let sent = (0..5000).filter(|_| limiter.permits_at(at(10_000))).count();
        assert_eq!(sent, RATE as usize);
        assert!(!limiter.permits_at(at(10_999)));
        assert!(limiter.permits_at(at(11_000)));
    }
}
