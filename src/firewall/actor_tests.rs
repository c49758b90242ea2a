//! The actor against the fake kernel: what users are promised of a block's life.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use super::actor::{Actor, Blocking};
use super::fake::FakeKernel;
use super::{Listed, Order, Refusal, Reply};
use crate::clock::{Moment, WallClock};
use crate::config::Config;
use crate::detector::{Attempt, Control, Scan, ScanKind};
use crate::events::{BlockCause, Event, Reporter, Spared, UnblockCause};
use crate::host::Host;
use crate::metrics::Metrics;
use crate::probe::Port;
use crate::state::{State, StateBoard};

const HOUR: u64 = 3600;
/// Unix time at moment zero.
const EPOCH: u64 = 1_700_000_000;

struct Bench {
    actor: Actor,
    kernel: FakeKernel,
    events: Receiver<Event>,
    control: Receiver<Control>,
    board: Arc<StateBoard>,
}

fn clock(seconds: u64) -> WallClock {
    WallClock::at(Moment::from_nanos(seconds * 1_000_000_000), EPOCH + seconds)
}

fn bench(edit: impl FnOnce(&mut Config)) -> Bench {
    let mut bench = bench_on(FakeKernel::default(), edit);
    bench.actor.install(&clock(0)).unwrap();
    bench
}

fn bench_on(kernel: FakeKernel, edit: impl FnOnce(&mut Config)) -> Bench {
    let mut config = Config::default();
    edit(&mut config);
    let (events_in, events) = sync_channel(100);
    let (control_in, control) = sync_channel(100);
    let metrics = Arc::new(Metrics::new().unwrap());
    let reporter = Reporter::new(events_in, None, metrics);
    let board = Arc::new(StateBoard::new(!config.block.enabled, reporter.clone()));
    let host = Arc::new(Host::with_addresses(["192.0.2.5/24".parse().unwrap()]));
    let blocking = Blocking { block: config.block, exempt: config.exempt, host };
    let backend = Box::new(kernel.clone());
    let actor = Actor::new(backend, blocking, reporter, Arc::clone(&board), control_in);
    Bench { actor, kernel, events, control, board }
}

impl Bench {
    fn scan(&mut self, source: &str, seconds: u64) {
        let moment = Moment::from_nanos(seconds * 1_000_000_000);
        let scan = Scan {
            source: source.parse().unwrap(),
            address: source.split('/').next().unwrap().parse().unwrap(),
            destination: [192, 0, 2, 5].into(),
            kind: ScanKind::Vertical,
            attempts: (1..=4).map(|port| Attempt { port: Port(port), moment }).collect(),
            moment,
            probes: 4,
            threshold: 3,
            span: Duration::from_secs(60),
            continued: false,
        };
        let order = Order::Scan { scan: Arc::new(scan), listed: true };
        self.actor.carry_out(order, &clock(seconds));
    }

    fn ask<T>(&mut self, seconds: u64, order: impl FnOnce(Reply<T>) -> Order) -> T {
        let (reply, answer) = async_channel::bounded(1);
        self.actor.carry_out(order(reply), &clock(seconds));
        answer.try_recv().expect("every request is answered at once")
    }

    fn block(&mut self, address: &str, length: u64, seconds: u64) -> Result<(), Refusal> {
        let network = crate::network::parse_network(address).unwrap();
        let duration = (length > 0).then(|| Duration::from_secs(length));
        let reason = "test".to_owned();
        self.ask(seconds, |reply| Order::Block { network, duration, reason, uid: 1000, reply })
    }

    fn unblock(&mut self, address: &str, seconds: u64) -> Result<(), Refusal> {
        let network = crate::network::parse_network(address).unwrap();
        self.ask(seconds, |reply| Order::Unblock { network, uid: 1000, reply })
    }

    fn list(&mut self, seconds: u64) -> Vec<Listed> {
        self.ask(seconds, |reply| Order::List { reply })
    }

    fn events(&self) -> Vec<Event> {
        self.events.try_iter().collect()
    }

    fn spared(&self) -> Option<Spared> {
        self.events().into_iter().find_map(|event| match event {
            Event::Spared { why, .. } => Some(why),
            _ => None,
        })
    }
}

