//! The actor against the fake kernel: what users are promised of a block's life.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::block::backend::fake::FakeKernel;
use crate::config::{Config, ExemptConfig};
use crate::handles::detector::DetectorCommand;
use crate::handles::firewall::{Command, Listed, RequestError};
use crate::service::firewall::test_bench::{EPOCH, HOUR, bench, bench_on, clock};
use crate::types::block::{BlockCause, ExemptReason, SkipReason, UnblockCause};
use crate::types::clock::{Moment, WallClock};
use crate::types::event::Event;
use crate::types::host::Host;
use crate::types::state::State;

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
    bench.kernel.inner().out_of_order = true;
    bench.scan("198.51.100.1/32", 0);
    assert!(matches!(bench.spared(), Some(SkipReason::Failed(_))));
    assert_eq!(bench.list(0), []);
    assert_eq!(bench.health.status().state, State::Degraded);
    assert!(matches!(bench.block("198.51.100.2", 0, 0), Err(RequestError::Kernel(_))));

    bench.kernel.inner().out_of_order = false;
    bench.scan("198.51.100.1/32", 1);
    bench.thread.look_round(&clock(1));
    assert_eq!(bench.state(), (State::Enforcing, None));
}

#[test]
fn a_block_ends_when_its_time_is_up_and_the_next_is_longer() {
    let mut bench = bench(|_| {});
    bench.scan("198.51.100.1/32", 0);
    bench.thread.follow_time(&clock(HOUR - 1));
    assert_eq!(bench.list(HOUR - 1).len(), 1);
    bench.events();
    bench.thread.follow_time(&clock(HOUR));
    assert_eq!(bench.list(HOUR), []);
    assert_eq!(bench.kernel.holds("198.51.100.1/32"), None);
    assert!(matches!(bench.events()[..], [Event::Unblocked { cause: UnblockCause::Expired, .. }]));
    assert!(matches!(bench.control.try_recv(), Ok(DetectorCommand::Forget(_))));

    bench.scan("198.51.100.1/32", HOUR + 1);
    let block = &bench.list(HOUR + 1)[0];
    assert_eq!((block.offences, block.until - block.since), (2, 4 * HOUR));
}

/// An order may wait for this thread together with the end of a block, on a busy machine.
#[test]
fn whose_time_is_up_is_not_listed_however_late_that_is_noticed() {
    let mut bench = bench(|_| {});
    bench.block("198.51.100.1", 60, 0).unwrap();
    let (reply, listed) = async_channel::bounded(1);
    let (orders_in, orders) = channel();
    orders_in.send(Command::List { reply }).unwrap();
    orders_in.send(Command::Stop).unwrap();
    // The machine is up for longer than a minute.
    bench.thread.run(&orders, || {}).unwrap();
    assert_eq!(listed.try_recv().unwrap(), []);
}

/// Whoever forges somebody's address again and again keeps him out for an hour at a time, not for a week.
#[test]
fn a_decoy_is_blocked_as_for_a_first_offence_and_it_counts_for_nothing() {
    let mut bench = bench(|_| {});
    let others = vec![IpAddr::from([198, 51, 100, 2])];
    for round in 0..3 {
        let now = round * 2 * HOUR;
        bench.scan_as("198.51.100.1/32", now, |scan| scan.others = others.clone());
        let block = &bench.list(now)[0];
        assert_eq!((block.offences, block.until - block.since), (1, HOUR));
        let reason = "vertical scan: ports 1, 2, 3, 4, as others did at the same time (decoys?)";
        assert_eq!(block.reason, reason);
        bench.thread.follow_time(&clock(now + HOUR));
    }
    bench.scan("198.51.100.1/32", 7 * HOUR);
    assert_eq!(bench.list(7 * HOUR)[0].offences, 1, "the first of his own");
}

#[test]
fn unblocked_by_hand_stays_unblocked_for_the_grace_period() {
    let mut bench = bench(|_| {});
    bench.scan("198.51.100.1/32", 0);
    bench.events();
    assert_eq!(bench.unblock("198.51.100.1", 5), Ok(()));
    assert_eq!(bench.kernel.holds("198.51.100.1/32"), None);
    bench.scan("198.51.100.1/32", 6);
    assert!(matches!(bench.spared(), Some(SkipReason::Grace { .. })));
    assert_eq!(bench.list(6), []);

    bench.scan("198.51.100.1/32", 5 + HOUR);
    assert_eq!(bench.list(5 + HOUR).len(), 1, "the grace is over");
    assert!(matches!(bench.unblock("198.51.100.9", 5), Err(RequestError::NotBlocked(_))));
}

