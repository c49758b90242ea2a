//! Signals: what has happened, told to everyone who listens, at a rate nobody minds.

use std::time::Duration;

use zbus::Connection;
use zbus::object_server::{InterfaceRef, SignalEmitter};

use crate::api::dbus::limiter::Limiter;
use crate::api::dbus::names::object_path;
use crate::api::dbus::tracker::Tracker;
use crate::types::clock::Moment;
use crate::types::event::Event;
use crate::types::ifname::IfName;
use crate::types::network::show_network;

/// Signals a second. A flood of scans must not become a flood on the bus, which would disconnect
/// slow listeners; the journal and the list have all of them.
const RATE: u32 = 100;

/// How often at most it is told that the number of blocks is another.
const COUNT_PACE: Duration = Duration::from_millis(100);

/// Tells what happens.
pub struct Teller {
    emitter: SignalEmitter<'static>,
    tracker: InterfaceRef<Tracker>,
    limiter: Limiter,
    /// What was last told of the properties that change.
    state: &'static str,
    backend: &'static str,
    blocked: u32,
    blocked_told: Moment,
}

impl Teller {
    pub async fn new(connection: &Connection, interface: &IfName) -> zbus::Result<Self> {
        let path = object_path(interface);
        let tracker: InterfaceRef<Tracker> =
            connection.object_server().interface(path.as_str()).await?;
        let emitter = SignalEmitter::new(connection, path)?.into_owned();
        let (state, backend, blocked) = tracker.get().await.changing();
        let (limiter, blocked_told) = (Limiter::new(RATE), Moment::default());
        Ok(Self { emitter, tracker, limiter, state, backend, blocked, blocked_told })
    }

    /// Tells an event by the signal it has, unless there were too many: then false. A change of state is
    /// told in any case: it may be what the flood has brought about.
    pub async fn emit(&mut self, event: &Event) -> zbus::Result<bool> {
        let matters = matches!(event, Event::StateChanged { .. });
        if !matters && !self.limiter.permits(Moment::now()) {
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
                Tracker::state_is_another(emitter, state.as_str()).await?;
            }
            _ => {}
        }
        Ok(true)
    }

    /// Tells which properties have other values than were told last, the number of blocks not too often:
    /// what is left out now is told by a later call.
    pub async fn emit_properties(&mut self) -> zbus::Result<()> {
        let tracker = self.tracker.get().await;
        let (state, backend, blocked) = tracker.changing();
        if state != self.state {
            tracker.state_changed(&self.emitter).await?;
            self.state = state;
        }
        if backend != self.backend {
            tracker.backend_changed(&self.emitter).await?;
            self.backend = backend;
        }
        let now = Moment::now();
        if blocked != self.blocked && now.since(self.blocked_told) >= COUNT_PACE {
            tracker.blocked_changed(&self.emitter).await?;
            (self.blocked, self.blocked_told) = (blocked, now);
        }
        Ok(())
    }
}