#[test]
fn a_scanner_is_blocked_in_the_kernel_listed_and_told() {
    let mut bench = bench(|_| {});
    bench.scan("198.51.100.1/32", 10);
    assert_eq!(bench.kernel.holds("198.51.100.1/32"), Some(Duration::from_secs(HOUR)));
    let listed = bench.list(10);
    assert_eq!((listed[0].since, listed[0].until), (EPOCH + 10, EPOCH + 10 + HOUR));
    assert_eq!(listed[0].reason, "vertical scan: ports 1, 2, 3, 4");
    assert!(bench.events().iter().any(|event| matches!(
        event,
        Event::Blocked { cause: BlockCause::Scan, offences: 1, until, .. } if *until == EPOCH + 10 + HOUR
    )));
}

#[test]
fn nothing_is_said_to_be_blocked_that_the_kernel_did_not_take() {
    let mut bench = bench(|_| {});
    bench.kernel.inner().full = true;
    bench.scan("198.51.100.1/32", 0);
    assert!(matches!(bench.spared(), Some(Spared::Failed(_))));
    assert_eq!(bench.list(0), []);
    assert_eq!(bench.board.current().0, State::Degraded);
    assert!(matches!(bench.block("198.51.100.2", 0, 0), Err(Refusal::Kernel(_))));

    bench.kernel.inner().full = false;
    bench.scan("198.51.100.1/32", 1);
    bench.actor.look_round(&clock(1));
    assert_eq!(bench.board.current(), (State::Enforcing, None));
}

#[test]
fn a_block_ends_when_its_time_is_up_and_the_next_is_longer() {
    let mut bench = bench(|_| {});
    bench.scan("198.51.100.1/32", 0);
    bench.actor.follow_time(&clock(HOUR - 1));
    assert_eq!(bench.list(HOUR - 1).len(), 1);
    bench.events();
    bench.actor.follow_time(&clock(HOUR));
    assert_eq!(bench.list(HOUR), []);
    assert_eq!(bench.kernel.holds("198.51.100.1/32"), None);
    assert!(matches!(bench.events()[..], [Event::Unblocked { cause: UnblockCause::Expired, .. }]));
    assert!(matches!(bench.control.try_recv(), Ok(Control::Forget(_))));

    bench.scan("198.51.100.1/32", HOUR + 1);
    let block = &bench.list(HOUR + 1)[0];
    assert_eq!((block.offences, block.until - block.since), (2, 4 * HOUR));
}

#[test]
fn unblocked_by_hand_stays_unblocked_for_the_grace_period() {
    let mut bench = bench(|_| {});
    bench.scan("198.51.100.1/32", 0);
    bench.events();
    assert_eq!(bench.unblock("198.51.100.1", 5), Ok(()));
    assert_eq!(bench.kernel.holds("198.51.100.1/32"), None);
    bench.scan("198.51.100.1/32", 6);
    assert!(matches!(bench.spared(), Some(Spared::Grace { .. })));
    assert_eq!(bench.list(6), []);

    bench.scan("198.51.100.1/32", 5 + HOUR);
    assert_eq!(bench.list(5 + HOUR).len(), 1, "the grace is over");
    assert!(matches!(bench.unblock("198.51.100.9", 5), Err(Refusal::NotBlocked(_))));
}

#[test]
fn a_block_by_hand_ends_the_grace() {
    let mut bench = bench(|_| {});
    bench.scan("198.51.100.1/32", 0);
    bench.unblock("198.51.100.1", 1).unwrap();
    bench.block("198.51.100.1", 60, 2).unwrap();
    bench.actor.follow_time(&clock(62));
    bench.scan("198.51.100.1/32", 63);
    assert_eq!(bench.list(63).len(), 1);
}

#[test]
fn nobody_exempt_is_blocked_by_any_path() {
    let mut bench = bench(|c| c.exempt.networks = vec!["203.0.113.0/24".parse().unwrap()]);
    bench.scan("203.0.113.7/32", 0);
    assert!(matches!(bench.spared(), Some(Spared::Exempt(_))));
    for address in ["203.0.113.7", "203.0.0.0/16", "192.0.2.5", "192.0.2.0/24", "0.0.0.0/0"] {
        let answer = bench.block(address, 0, 0);
        assert!(matches!(answer, Err(Refusal::Exempt { .. })), "{address}: {answer:?}");
    }
    assert_eq!(bench.kernel.inner().elements.as_ref().map(BTreeMap::len), Some(0));
}

#[test]
fn an_address_that_becomes_exempt_is_released() {
    let mut bench = bench(|_| {});
    bench.scan("198.51.100.1/32", 0);
    bench.events();
    let host = Host::with_addresses(["198.51.100.1/24".parse().unwrap()]);
    bench.actor.carry_out(Order::Host(Arc::new(host)), &clock(1));
    assert_eq!(bench.list(1), []);
    assert_eq!(bench.kernel.holds("198.51.100.1/32"), None);
    assert!(matches!(bench.events()[..], [Event::Unblocked { cause: UnblockCause::Exempt, .. }]));
}

