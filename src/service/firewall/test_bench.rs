//! The bench for tests of the firewall and rules threads: a fake kernel, a clock to choose, and the emitted
//! events.

use std::collections::HashSet;
use std::sync::mpsc::{Receiver, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;

use crate::api::metrics::Metrics;
use crate::block::backend::Backend;
use crate::block::backend::fake::FakeKernel;
use crate::block::backend::rulebook::RulePlan;
use crate::block::backend::rules_handle::{RulesCommand, RulesHandle};
use crate::block::backend::select::Selected;
use crate::block::store::Store;
use crate::block::store::flusher::flusher;
use crate::config::Config;
use crate::handles::{Command, DetectorCommand, EventSink, Health, Listed, Reply, RequestError};
use crate::service::firewall::{FirewallThread, Neighbours, OpenBackend};
use crate::service::rules::{AtStart, RulesThread};
use crate::types::{
    Attempt, BackendNote, Event, Host, Moment, Port, Rule, Scan, ScanKind, SkipReason, SshSessions,
    State, WallClock,
};

pub const HOUR: u64 = 3600;
/// Unix time at moment zero.
pub const EPOCH: u64 = 1_700_000_000;

/// A firewall thread, a rules thread, and everything around them.
pub struct Bench {
    pub thread: FirewallThread,
    pub rules: RulesThread,
    pub rules_commands: Receiver<RulesCommand>,
    firewall_commands: Receiver<Command>,
    pub kernel: FakeKernel,
    pub emitted: Receiver<Arc<Event>>,
    pub control: Receiver<DetectorCommand>,
    pub health: Arc<Health>,
    sessions: SshSessions,
    /// The back end that the next configuration opens.
    pub next_backend: Arc<Mutex<Option<FakeKernel>>>,
    /// Of a bench whose database has no past.
    _state: TempDir,
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
pub fn bench_on(kernel: FakeKernel, store: Option<Store>, edit: impl FnOnce(&mut Config)) -> Bench {
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
    // The kernel whose rules are made next.
    let latest = Arc::new(Mutex::new(kernel.clone()));
    let of_rules = Arc::clone(&latest);
    let open: OpenBackend = Box::new(move |config: &Config| {
        let next = opened.lock().unwrap().take().unwrap_or_default();
        *latest.lock().unwrap() = next.clone();
        let (backend, plan) = (Box::new(next), Some(plan(config)));
        Ok(Selected { backend, plan, others: Vec::new(), old_plan: None, note: None })
    });
    let connect = Box::new(move |_: &RulePlan| Ok(Box::new(of_rules.lock().unwrap().clone()) as _));
    let (handle, rules_commands) = RulesHandle::new();
    let (firewall, firewall_commands) = sync_channel(10);
    let (main, _) = channel();
    let plan = plan(&config);
    let at_start = if observing { AtStart::Remove(plan) } else { AtStart::Install(plan) };
    let ways = (events.clone(), Arc::clone(&health), firewall, main.clone());
    let rules = RulesThread::new(handle.clone(), connect, at_start, ways);
    let reporting = (events, metrics, Arc::clone(&health));
    let neighbours = Neighbours { detector: control_in, rules: handle, main };
    let state = TempDir::new().unwrap();
    let store = store.unwrap_or_else(|| flusher(state.path().join("tcptracker.db")).0);
    let thread = FirewallThread::new(open, config, (followed, ask), store, reporting, neighbours);
    Bench {
        thread,
        rules,
        rules_commands,
        firewall_commands,
        kernel,
        emitted,
        control,
        health,
        sessions: SshSessions::default(),
        next_backend,
        _state: state,
    }
}

fn plan(config: &Config) -> RulePlan {
    RulePlan {
        interface: "eth0".parse().unwrap(),
        firewall: config.firewall.clone(),
        established: config.block.established,
        has_sets: true,
    }
}

impl Bench {
    /// Starts both threads.
    pub fn install(&mut self, seconds: u64) {
        let backend: Box<dyn Backend + Send> = Box::new(self.kernel.clone());
        self.thread.install(&mut Some(backend), &clock(seconds), &mut |_, _| {}).unwrap();
        self.rules.look(clock(seconds).now()).unwrap();
        if !self.thread.config.block.enabled {
            // What a crashed instance has left goes when its rules are gone.
            self.thread.maintain(&clock(seconds));
        }
    }

    /// One round of both threads.
    pub fn maintain(&mut self, seconds: u64) {
        self.thread.maintain(&clock(seconds));
        self.rules.look(clock(seconds).now()).unwrap();
        self.thread.report_enforcement();
    }

    /// Applies a configuration, with the help of the rules thread.
    pub fn reconfigure(
        &mut self,
        config: Config,
        seconds: u64,
    ) -> Result<Option<BackendNote>, String> {
        let (reply, answer) = sync_channel(1);
        let config = Box::new(config);
        self.thread.handle(Command::Reconfigure { config, reply }, &clock(seconds));
        self.rules_commands.try_iter().for_each(|command| self.rules.handle(command));
        for command in self.firewall_commands.try_iter().collect::<Vec<_>>() {
            self.thread.handle(command, &clock(seconds));
        }
        answer.try_recv().unwrap()
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
        let is_start =
            |event: &Event| matches!(event, Event::StateChanged { has_started: true, .. });
        let events = self.emitted.try_iter().filter_map(Arc::into_inner);
        events.filter(|event| !is_start(event)).collect()
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
