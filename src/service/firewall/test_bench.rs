//! The bench on which the actor is tested: a fake kernel, a clock of one's choice, and what is told.

use std::net::IpAddr;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::api::metrics::Metrics;
use crate::block::backend::Backend;
use crate::block::backend::fake::FakeKernel;
use crate::block::store::StorePath;
use crate::config::Config;
use crate::handles::detector::DetectorCommand;
use crate::handles::events::EventSink;
use crate::handles::firewall::{Command, Listed, Reply, RequestError};
use crate::handles::health::Health;
use crate::service::firewall::{FirewallThread, OpenBackend};
use crate::system::netlink::NetlinkError;
use crate::types::block::SkipReason;
use crate::types::clock::{Moment, WallClock};
use crate::types::event::Event;
use crate::types::host::Host;
use crate::types::rule::Rule;
use crate::types::scan::{Attempt, Scan, ScanKind};
use crate::types::segment::Port;
use crate::types::state::State;

pub const HOUR: u64 = 3600;
/// Unix time at moment zero.
pub const EPOCH: u64 = 1_700_000_000;

/// An actor, and everything around it.
pub struct Bench {
    pub thread: FirewallThread,
    pub kernel: FakeKernel,
    pub emitted: Receiver<Arc<Event>>,
    pub control: Receiver<DetectorCommand>,
    pub health: Arc<Health>,
    sessions: Arc<Mutex<Option<Vec<IpAddr>>>>,
    /// The back end that the next configuration opens.
    pub next_backend: Arc<Mutex<Option<FakeKernel>>>,
}

pub fn clock(seconds: u64) -> WallClock {
    WallClock::at(Moment::from_nanos(seconds * 1_000_000_000), EPOCH + seconds)
}

/// An actor that is installed.
pub fn bench(edit: impl FnOnce(&mut Config)) -> Bench {
    let mut bench = bench_on(FakeKernel::default(), None, edit);
    bench.thread.install(&clock(0), &mut |_, _| {}).unwrap();
    bench
}

/// One that is not, on a kernel that may have a past, with a memory that may have one.
pub fn bench_on(
    kernel: FakeKernel,
    store_path: Option<StorePath>,
    edit: impl FnOnce(&mut Config),
) -> Bench {
    let mut config = Config::default();
    edit(&mut config);
    let (journal, emitted) = sync_channel(100);
    let (control_in, control) = sync_channel(100);
    let metrics = Arc::new(Metrics::new().unwrap());
    let events = EventSink::new(journal, None, Arc::clone(&metrics) as _);
    let observing = !config.block.enabled;
    let health = Arc::new(Health::new(observing, kernel.name(), events.clone()));
    let host = Arc::new(Host::with_addresses(["192.0.2.5/24".parse().unwrap()]));
    let sessions = Arc::new(Mutex::new(Some(Vec::new())));
    let asked = Arc::clone(&sessions);
    let ask = Box::new(move |_: &[u16]| asked.lock().unwrap().clone().ok_or(NetlinkError::Garbled));
    let next_backend: Arc<Mutex<Option<FakeKernel>>> = Arc::default();
    let opened = Arc::clone(&next_backend);
    let open: OpenBackend = Box::new(move |_: &Config| {
        let next = opened.lock().unwrap().take().unwrap_or_default();
        Ok((Box::new(next), None))
    });
    let telling = (events, metrics, Arc::clone(&health));
    let backend: Box<dyn Backend + Send> = Box::new(kernel.clone());
    let thread =
        FirewallThread::new((backend, open), config, (host, ask), store_path, telling, control_in);
    Bench { thread, kernel, emitted, control, health, sessions, next_backend }
}

impl Bench {
    /// The state, and why it is degraded.
    pub fn state(&self) -> (State, Option<String>) {
        let status = self.health.status();
        (status.state, status.reason)
    }

    pub fn scan(&mut self, source: &str, seconds: u64) {
        self.scan_as(source, seconds, |_| {});
    }

    pub fn scan_as(&mut self, source: &str, seconds: u64, edit: impl FnOnce(&mut Scan)) {
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
        let order = Command::Scan { scan: Arc::new(scan), listed: true };
        self.thread.handle(order, &clock(seconds));
    }

    pub fn ask<T>(&mut self, seconds: u64, order: impl FnOnce(Reply<T>) -> Command) -> T {
        let (reply, answer) = async_channel::bounded(1);
        self.thread.handle(order(reply), &clock(seconds));
        answer.try_recv().expect("every request is answered at once")
    }

    pub fn block(&mut self, address: &str, length: u64, seconds: u64) -> Result<(), RequestError> {
        let network = crate::types::network::parse_network(address).unwrap();
        let duration = (length > 0).then(|| Duration::from_secs(length));
        let reason = "test".to_owned();
        self.ask(seconds, |reply| Command::Block { network, duration, reason, uid: 1000, reply })
    }

    pub fn unblock(&mut self, address: &str, seconds: u64) -> Result<(), RequestError> {
        let network = crate::types::network::parse_network(address).unwrap();
        self.ask(seconds, |reply| Command::Unblock { network, uid: 1000, reply })
    }

    pub fn list(&mut self, seconds: u64) -> Vec<Listed> {
        self.ask(seconds, |reply| Command::List { reply })
    }

    pub fn events(&self) -> Vec<Event> {
        self.emitted.try_iter().filter_map(Arc::into_inner).collect()
    }

    /// These have an SSH session open; none: the kernel does not tell.
    pub fn sessions(&self, peers: Option<&[&str]>) {
        let peers = peers.map(|peers| peers.iter().map(|peer| peer.parse().unwrap()).collect());
        *self.sessions.lock().unwrap() = peers;
    }

    pub fn spared(&self) -> Option<SkipReason> {
        self.events().into_iter().find_map(|event| match event {
            Event::NotBlocked { why, .. } => Some(why),
            _ => None,
        })
    }
}
