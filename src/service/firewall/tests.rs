//! The firewall thread with the fake kernel: the life of a block, as users are promised.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use tempfile::TempDir;

use crate::block::backend::fake::FakeKernel;
use crate::block::store::flusher::flusher;
use crate::config::{Config, ExemptConfig};
use crate::handles::{Command, DetectorCommand, Listed, RequestError};
use crate::service::firewall::test_bench::{EPOCH, HOUR, bench, bench_on, clock};
use crate::system::scheduling::Realtime;
use crate::types::{
    BlockCause, BlockFailure, Event, ExemptReason, Host, Moment, SkipReason, State, UnblockCause,
    WallClock,
};

#[test]
fn scanner_is_blocked_in_the_kernel_listed_and_reported() {
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
fn block_that_the_kernel_refuses_is_not_reported_as_blocked() {
    let mut bench = bench(|_| {});
    bench.kernel.inner().out_of_order = true;
    bench.scan("198.51.100.1/32", 0);
    assert!(matches!(bench.skipped(), Some(SkipReason::Failed(_))));
    assert_eq!(bench.list(0), []);
    assert_eq!(bench.health.status().state, State::Degraded);
    assert!(matches!(bench.block("198.51.100.2", 0, 0), Err(RequestError::Failed(_))));

    bench.kernel.inner().out_of_order = false;
    bench.scan("198.51.100.1/32", 1);
    bench.maintain(1);
    assert_eq!(bench.state(), (State::Enforcing, None));
}

#[test]
fn block_expires_and_the_next_one_is_longer() {
    let mut bench = bench(|_| {});
    bench.scan("198.51.100.1/32", 0);
    bench.thread.expire(&clock(HOUR - 1));
    assert_eq!(bench.list(HOUR - 1).len(), 1);
    bench.events();
    bench.thread.expire(&clock(HOUR));
    assert_eq!(bench.list(HOUR), []);
    assert_eq!(bench.kernel.holds("198.51.100.1/32"), None);
    assert!(matches!(bench.events()[..], [Event::Unblocked { cause: UnblockCause::Expired, .. }]));
    assert!(matches!(bench.control.try_recv(), Ok(DetectorCommand::Forget(_))));

    bench.scan("198.51.100.1/32", HOUR + 1);
    let block = &bench.list(HOUR + 1)[0];
    assert_eq!((block.offences, block.until - block.since), (2, 4 * HOUR));
}

/// On a busy machine, a command and the end of a block may wait for the thread at the same time.
#[test]
fn expired_block_is_not_listed_however_late_the_thread_is() {
    let mut bench = bench(|_| {});
    bench.block("198.51.100.1", 60, 0).unwrap();
    let (reply, listed) = async_channel::bounded(1);
    let (commands_in, commands) = channel();
    commands_in.send(Command::List { reply }).unwrap();
    commands_in.send(Command::Stop).unwrap();
    // The machine has been up for longer than a minute.
    // Without a rules thread the rules stay, and the set with them.
    drop((bench.rules, bench.rules_commands));
    let scheduling = Realtime::new(Arc::default());
    bench.thread.run(None, &commands, &mut |_, _| {}, scheduling, || {}).unwrap_err();
    assert_eq!(listed.try_recv().unwrap(), []);
}

/// An attacker who keeps forging an address has it blocked for an hour at a time, not for a week.
#[test]
fn possible_decoy_is_always_blocked_as_a_first_offence() {
    let mut bench = bench(|_| {});
    for round in 0..3 {
        let now = round * 2 * HOUR;
        bench.scan_as("198.51.100.1/32", now, |scan| scan.decoy = true);
        let block = &bench.list(now)[0];
        assert_eq!((block.offences, block.until - block.since), (1, HOUR));
        let reason = "vertical scan: ports 1, 2, 3, 4, as others did at the same time (decoys?)";
        assert_eq!(block.reason, reason);
        bench.thread.expire(&clock(now + HOUR));
    }
    bench.scan("198.51.100.1/32", 7 * HOUR);
    assert_eq!(bench.list(7 * HOUR)[0].offences, 1, "decoys do not count");
}

#[test]
fn manually_unblocked_address_stays_unblocked_for_the_grace_period() {
    let mut bench = bench(|_| {});
    bench.scan("198.51.100.1/32", 0);
    bench.events();
    assert_eq!(bench.unblock("198.51.100.1", 5), Ok(()));
    assert_eq!(bench.kernel.holds("198.51.100.1/32"), None);
    bench.scan("198.51.100.1/32", 6);
    assert!(matches!(bench.skipped(), Some(SkipReason::Grace { .. })));
    assert_eq!(bench.list(6), []);

    bench.scan("198.51.100.1/32", 5 + HOUR);
    assert_eq!(bench.list(5 + HOUR).len(), 1, "the grace period has ended");
    assert!(matches!(bench.unblock("198.51.100.9", 5), Err(RequestError::NotBlocked(_))));
}

#[test]
fn manual_block_ends_the_grace_period() {
    let mut bench = bench(|_| {});
    bench.scan("198.51.100.1/32", 0);
    bench.unblock("198.51.100.1", 1).unwrap();
    bench.block("198.51.100.1", 60, 2).unwrap();
    bench.thread.expire(&clock(62));
    bench.scan("198.51.100.1/32", 63);
    assert_eq!(bench.list(63).len(), 1);
}

#[test]
fn exempt_address_is_not_blocked_on_any_path() {
    let mut bench = bench(|c| c.exempt.networks = vec!["203.0.113.0/24".parse().unwrap()]);
    bench.scan("203.0.113.7/32", 0);
    assert!(matches!(bench.skipped(), Some(SkipReason::Exempt(_))));
    for address in ["203.0.113.7", "203.0.0.0/16", "192.0.2.5", "192.0.2.0/24", "0.0.0.0/0"] {
        let answer = bench.block(address, 0, 0);
        assert!(matches!(answer, Err(RequestError::Exempt { .. })), "{address}: {answer:?}");
    }
    assert_eq!(bench.kernel.inner().elements.as_ref().map(BTreeMap::len), Some(0));
}

#[test]
fn newly_exempt_address_is_unblocked() {
    let mut bench = bench(|_| {});
    bench.scan("198.51.100.1/32", 0);
    bench.events();
    let host = Host::with_addresses(["198.51.100.1/24".parse().unwrap()]);
    bench.thread.handle(Command::Host(Arc::new(host)), &clock(1));
    assert_eq!(bench.list(1), []);
    assert_eq!(bench.kernel.holds("198.51.100.1/32"), None);
    assert!(matches!(bench.events()[..], [Event::Unblocked { cause: UnblockCause::Exempt, .. }]));
}

#[test]
fn peer_of_an_ssh_session_is_not_blocked_while_it_lasts() {
    let mut bench = bench(|_| {});
    bench.sessions(Some(&["198.51.100.1"]), 0);
    bench.scan("198.51.100.1/32", 0);
    let why = ExemptReason::SshSession("198.51.100.1".parse().unwrap());
    assert_eq!(bench.skipped(), Some(SkipReason::Exempt(why.clone())));
    let refused = bench.block("198.51.100.0/24", 0, 0).unwrap_err().to_string();
    assert_eq!(refused, format!("198.51.100.0/24 is never blocked: {why}"));

    bench.sessions(Some(&[]), 100);
    assert_eq!(bench.list(100), [], "it scanned more than a window ago");
    bench.scan("198.51.100.1/32", 101);
    assert_eq!(bench.list(101).len(), 1, "the session has ended");
}

#[test]
fn exempt_scanner_is_blocked_as_soon_as_its_exemption_ends() {
    let mut bench = bench(|_| {});
    bench.sessions(Some(&["198.51.100.1"]), 0);
    bench.scan("198.51.100.1/32", 10);
    bench.sessions(Some(&[]), 50);
    assert!(bench.kernel.drops("198.51.100.1/32"));

    let host =
        |address: &str| Command::Host(Arc::new(Host::with_addresses([address.parse().unwrap()])));
    bench.thread.handle(host("198.51.100.2/24"), &clock(51));
    bench.scan("198.51.100.2/32", 52);
    assert!(matches!(bench.skipped(), Some(SkipReason::Exempt(_))));
    bench.thread.handle(host("198.51.100.3/24"), &clock(53));
    assert!(bench.kernel.drops("198.51.100.2/32"));
}

#[test]
fn blocked_peer_of_an_ssh_session_is_unblocked() {
    let mut bench = bench(|_| {});
    for network in ["198.51.100.1", "198.51.100.0/24", "198.51.100.2", "2001:db8::/64"] {
        bench.block(network, 0, 0).unwrap();
    }
    bench.sessions(Some(&["198.51.100.1", "2001:db8::7", "203.0.113.1"]), 1);
    let left: Vec<_> = bench.list(1).iter().map(|block| block.network.to_string()).collect();
    assert_eq!(left, ["198.51.100.2/32"]);
    assert_eq!(bench.kernel.inner().elements.as_ref().map(BTreeMap::len), Some(1));
}

#[test]
fn state_is_degraded_while_the_kernel_does_not_list_sessions() {
    let mut bench = bench(|_| {});
    bench.sessions(Some(&["198.51.100.1"]), 0);
    bench.sessions(None, 1);
    bench.scan("198.51.100.1/32", 1);
    assert_eq!(bench.list(1), [], "the last answer still counts");
    let (state, reason) = bench.state();
    assert_eq!(state, State::Degraded);
    assert!(reason.unwrap().contains("tcp_diag"));
    bench.sessions(Some(&[]), 2);
    bench.scan("198.51.100.1/32", 2);
    assert_eq!((bench.list(2).len(), bench.state()), (1, (State::Enforcing, None)));
}

#[test]
fn observer_reports_and_does_not_touch_the_kernel() {
    let mut bench = bench(|c| c.block.enabled = false);
    bench.scan("198.51.100.1/32", 0);
    assert_eq!(bench.skipped(), Some(SkipReason::Observing));
    assert_eq!(bench.kernel.inner().elements, None);
    let status = bench.health.status();
    assert_eq!((status.state, status.backend), (State::Observing, "none"));
    let refused = bench.block("198.51.100.1", 0, 0);
    assert_eq!(refused, Err(RequestError::Failed(BlockFailure::Observing)));
    bench.maintain(1);
    assert_eq!(bench.health.status().state, State::Observing);
}

/// A failed reload leaves all of the running configuration in force.
#[test]
fn exemptions_of_a_refused_configuration_do_not_count() {
    let mut bench = bench_on(FakeKernel::default(), None, |config| config.block.enabled = false);
    bench.install(0);
    let refuses = FakeKernel::default();
    refuses.inner().out_of_order = true;
    let network = "198.51.100.1/32".parse().unwrap();
    *bench.next_backend.lock().unwrap() = Some(refuses);
    let exempt = ExemptConfig { networks: vec![network], automatic: true };
    let new = Config { exempt, ..Config::default() };
    bench.reconfigure(new, 1).unwrap_err();
    assert_eq!(bench.thread.policy.exemptions().reason(&network), None);
    bench.scan("198.51.100.1/32", 2);
    assert!(matches!(bench.skipped(), Some(SkipReason::Observing)));
}

#[test]
fn flood_of_scans_causes_no_more_blocks_than_the_rate_limit() {
    let mut bench = bench(|c| c.block.max_per_minute = 12.try_into().unwrap());
    for last in 1..=10 {
        bench.scan(&format!("198.51.100.{last}/32"), 0);
    }
    assert_eq!(bench.list(0).len(), 3);
    let (state, reason) = bench.state();
    assert_eq!(state, State::Degraded);
    assert!(reason.unwrap().contains("block.max_per_minute"));
    assert_eq!(bench.block("198.51.100.99", 0, 0), Ok(()), "manual blocks do not count");
    bench.maintain(59);
    assert_eq!(bench.health.status().state, State::Degraded);
    bench.maintain(60);
    assert_eq!(bench.health.status().state, State::Enforcing);
}

#[test]
fn throttled_source_is_blocked_when_the_rate_limit_permits() {
    let mut bench = bench(|c| c.block.max_per_minute = 1.try_into().unwrap());
    for source in ["198.51.100.1/32", "198.51.100.2/32"] {
        bench.scan(source, 0);
    }
    assert_eq!(bench.list(0).len(), 1);
    // It keeps scanning, and the detector reports it again a window later.
    bench.scan_as("198.51.100.2/32", 60, |scan| scan.continued = true);
    assert_eq!(bench.list(60).len(), 2);
    bench.maintain(60);
    assert_eq!(bench.state(), (State::Enforcing, None));
    let changes = bench.events().into_iter().filter_map(|event| match event {
        Event::StateChanged { state, .. } => Some(state),
        _ => None,
    });
    assert_eq!(changes.collect::<Vec<_>>(), [State::Degraded, State::Enforcing]);
}

#[test]
fn block_that_the_kernel_refuses_to_end_ends_later() {
    let mut bench = bench(|_| {});
    bench.scan("198.51.100.1/32", 0);
    bench.kernel.inner().out_of_order = true;
    bench.thread.expire(&clock(HOUR));
    assert_eq!(bench.list(HOUR).len(), 1, "the kernel has not unblocked it");
    bench.maintain(HOUR);
    assert_eq!(bench.health.status().state, State::Degraded);

    bench.kernel.inner().out_of_order = false;
    bench.thread.expire(&clock(HOUR + 1));
    assert_eq!(bench.list(HOUR + 1), []);
    bench.maintain(HOUR + 1);
    bench.maintain(HOUR + 2);
    assert_eq!(bench.state(), (State::Enforcing, None), "recovered without help");
    bench.scan("198.51.100.1/32", HOUR + 2);
    assert_eq!(bench.list(HOUR + 2).len(), 1, "and blocked again");
}

#[test]
fn network_of_an_unblocked_address_is_not_blocked_again() {
    let mut bench = bench(|_| {});
    bench.scan("2001:db8::/64", 0);
    bench.unblock("2001:db8::7", 1).unwrap();
    assert_eq!(bench.list(1), []);
    bench.scan("2001:db8::/64", 2);
    assert_eq!(bench.list(2), []);
}

#[test]
fn blocks_of_a_killed_instance_are_adopted_with_their_remaining_time() {
    let kernel = FakeKernel::default();
    let left = [("198.51.100.1/32", 600), ("192.0.2.5/32", 600), ("198.51.100.2/32", 1_999_000)];
    let left = left.map(|(network, s)| (network.parse().unwrap(), Duration::from_secs(s)));
    kernel.inner().elements = Some(left.into());
    let mut bench = bench_on(kernel, None, |_| {});
    bench.install(0);
    let listed = bench.list(0);
    let shown: Vec<_> = listed.iter().map(|b| (b.network.to_string(), b.until)).collect();
    assert_eq!(
        shown,
        [("198.51.100.1/32".to_owned(), EPOCH + 600), ("198.51.100.2/32".to_owned(), 0)],
        "an own address is unblocked, a block without an end stays"
    );
    assert_eq!(bench.kernel.holds("192.0.2.5/32"), None);
}

#[test]
fn step_of_the_wall_clock_changes_displayed_times_and_unblocks_nothing() {
    let mut bench = bench(|_| {});
    bench.scan("198.51.100.1/32", 0);
    let stepped = WallClock::at(Moment::from_nanos(1_000_000_000), EPOCH + 1_000_000);
    bench.thread.expire(&stepped);
    let (reply, answer) = async_channel::bounded(1);
    bench.thread.handle(Command::List { reply }, &stepped);
    let listed: Vec<Listed> = answer.try_recv().unwrap();
    assert_eq!(listed[0].until, EPOCH + 1_000_000 - 1 + HOUR);
}

/// Otherwise the rule of the dead instance would stay forever.
#[test]
fn observer_removes_what_a_killed_enforcer_left() {
    let left = FakeKernel::default();
    left.inner().elements = Some([("198.51.100.1/32".parse().unwrap(), Duration::MAX)].into());
    let mut bench = bench_on(left.clone(), None, |config| config.block.enabled = false);
    bench.install(0);
    assert_eq!(left.inner().elements, None);
    assert_eq!(bench.list(0), []);
}

#[test]
fn suspended_blocks_return_when_the_service_blocks_again() {
    let state = TempDir::new().unwrap();
    let (store_path, _) = flusher(state.path().join("tcptracker.db"));
    let mut bench = bench_on(FakeKernel::default(), Some(store_path), |_| {});
    bench.install(0);
    bench.scan("198.51.100.1/32", 0);
    let mut config = Config::default();
    config.block.enabled = false;
    bench.reconfigure(config, 1).unwrap();
    assert_eq!((bench.list(1), bench.health.status().backend), (Vec::new(), "none"));
    assert_eq!(bench.kernel.inner().elements, None);

    let next = FakeKernel::default();
    *bench.next_backend.lock().unwrap() = Some(next.clone());
    bench.reconfigure(Config::default(), 2).unwrap();
    assert_eq!(bench.list(2).len(), 1);
    assert_eq!(next.holds("198.51.100.1/32"), Some(Duration::from_secs(HOUR - 2)));
    assert_eq!(bench.health.status().backend, "fake");
}
