//! The bench for tests of the firewall thread: a fake kernel, a clock to choose, and the emitted events.

use std::collections::HashSet;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::api::metrics::Metrics;
use crate::block::backend::Backend;
use crate::block::backend::fake::FakeKernel;
use crate::block::store::StorePath;
use crate::config::Config;
use crate::handles::{Command, DetectorCommand, EventSink, Health, Listed, Reply, RequestError};
use crate::service::firewall::{FirewallThread, OpenBackend};
use crate::types::{
    Attempt, Event, Host, Moment, Port, Rule, Scan, ScanKind, SkipReason, SshSessions, State,
    WallClock,
};

pub const HOUR: u64 = 3600;
/// Unix time at moment zero.
pub const EPOCH: u64 = 1_700_000_000;

/// A firewall thread and everything around it.
pub struct Bench {
    pub thread: FirewallThread,
    pub kernel: FakeKernel,
    pub emitted: Receiver<Arc<Event>>,
    pub control: Receiver<DetectorCommand>,
    pub health: Arc<Health>,
    sessions: SshSessions,
    /// The back end that the next configuration opens.
    pub next_backend: Arc<Mutex<Option<FakeKernel>>>,
}

pub fn clock(seconds: u64) -> WallClock {
    WallClock::at(Moment::from_nanos(seconds * 1_000_000_000), EPOCH + seconds)
}

/// A bench with an installed thread.
pub fn bench(edit: impl FnOnce(&mut Config)) -> Bench {
    let mut bench = bench_on(FakeKernel::default(), None, edit);
    bench.install(0);
    bench
}

/// A bench with a thread that is not installed; the kernel and the database may have a past.
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
    let backend = if observing { "none" } else { kernel.name() };
    let health = Arc::new(Health::new(observing, backend, events.clone()));
    let host = Arc::new(Host::with_addresses(["192.0.2.5/24".parse().unwrap()]));
    let followed = (host, Arc::default());
    let ask = Box::new(|| (Ok(HashSet::new()), Duration::ZERO));
    let next_backend: Arc<Mutex<Option<FakeKernel>>> = Arc::default();
    let opened = Arc::clone(&next_backend);
    let open: OpenBackend = Box::new(move |_: &Config| {
        let next = opened.lock().unwrap().take().unwrap_or_default();
        Ok((Box::new(next), None))
    });
    let reporting = (events, metrics, Arc::clone(&health));
    let thread =
        FirewallThread::new(open, config, (followed, ask), store_path, reporting, control_in);
    Bench {
        thread,
        kernel,
        emitted,
        control,
        health,
        sessions: SshSessions::default(),
        next_backend,
    }
}

impl Bench {
    /// Installs the thread, with a back end unless it only observes.
    pub fn install(&mut self, seconds: u64) {
        let enabled = self.thread.config.block.enabled;
        let backend = enabled.then(|| Box::new(self.kernel.clone()) as Box<dyn Backend + Send>);
        self.thread.install(backend, &clock(seconds), &mut |_, _| {}).unwrap();
    }

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
            tried: 4,
            continued: false,
            decoy: false,
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
        let network = crate::types::parse_network(address).unwrap();
        let duration = (length > 0).then(|| Duration::from_secs(length));
        let reason = "test".to_owned();
        self.ask(seconds, |reply| Command::Block { network, duration, reason, uid: 1000, reply })
    }

    pub fn unblock(&mut self, address: &str, seconds: u64) -> Result<(), RequestError> {
        let network = crate::types::parse_network(address).unwrap();
        self.ask(seconds, |reply| Command::Unblock { network, uid: 1000, reply })
    }

    pub fn list(&mut self, seconds: u64) -> Vec<Listed> {
        self.ask(seconds, |reply| Command::List { reply })
    }

    pub fn events(&self) -> Vec<Event> {
        self.emitted.try_iter().filter_map(Arc::into_inner).collect()
    }

    /// Sets the peers of SSH sessions; none: the kernel does not answer.
    pub fn sessions(&mut self, peers: Option<&[&str]>, seconds: u64) {
        match peers {
            Some(peers) => {
                let logged_in = peers.iter().map(|peer| peer.parse().unwrap()).collect();
                self.sessions = SshSessions { logged_in, ..SshSessions::default() };
            }
            None => self.sessions.error = Some("no answer".to_owned()),
        }
        let sessions = Command::Sessions(Arc::new(self.sessions.clone()));
        self.thread.handle(sessions, &clock(seconds));
    }

    pub fn skipped(&self) -> Option<SkipReason> {
        self.events().into_iter().find_map(|event| match event {
            Event::NotBlocked { why, .. } => Some(why),
            _ => None,
        })
    }
}