#[test]
fn a_block_by_hand_ends_the_grace() {
    let mut bench = bench(|_| {});
    bench.scan("198.51.100.1/32", 0);
    bench.unblock("198.51.100.1", 1).unwrap();
    bench.block("198.51.100.1", 60, 2).unwrap();
    bench.thread.follow_time(&clock(62));
    bench.scan("198.51.100.1/32", 63);
    assert_eq!(bench.list(63).len(), 1);
}

#[test]
fn nobody_exempt_is_blocked_by_any_path() {
    let mut bench = bench(|c| c.exempt.networks = vec!["203.0.113.0/24".parse().unwrap()]);
    bench.scan("203.0.113.7/32", 0);
    assert!(matches!(bench.spared(), Some(SkipReason::Exempt(_))));
    for address in ["203.0.113.7", "203.0.0.0/16", "192.0.2.5", "192.0.2.0/24", "0.0.0.0/0"] {
        let answer = bench.block(address, 0, 0);
        assert!(matches!(answer, Err(RequestError::Exempt { .. })), "{address}: {answer:?}");
    }
    assert_eq!(bench.kernel.inner().elements.as_ref().map(BTreeMap::len), Some(0));
}

#[test]
fn an_address_that_becomes_exempt_is_released() {
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
fn who_has_an_ssh_session_is_not_blocked_as_long_as_it_lasts() {
    let mut bench = bench(|_| {});
    bench.sessions(Some(&["198.51.100.1"]));
    bench.scan("198.51.100.1/32", 0);
    let why = ExemptReason::SshSession("198.51.100.1".parse().unwrap());
    assert_eq!(bench.spared(), Some(SkipReason::Exempt(why.clone())));
    let refused = bench.block("198.51.100.0/24", 0, 0).unwrap_err().to_string();
    assert_eq!(refused, format!("198.51.100.0/24 is never blocked: {why}"));

    bench.sessions(Some(&[]));
    bench.scan("198.51.100.1/32", 1);
    assert_eq!(bench.list(1).len(), 1, "it is over");
}

#[test]
fn who_gets_an_ssh_session_although_blocked_is_released() {
    let mut bench = bench(|_| {});
    for network in ["198.51.100.1", "198.51.100.0/24", "198.51.100.2", "2001:db8::/64"] {
        bench.block(network, 0, 0).unwrap();
    }
    bench.sessions(Some(&["198.51.100.1", "2001:db8::7", "203.0.113.1"]));
    bench.thread.look_round(&clock(1));
    let left: Vec<_> = bench.list(1).iter().map(|block| block.network.to_string()).collect();
    assert_eq!(left, ["198.51.100.2/32"]);
    assert_eq!(bench.kernel.inner().elements.as_ref().map(BTreeMap::len), Some(1));
}

#[test]
fn sessions_nobody_tells_of_are_no_secret() {
    let mut bench = bench(|_| {});
    bench.sessions(Some(&["198.51.100.1"]));
    bench.scan("198.51.100.1/32", 0);
    bench.sessions(None);
    bench.scan("198.51.100.1/32", 1);
    assert_eq!(bench.list(1), [], "those of before still count");
    let (state, reason) = bench.state();
    assert_eq!(state, State::Degraded);
    assert!(reason.unwrap().contains("tcp_diag"));
    bench.sessions(Some(&[]));
    bench.scan("198.51.100.1/32", 2);
    assert_eq!((bench.list(2).len(), bench.state()), (1, (State::Enforcing, None)));
}

#[test]
fn that_nobody_tells_of_sessions_is_said_no_longer_than_it_is_so() {
    let mut bench = bench(|_| {});
    bench.sessions(None);
    bench.scan("198.51.100.1/32", 0);
    bench.unblock("198.51.100.1", 1).unwrap();
    bench.thread.look_round(&clock(2));
    assert_eq!(bench.health.status().state, State::Degraded);
    bench.sessions(Some(&[]));
    bench.thread.look_round(&clock(3));
    assert_eq!(bench.state(), (State::Enforcing, None), "though nobody is blocked");
}

#[test]
fn observing_reports_and_leaves_the_kernel_alone() {
    let mut bench = bench(|c| c.block.enabled = false);
    bench.scan("198.51.100.1/32", 0);
    assert_eq!(bench.spared(), Some(SkipReason::Observing));
    assert_eq!(bench.kernel.holds("198.51.100.1/32"), None);
    assert_eq!(bench.health.status().state, State::Observing);
}

/// A reload that fails leaves all of the running configuration in force.
#[test]
fn who_a_refused_configuration_would_exempt_is_not_exempt() {
    let mut bench = bench_on(FakeKernel::default(), None, |config| config.block.enabled = false);
    bench.thread.install(&clock(0), &mut |_, _| {}).unwrap();
    let refuses = FakeKernel::default();
    refuses.inner().out_of_order = true;
    let network = "198.51.100.1/32".parse().unwrap();
    *bench.next_backend.lock().unwrap() = Some(refuses);
    let exempt = ExemptConfig { networks: vec![network], automatic: true };
    let new = Config { exempt, ..Config::default() };
    bench.thread.reconfigure(new, &clock(1)).unwrap_err();
    assert_eq!(bench.thread.exemptions.forbid(&network), None);
    bench.scan("198.51.100.1/32", 2);
    assert!(matches!(bench.spared(), Some(SkipReason::Observing)));
}

#[test]
fn a_flood_of_scans_buys_no_more_blocks_than_the_guard_permits() {
    let mut bench = bench(|c| c.block.max_per_minute = crate::config::Rate(3));
    for last in 1..=10 {
        bench.scan(&format!("198.51.100.{last}/32"), 0);
    }
    assert_eq!(bench.list(0).len(), 3);
    let (state, reason) = bench.state();
    assert_eq!(state, State::Degraded);
    assert!(reason.unwrap().contains("block.max_per_minute"));
    assert_eq!(bench.block("198.51.100.99", 0, 0), Ok(()), "by hand is no flood");
    bench.thread.look_round(&clock(59));
    assert_eq!(bench.health.status().state, State::Degraded);
    bench.thread.look_round(&clock(60));
    assert_eq!(bench.health.status().state, State::Enforcing);
}

#[test]
fn who_was_held_back_is_blocked_when_the_guard_permits() {
    let mut bench = bench(|c| c.block.max_per_minute = crate::config::Rate(1));
    for source in ["198.51.100.1/32", "198.51.100.2/32"] {
        bench.scan(source, 0);
    }
    assert_eq!(bench.list(0).len(), 1);
    // It goes on, and is handed over again a window later.
    bench.scan_as("198.51.100.2/32", 60, |scan| scan.continued = true);
    assert_eq!(bench.list(60).len(), 2);
    bench.thread.look_round(&clock(60));
    assert_eq!(bench.state(), (State::Enforcing, None));
    let changes = bench.events().into_iter().filter_map(|event| match event {
        Event::StateChanged { state, .. } => Some(state),
        _ => None,
    });
    assert_eq!(changes.collect::<Vec<_>>(), [State::Degraded, State::Enforcing]);
}

#[test]
fn what_the_kernel_refuses_to_end_is_ended_later() {
    let mut bench = bench(|_| {});
    bench.scan("198.51.100.1/32", 0);
    bench.kernel.inner().out_of_order = true;
    bench.thread.follow_time(&clock(HOUR));
    assert_eq!(bench.list(HOUR).len(), 1, "the kernel did not say that it is over");
    bench.thread.look_round(&clock(HOUR));
    assert_eq!(bench.health.status().state, State::Degraded);

    bench.kernel.inner().out_of_order = false;
    bench.thread.follow_time(&clock(HOUR + 1));
    assert_eq!(bench.list(HOUR + 1), []);
    bench.thread.look_round(&clock(HOUR + 1));
    bench.thread.look_round(&clock(HOUR + 2));
    assert_eq!(bench.state(), (State::Enforcing, None), "well again by itself");
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
    let mut bench = bench_on(kernel, None, |_| {});
    bench.thread.install(&clock(0), &mut |_, _| {}).unwrap();
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
    bench.thread.follow_time(&stepped);
    let (reply, answer) = async_channel::bounded(1);
    bench.thread.handle(Command::List { reply }, &stepped);
    let listed: Vec<Listed> = answer.try_recv().unwrap();
    assert_eq!(listed[0].until, EPOCH + 1_000_000 - 1 + HOUR);
}
