//! The firewall thread with the fake kernel: other programs interfere, or there is no room.

use std::time::Duration;

use crate::block::backend::fake::Inner;
use crate::handles::RequestError;
use crate::service::firewall::TICK;
use crate::service::firewall::test_bench::{Bench, HOUR, bench};
use crate::types::{BlockFailure, Event, Moment, SkipReason, State, UnblockCause};

const SCANNER: &str = "198.51.100.1/32";

impl Bench {
    /// Damages the kernel and runs one round of maintenance. Returns what the thread reports.
    fn after(&mut self, second: u64, damage: impl FnOnce(&mut Inner)) -> Vec<String> {
        self.events();
        damage(&mut self.kernel.inner());
        self.maintain(second);
        let reported = self.events().into_iter().filter_map(|event| match event {
            Event::StateChanged { state, reason: None, .. } => Some(state.to_string()),
            Event::StateChanged { state, reason: Some(reason), .. } => {
                Some(format!("{state}: {reason}"))
            }
            Event::Repaired { found } => Some(format!("repaired: {found}")),
            _ => None,
        });
        reported.collect()
    }
}

type Damage = fn(&mut Inner);

#[test]
fn every_kind_of_damage_is_reported_and_repaired() {
    const NONE: &str = "blocks are not enforced";
    const SOME: &str = "some blocks are not enforced";
    let damages: [(&str, &str, Damage); 8] = [
        (NONE, "hook INPUT (ipv4) was missing", |kernel| kernel.input.clear()),
        ("blocks may not be enforced", "hook INPUT (ipv4) was not the first rule", |kernel| {
            kernel.input.insert(0, "ACCEPT");
        }),
        (NONE, "rule (ipv4) was missing or changed", |kernel| kernel.chain = Some(Vec::new())),
        (NONE, "hook INPUT (ipv4) was missing, chain tcptracker (ipv4) was missing", |kernel| {
            (kernel.chain, kernel.input) = (None, vec!["ACCEPT"]);
        }),
        (NONE, "set (ipv4) was missing or of another type", |kernel| kernel.elements = None),
        (SOME, "1 set member (ipv4) was missing", |kernel| {
            kernel.elements.as_mut().unwrap().clear();
        }),
        (
            "the kernel drops packets of sources that are not blocked",
            "1 set member (ipv6) was unexpected",
            |kernel| {
                let elements = kernel.elements.as_mut().unwrap();
                elements.insert("2001:db8::/32".parse().unwrap(), Duration::MAX);
            },
        ),
        (SOME, "1 set member (ipv4) was missing, 1 was unexpected", |kernel| {
            let elements = kernel.elements.as_mut().unwrap();
            let (_, time) = elements.pop_first().unwrap();
            elements.insert("203.0.113.1/32".parse().unwrap(), time);
        }),
    ];
    for (effect, found, damage) in damages {
        let mut bench = bench(|_| {});
        bench.scan(SCANNER, 0);
        let reported = bench.after(1, damage);
        assert_eq!(
            reported,
            [
                format!("degraded: {effect}: {found}"),
                format!("repaired: {found}"),
                "enforcing".to_owned()
            ]
        );
        assert!(bench.kernel.drops(SCANNER), "{found}");
        let left = bench.kernel.inner().elements.as_ref().unwrap().len();
        assert_eq!(left, 1, "{found}: nothing else is blocked");
        assert_eq!(bench.after(2, |_| {}), Vec::<String>::new(), "{found}: reported once");
    }
}

/// Otherwise a client that sends commands all the time would postpone repairs.
#[test]
fn commands_do_not_postpone_maintenance() {
    let mut bench = bench(|_| {});
    let at = |millis: u64| Moment::from_nanos(millis * 1_000_000);
    let pause = |bench: &Bench, now: u64| bench.thread.pause(at(now), at(1000));
    assert_eq!(pause(&bench, 1000), TICK);
    assert_eq!(pause(&bench, 1499), Duration::from_millis(1));
    assert_eq!(pause(&bench, 1500), Duration::ZERO);
    // The end of a block comes first.
    bench.block("203.0.113.1", 1, 0).unwrap();
    bench.block("203.0.113.2", 60, 0).unwrap();
    assert_eq!(pause(&bench, 700), Duration::from_millis(300));
}

#[test]
fn repair_keeps_the_remaining_time_of_a_block() {
    let mut bench = bench(|_| {});
    bench.scan(SCANNER, 0);
    bench.after(600, |kernel| kernel.elements = None);
    let left = bench.kernel.holds(SCANNER).map(|time| time.as_secs());
    assert_eq!(left, Some(HOUR - 600));
}

#[test]
fn block_repairs_damage_at_once() {
    let mut bench = bench(|_| {});
    bench.kernel.inner().elements = None;
    bench.scan(SCANNER, 0);
    assert!(bench.kernel.drops(SCANNER));
    assert_eq!(bench.list(0).len(), 1);
}

#[test]
fn failed_repair_is_reported_until_one_succeeds() {
    let mut bench = bench(|_| {});
    bench.scan(SCANNER, 0);
    let reported = bench.after(1, |kernel| (kernel.out_of_order, kernel.chain) = (true, None));
    assert!(reported.last().unwrap().contains("repair failed: "), "{reported:?}");
    assert_eq!(bench.health.status().state, State::Degraded);
    let reported = bench.after(2, |kernel| kernel.out_of_order = false);
    assert_eq!(reported, ["repaired: chain tcptracker (ipv4) was missing", "enforcing"]);
}