#[test]
fn observing_reports_and_leaves_the_kernel_alone() {
    let mut bench = bench(|c| c.block.enabled = false);
    bench.scan("198.51.100.1/32", 0);
    assert_eq!(bench.spared(), Some(Spared::Observing));
    assert_eq!(bench.kernel.holds("198.51.100.1/32"), None);
    assert_eq!(bench.board.current().0, State::Observing);
}

#[test]
fn a_flood_of_scans_buys_no_more_blocks_than_the_guard_permits() {
    let mut bench = bench(|c| c.block.max_per_minute = crate::config::Rate(3));
    for last in 1..=10 {
        bench.scan(&format!("198.51.100.{last}/32"), 0);
    }
    assert_eq!(bench.list(0).len(), 3);
    let (state, reason) = bench.board.current();
    assert_eq!(state, State::Degraded);
    assert!(reason.unwrap().contains("block.max_per_minute"));
    assert_eq!(bench.block("198.51.100.99", 0, 0), Ok(()), "by hand is no flood");
    bench.actor.look_round(&clock(59));
    assert_eq!(bench.board.current().0, State::Degraded);
    bench.actor.look_round(&clock(60));
    assert_eq!(bench.board.current().0, State::Enforcing);
}

#[test]
fn what_the_kernel_refuses_to_end_is_ended_later() {
    let mut bench = bench(|_| {});
    bench.scan("198.51.100.1/32", 0);
    let elements = bench.kernel.inner().elements.take();
    bench.actor.follow_time(&clock(HOUR));
    assert_eq!(bench.list(HOUR).len(), 1, "the kernel did not say that it is over");
    bench.actor.look_round(&clock(HOUR));
    assert_eq!(bench.board.current().0, State::Degraded);

    bench.kernel.inner().elements = elements;
    bench.actor.follow_time(&clock(HOUR + 1));
    assert_eq!(bench.list(HOUR + 1), []);
    bench.actor.look_round(&clock(HOUR + 1));
    bench.actor.look_round(&clock(HOUR + 2));
    assert_eq!(bench.board.current(), (State::Enforcing, None), "well again by itself");
    bench.scan("198.51.100.1/32", HOUR + 2);
    assert_eq!(bench.list(HOUR + 2).len(), 1, "and blocked again");
}

#[test]
fn an_address_unblocked_within_its_network_is_not_blocked_with_it_again() {
    let mut bench = bench(|_| {});
    bench.scan("2001:db8::/64", 0);
    bench.unblock("2001:db8::7", 1).unwrap();
    assert_eq!(bench.list(1), []);
    bench.scan("2001:db8::/64", 2);
    assert_eq!(bench.list(2), []);
}

#[test]
fn what_a_killed_instance_left_is_taken_over_with_its_remaining_time() {
    let kernel = FakeKernel::default();
    let left = [("198.51.100.1/32", 600), ("192.0.2.5/32", 600), ("198.51.100.2/32", 1_999_000)];
    let left = left.map(|(network, s)| (network.parse().unwrap(), Duration::from_secs(s)));
    kernel.inner().elements = Some(left.into());
    let mut bench = bench_on(kernel, |_| {});
    bench.actor.install(&clock(0)).unwrap();
    let listed = bench.list(0);
    let shown: Vec<_> = listed.iter().map(|b| (b.network.to_string(), b.until)).collect();
    assert_eq!(
        shown,
        [("198.51.100.1/32".to_owned(), EPOCH + 600), ("198.51.100.2/32".to_owned(), 0)],
        "an own address is released, what was to be prolonged stays"
    );
    assert_eq!(bench.kernel.holds("192.0.2.5/32"), None);
}

#[test]
fn a_step_of_the_wall_clock_moves_what_is_shown_and_frees_nobody() {
    let mut bench = bench(|_| {});
    bench.scan("198.51.100.1/32", 0);
    let stepped = WallClock::at(Moment::from_nanos(1_000_000_000), EPOCH + 1_000_000);
    bench.actor.follow_time(&stepped);
    let (reply, answer) = async_channel::bounded(1);
    bench.actor.carry_out(Order::List { reply }, &stepped);
    let listed: Vec<Listed> = answer.try_recv().unwrap();
    assert_eq!(listed[0].until, EPOCH + 1_000_000 - 1 + HOUR);
}
