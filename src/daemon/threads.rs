//! Starting the service's threads, each with what it works with. Where one has to be ready before the
//! story goes on, its start waits for that.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::DaemonError;
use crate::clock::WallClock;
use crate::crew::{Crew, StopFlag};
use crate::dbus::{self, BusError, Task, Tracker};
use crate::detector::Control;
use crate::events::{Event, Reporter};
use crate::firewall::{Actor, Firewall, Order};
use crate::host::{self, Host};
use crate::interface::InterfaceName;
use crate::journal;
use crate::metrics::{Metrics, MetricsServer, MetricsStop};
use crate::state::{Part, StateBoard};

/// Starts the one thread that writes to the journal.
pub(super) fn start_journal(
    crew: &mut Crew,
    interface: &InterfaceName,
    events: Receiver<Event>,
) -> std::io::Result<()> {
    let interface = interface.clone();
    crew.start("journal", move |pulse| {
        journal::run(&interface, &events, || pulse.beat());
        Ok::<(), DaemonError>(())
    })
}

/// Starts the bus's thread and waits until it has its names.
pub(super) fn start_bus(
    crew: &mut Crew,
    interface: &InterfaceName,
    tracker: Tracker,
    tasks: async_channel::Receiver<Task>,
    metrics: Arc<Metrics>,
) -> Result<(), DaemonError> {
    let (ready_in, ready) = sync_channel(1);
    let interface = interface.clone();
    crew.start("bus", move |pulse| {
        dbus::run(tracker, &interface, &tasks, &metrics, &ready_in, pulse)
    })?;
    ready.recv().map_err(|_| BusError::Lost)??;
    Ok(())
}

/// Starts serving metrics, or says why not: a taken port is no reason not to block scanners.
pub(super) fn start_metrics(
    crew: &mut Crew,
    address: SocketAddr,
    reporter: &Reporter,
    board: &Arc<StateBoard>,
) -> std::io::Result<Option<MetricsStop>> {
    let server = match MetricsServer::listen(address) {
        Ok(server) => server,
        Err(error) => {
            reporter.tell(Event::Warning(format!(
                "{error}; going on without (choose another with metrics.listen, or \"off\")"
            )));
            return Ok(None);
        }
    };
    let stop = server.stop();
    let (metrics, board) = (Arc::clone(reporter.metrics()), Arc::clone(board));
    crew.start("metrics", move |pulse| server.run(&metrics, &board, pulse))?;
    Ok(Some(stop))
}

/// Starts the firewall's thread and waits until everything is up in the kernel.
pub(super) fn start_firewall(
    crew: &mut Crew,
    mut actor: Actor,
    orders: Receiver<Order>,
) -> Result<(), DaemonError> {
    let (ready_in, ready) = sync_channel(1);
    crew.start("firewall", move |pulse| {
        let installed = actor.install(&WallClock::read());
        let failed = installed.is_err();
        // Main is waiting.
        let _ = ready_in.send(installed);
        if failed { Ok(()) } else { actor.run(&orders, || pulse.beat()) }
    })?;
    let ended =
        |_| DaemonError::ThreadEnded { thread: "firewall", reason: "at the start".to_owned() };
    ready.recv().map_err(ended)??;
    Ok(())
}

/// What a new snapshot of the host is told to.
pub(super) struct Followers {
    pub(super) interface: InterfaceName,
    pub(super) firewall: Firewall,
    pub(super) detector: SyncSender<Control>,
    pub(super) board: Arc<StateBoard>,
}

impl Followers {
    fn tell(&self, host: Arc<Host>) {
        if host.is_down(&self.interface) {
            let (name, part) = (&self.interface, Part::Link);
            self.board.raise(part, format!("{name} is down; bring it up: ip link set {name} up"));
        } else {
            self.board.clear(Part::Link);
        }
        self.firewall.order(Order::Host(Arc::clone(&host)));
        // The detector has ended: the process is about to.
        let _ = self.detector.send(Control::Host(host));
    }
}

pub(super) fn start_host(
    crew: &mut Crew,
    host: Arc<Host>,
    followers: Followers,
    stop: Arc<StopFlag>,
) -> std::io::Result<()> {
    crew.start("host", move |pulse| host::follow(host, &stop, pulse, |host| followers.tell(host)))
}