#[test]
fn repairs_go_on_while_another_program_undoes_them_and_are_reported_rarely() {
    let mut bench = bench(|_| {});
    bench.scan(SCANNER, 0);
    let mut reported = Vec::new();
    for second in 1..=120 {
        reported.extend(bench.after(second, |kernel| kernel.input.insert(0, "ACCEPT")));
    }
    let mends = bench.kernel.inner().mends;
    assert!(mends >= 60, "{mends} in two minutes");
    let repairs = reported.iter().filter(|line| line.starts_with("repaired: ")).count();
    assert!((5..20).contains(&repairs), "{repairs} reported in two minutes");
    let complaint = "degraded: another program keeps undoing repairs";
    let complaints = reported.iter().filter(|line| line.starts_with(complaint)).count();
    assert_eq!(complaints, 1, "reported once: {reported:?}");
    assert_eq!(bench.health.status().state, State::Degraded);

    for second in 121..200 {
        bench.after(second, |_| {});
    }
    assert!(bench.kernel.drops(SCANNER));
    assert_eq!(bench.state(), (State::Enforcing, None), "the other program has stopped");
}

#[test]
fn state_recovers_a_minute_after_the_last_undone_repair() {
    let mut bench = bench(|_| {});
    let mut second = 0;
    while !bench.health.status().reason.is_some_and(|reason| reason.starts_with("another program"))
    {
        second += 1;
        bench.after(second, |kernel| kernel.input.insert(0, "ACCEPT"));
        assert!(second < 60);
    }
    bench.after(second + 1, |kernel| kernel.input.retain(|target| *target == "tcptracker"));
    assert_eq!(
        bench.health.status().state,
        State::Degraded,
        "the other program may only be pausing"
    );
    bench.after(second + 61, |_| {});
    assert_eq!(bench.state(), (State::Enforcing, None));
}

#[test]
fn repeatedly_failing_repair_is_not_blamed_on_another_program() {
    let mut bench = bench(|_| {});
    bench.after(1, |kernel| (kernel.out_of_order, kernel.chain) = (true, None));
    for second in 2..60 {
        bench.after(second, |_| {});
        let reason = bench.health.status().reason.unwrap();
        assert!(reason.contains("repair failed"), "{reason}");
    }
}

#[test]
fn full_list_evicts_the_scanner_that_has_sent_the_fewest_probes() {
    let mut bench = bench(|_| {});
    bench.kernel.inner().capacity = Some(3);
    bench.block("203.0.113.1", 60, 0).unwrap();
    bench.scan("198.51.100.1/32", 5);
    bench.scan("198.51.100.2/32", 10);
    // The older one goes on although it is blocked.
    bench.scan_as("198.51.100.1/32", 11, |scan| (scan.probes, scan.continued) = (8, true));
    bench.events();

    bench.scan("198.51.100.3/32", 20);
    assert!(bench.kernel.drops("198.51.100.3/32"));
    assert!(bench.kernel.drops("198.51.100.1/32"));
    assert_eq!(bench.kernel.holds("198.51.100.2/32"), None, "4 probes");
    assert!(bench.kernel.drops("203.0.113.1/32"), "a manual block stays");
    let evicted = bench.events().into_iter().any(|event| {
        matches!(event, Event::Unblocked { cause: UnblockCause::Evicted, network, .. }
            if network.to_string() == "198.51.100.2/32")
    });
    assert!(evicted);
    let (state, reason) = bench.state();
    assert_eq!(state, State::Degraded);
    assert!(reason.unwrap().contains("block limit reached (3 per address family)"));

    let refused = bench.block("203.0.113.2", 60, 21);
    assert!(matches!(&refused, Err(RequestError::Failed(BlockFailure::Full(3)))), "{refused:?}");
    assert_eq!(bench.list(21).len(), 3);

    bench.unblock("203.0.113.1", 22).unwrap();
    bench.maintain(22);
    assert_eq!(bench.state(), (State::Enforcing, None), "there is room again");
}

#[test]
fn single_free_place_does_not_end_the_degraded_state() {
    let mut bench = bench(|_| {});
    bench.kernel.inner().capacity = Some(200);
    for last in 0..201 {
        bench.scan(&format!("198.51.100.{last}/32"), last);
    }
    let state = |bench: &Bench| bench.health.status().state;
    assert_eq!(state(&bench), State::Degraded);
    let unblocked = |bench: &mut Bench, last: u64| {
        bench.unblock(&format!("198.51.100.{last}"), 300 + last).unwrap();
        bench.maintain(300 + last);
    };
    for last in [1, 2] {
        unblocked(&mut bench, last);
        assert_eq!(state(&bench), State::Degraded, "{last}");
    }
    unblocked(&mut bench, 3);
    assert_eq!(state(&bench), State::Enforcing);
}

#[test]
fn manual_blocks_are_never_evicted() {
    let mut bench = bench(|_| {});
    bench.kernel.inner().capacity = Some(1);
    bench.block("203.0.113.1", 60, 0).unwrap();
    bench.scan(SCANNER, 1);
    assert!(matches!(bench.skipped(), Some(SkipReason::Failed(_))));
    assert!(bench.kernel.drops("203.0.113.1/32"));
}
