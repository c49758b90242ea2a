//! The bench on which the actor is tested: a fake kernel, a clock of one's choice, and what is told.

use std::net::IpAddr;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::actor::{Actor, Blocking};
use super::fake::FakeKernel;
use super::{Listed, Order, Refusal, Reply};
use crate::clock::{Moment, WallClock};
use crate::config::Config;
use crate::detector::{Attempt, Control, Rule, Scan, ScanKind};
use crate::events::{Event, Reporter, Spared};
use crate::host::Host;
use crate::memory::Place;
use crate::metrics::Metrics;
use crate::netlink::NetlinkError;
use crate::probe::Port;
use crate::state::StateBoard;

pub(super) const HOUR: u64 = 3600;
/// Unix time at moment zero.
pub(super) const EPOCH: u64 = 1_700_000_000;

/// An actor, and everything around it.
pub(super) struct Bench {
    pub(super) actor: Actor,
    pub(super) kernel: FakeKernel,
    pub(super) events: Receiver<Arc<Event>>,
    pub(super) control: Receiver<Control>,
    pub(super) board: Arc<StateBoard>,
    sessions: Arc<Mutex<Option<Vec<IpAddr>>>>,
}

pub(super) fn clock(seconds: u64) -> WallClock {
    WallClock::at(Moment::from_nanos(seconds * 1_000_000_000), EPOCH + seconds)
}

/// An actor that is installed.
pub(super) fn bench(edit: impl FnOnce(&mut Config)) -> Bench {
    let mut bench = bench_on(FakeKernel::default(), None, edit);
    bench.actor.install(&clock(0), &mut |_, _| {}).unwrap();
    bench
}

/// One that is not, on a kernel that may have a past, with a memory that may have one.
pub(super) fn bench_on(
    kernel: FakeKernel,
    place: Option<Place>,
    edit: impl FnOnce(&mut Config),
) -> Bench {
    let mut config = Config::default();
    edit(&mut config);
    let (events_in, events) = sync_channel(100);
    let (control_in, control) = sync_channel(100);
    let metrics = Arc::new(Metrics::new().unwrap());
    let reporter = Reporter::new(events_in, None, metrics);
    let board = Arc::new(StateBoard::new(!config.block.enabled, reporter.clone()));
    let host = Arc::new(Host::with_addresses(["192.0.2.5/24".parse().unwrap()]));
    let sessions = Arc::new(Mutex::new(Some(Vec::new())));
    let asked = Arc::clone(&sessions);
    let blocking = Blocking {
        block: config.block,
        exempt: config.exempt,
        host,
        ask_sessions: Box::new(move |_| asked.lock().unwrap().clone().ok_or(NetlinkError::Garbled)),
    };
    let backend = Box::new(kernel.clone());
    let telling = (reporter, Arc::clone(&board));
    let actor = Actor::new(backend, blocking, place, telling, control_in);
    Bench { actor, kernel, events, control, board, sessions }
}

impl Bench {
    pub(super) fn scan(&mut self, source: &str, seconds: u64) {
        self.scan_as(source, seconds, |_| {});
    }

    pub(super) fn scan_as(&mut self, source: &str, seconds: u64, edit: impl FnOnce(&mut Scan)) {
        let moment = Moment::from_nanos(seconds * 1_000_000_000);
        let mut scan = Scan {
            source: source.parse().unwrap(),
            address: source.split('/').next().unwrap().parse().unwrap(),
            destination: [192, 0, 2, 5].into(),
            kind: ScanKind::Vertical,
            attempts: (1..=4).map(|port| Attempt::at(Port(port), moment)).collect(),
            moment,
            probes: 4,
            rule: Rule::Ports,
            threshold: 3,
            span: Duration::from_secs(60),
            continued: false,
            others: Vec::new(),
        };
        edit(&mut scan);
        let order = Order::Scan { scan: Arc::new(scan), listed: true };
        self.actor.carry_out(order, &clock(seconds));
    }

    pub(super) fn ask<T>(&mut self, seconds: u64, order: impl FnOnce(Reply<T>) -> Order) -> T {
        let (reply, answer) = async_channel::bounded(1);
        self.actor.carry_out(order(reply), &clock(seconds));
        answer.try_recv().expect("every request is answered at once")
    }

    pub(super) fn block(
        &mut self,
        address: &str,
        length: u64,
        seconds: u64,
    ) -> Result<(), Refusal> {
        let network = crate::network::parse_network(address).unwrap();
        let duration = (length > 0).then(|| Duration::from_secs(length));
        let reason = "test".to_owned();
        self.ask(seconds, |reply| Order::Block { network, duration, reason, uid: 1000, reply })
    }

    pub(super) fn unblock(&mut self, address: &str, seconds: u64) -> Result<(), Refusal> {
        let network = crate::network::parse_network(address).unwrap();
        self.ask(seconds, |reply| Order::Unblock { network, uid: 1000, reply })
    }

    pub(super) fn list(&mut self, seconds: u64) -> Vec<Listed> {
        self.ask(seconds, |reply| Order::List { reply })
    }

    pub(super) fn events(&self) -> Vec<Event> {
        self.events.try_iter().filter_map(Arc::into_inner).collect()
    }

    /// These have an SSH session open; none: the kernel does not tell.
    pub(super) fn sessions(&self, peers: Option<&[&str]>) {
        let peers = peers.map(|peers| peers.iter().map(|peer| peer.parse().unwrap()).collect());
        *self.sessions.lock().unwrap() = peers;
    }

    pub(super) fn spared(&self) -> Option<Spared> {
        self.events().into_iter().find_map(|event| match event {
            Event::Spared { why, .. } => Some(why),
            _ => None,
        })
    }
}
