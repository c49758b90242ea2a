//! D-Bus: the interface that other programs use to observe and control the service.
//!
//! Owns the connection and drives it in one thread, and connects again when the bus was away. Must never
//! change anything itself: a change is a command to the firewall thread, and a caller that waits for the
//! answer does not delay others. Emits an event only after the fact, and waits for no listener.

pub mod authority;
pub mod callers;
pub mod error;
pub mod explanation;
pub mod frame;
pub mod gate;
pub mod link;
pub mod list;
pub mod names;
pub mod signals;
pub mod tracker;
pub mod turns;

#[cfg(test)]
mod description_tests;

use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use async_channel::Receiver;
use futures_lite::future::or;
use zruntime::SharedRuntime;

use crate::api::dbus::link::{BusError, Link};
use crate::api::dbus::signals::Signals;
use crate::api::dbus::tracker::Tracker;
use crate::handles::{BusCommand, Component};
use crate::types::{Event, Heartbeat};

/// Signals that may wait while the bus does not read.
const SIGNALS: usize = 256;

/// How long a stop waits for the last signals.
const PATIENCE: Duration = Duration::from_secs(1);

/// The pause before the first attempt to connect again. Each one is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How long an attempt to connect may take.
const ATTEMPT: Duration = Duration::from_secs(10);

const LOST: &str = "the connection to the system bus was lost; connecting again";

/// Serves the interface until the thread has to stop. Sends once to `ready` whether it is on the bus. If the
/// bus ends later, it waits for it.
pub fn run(
    tracker: &Tracker,
    commands: &Receiver<BusCommand>,
    ready: &SyncSender<Result<(), BusError>>,
    heartbeat: &Heartbeat,
) {
    zbus::block_on(async {
        heartbeat.tick();
        let runtime = SharedRuntime::current().map_err(|error| BusError::NoBus(error.into()));
        let joined = match runtime {
            Ok(runtime) => Link::join(&runtime, tracker).await.map(|link| (runtime, link)),
            Err(error) => Err(error),
        };
        match joined {
            Ok((runtime, link)) => {
                let _ = ready.send(Ok(()));
                Member { tracker, commands, heartbeat, runtime }.serve(link).await;
            }
            // Fails only if the process is about to end.
            Err(error) => drop(ready.send(Err(error))),
        }
    });
}

/// Why a connection is no longer served.
#[derive(PartialEq, Eq)]
enum End {
    Stopped,
    Lost,
}

/// An instance on the bus.
struct Member<'a> {
    tracker: &'a Tracker,
    commands: &'a Receiver<BusCommand>,
    heartbeat: &'a Heartbeat,
    runtime: SharedRuntime,
}

impl Member<'_> {
    /// Serves one connection after another until the thread has to stop.
    async fn serve(&self, mut link: Link) {
        let health = self.tracker.health();
        while self.serve_until_lost(link).await == End::Lost {
            health.set_degraded(Component::Bus, LOST.to_owned());
            let Some(next) = or(async { Some(self.rejoin().await) }, self.await_stop()).await
            else {
                return;
            };
            link = next;
            health.clear(Component::Bus);
        }
    }

    async fn serve_until_lost(&self, link: Link) -> End {
        let Link { connection, signals } = link;
        let (waiting_in, waiting) = async_channel::bounded(SIGNALS);
        let take_commands = async {
            while let Ok(command) = self.commands.recv().await {
                self.heartbeat.tick();
                match command {
                    BusCommand::Emit(event) => {
                        if waiting_in.try_send(Some(event)).is_err() {
                            self.tracker.count_lost_signal();
                        }
                    }
                    // The properties may have changed. If there is no room, signals precede it.
                    BusCommand::Heartbeat => drop(waiting_in.try_send(None)),
                    BusCommand::Stop => break,
                }
            }
            // The last signals are still sent.
            waiting_in.close();
            self.runtime.sleep(PATIENCE).await;
            End::Stopped
        };
        let lost = async {
            connection.closed().await;
            End::Lost
        };
        let end = or(lost, or(take_commands, self.emit(signals, &waiting))).await;
        if end == End::Stopped {
            // The bus releases the names with the connection.
            let _ = self.runtime.timeout(PATIENCE, connection.close()).await;
        }
        end
    }

    /// Emits signals until there are no more.
    async fn emit(&self, mut signals: Signals, waiting: &Receiver<Option<Arc<Event>>>) -> End {
        while let Ok(event) = waiting.recv().await {
            let is_emitted = match event {
                Some(event) => signals.emit(&event).await,
                None => Ok(true),
            };
            match is_emitted {
                Ok(true) => {}
                Ok(false) => self.tracker.count_lost_signal(),
                Err(_) => return End::Lost,
            }
            if signals.emit_properties().await.is_err() {
                return End::Lost;
            }
        }
        End::Stopped
    }

    /// Connects again, however long that takes.
    async fn rejoin(&self) -> Link {
        let mut pause = FIRST_PAUSE;
        loop {
            self.runtime.sleep(pause).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
            match self.runtime.timeout(ATTEMPT, Link::join(&self.runtime, self.tracker)).await {
                Ok(Ok(link)) => return link,
                Err(_) | Ok(Err(BusError::NoBus(_))) => {}
                Ok(Err(error)) => {
                    let reason = format!("{LOST}: {error}");
                    self.tracker.health().set_degraded(Component::Bus, reason);
                }
            }
        }
    }

    /// Waits for the end while there is no connection. Signals are lost meanwhile.
    async fn await_stop(&self) -> Option<Link> {
        loop {
            match self.commands.recv().await {
                Ok(BusCommand::Emit(_)) => self.tracker.count_lost_signal(),
                Ok(BusCommand::Heartbeat) => self.heartbeat.tick(),
                Ok(BusCommand::Stop) | Err(_) => return None,
            }
        }
    }
}
