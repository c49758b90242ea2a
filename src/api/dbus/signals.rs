//! Signals, at a limited rate.
//!
//! Owns the limit and the last emitted values of the properties.

use std::time::Duration;

use zbus::Connection;
use zbus::object_server::{InterfaceRef, SignalEmitter};

use crate::api::dbus::names::object_path;
use crate::api::dbus::tracker::Tracker;
use crate::types::{Event, IfName, Moment, RateLimit, show_network};

/// Signals per second. A flood of scans must not become a flood on the bus, which would disconnect slow
/// listeners.
const RATE: u32 = 100;

/// The shortest time between two signals that the number of blocks has changed.
const COUNT_INTERVAL: Duration = Duration::from_millis(100);

/// Emits the signals of one instance.
pub struct Signals {
    emitter: SignalEmitter<'static>,
    tracker: InterfaceRef<Tracker>,
    limit: RateLimit,
    /// The last emitted values of the properties that change.
    state: &'static str,
    backend: &'static str,
    blocked: u32,
    blocked_emitted: Moment,
}

impl Signals {
    pub async fn new(connection: &Connection, interface: &IfName) -> zbus::Result<Self> {
        let path = object_path(interface);
        let tracker: InterfaceRef<Tracker> =
            connection.object_server().interface(path.as_str()).await?;
        let emitter = SignalEmitter::new(connection, path)?.into_owned();
        let (state, backend, blocked) = tracker.get().await.changing_properties();
        let (limit, blocked_emitted) = (RateLimit::per_second(RATE), Moment::default());
        Ok(Self { emitter, tracker, limit, state, backend, blocked, blocked_emitted })
    }

    /// Emits the signal of an event. Returns false if there were too many. The limit does not apply to a
    /// change of state, which may be a consequence of the flood.
    pub async fn emit(&mut self, event: &Event) -> zbus::Result<bool> {
        let is_limited = !matches!(event, Event::StateChanged { .. });
        if is_limited && !self.limit.allow(Moment::now()) {
            return Ok(false);
        }
        let emitter = &self.emitter;
        match event {
            Event::Scan(scan) => {
                let ports: Vec<u16> = scan.ports().iter().map(|port| port.0).collect();
                let source = show_network(&scan.source);
                Tracker::scan_detected(emitter, &source, &ports, scan.kind.as_str()).await?;
            }
            Event::Blocked { network, until, reason, .. } => {
                Tracker::blocked(emitter, &show_network(network), *until, reason).await?;
            }
            Event::Unblocked { network, cause, .. } => {
                Tracker::unblocked(emitter, &show_network(network), cause.as_str()).await?;
            }
            Event::StateChanged { state, .. } => {
                Tracker::state_signal(emitter, state.as_str()).await?;
            }
            _ => {}
        }
        Ok(true)
    }

    /// Emits the properties that have changed. A change in the number of blocks may wait for a later call.
    pub async fn emit_properties(&mut self) -> zbus::Result<()> {
        let tracker = self.tracker.get().await;
        let (state, backend, blocked) = tracker.changing_properties();
        if state != self.state {
            tracker.state_changed(&self.emitter).await?;
            self.state = state;
        }
        if backend != self.backend {
            tracker.backend_changed(&self.emitter).await?;
            self.backend = backend;
        }
        let now = Moment::now();
        if blocked != self.blocked && now.since(self.blocked_emitted) >= COUNT_INTERVAL {
            tracker.blocked_changed(&self.emitter).await?;
            (self.blocked, self.blocked_emitted) = (blocked, now);
        }
        Ok(())
    }
}
