//! The actor against the fake kernel: what it does when others interfere, and when there is no room.

use std::time::Duration;

use crate::block::backend::fake::Inner;
use crate::handles::firewall::RequestError;
use crate::service::firewall::TICK;
use crate::service::firewall::test_bench::{Bench, HOUR, bench, clock};
use crate::types::block::{SkipReason, UnblockCause};
use crate::types::clock::Moment;
use crate::types::event::Event;
use crate::types::state::State;

const SCANNER: &str = "198.51.100.1/32";

impl Bench {
    /// Something happens to the kernel, and the actor looks round; what it says of it.
    fn after(&mut self, second: u64, damage: impl FnOnce(&mut Inner)) -> Vec<String> {
        self.events();
        damage(&mut self.kernel.inner());
        self.thread.look_round(&clock(second));
        let told = self.events().into_iter().filter_map(|event| match event {
            Event::StateChanged { state, reason: None } => Some(state.to_string()),
            Event::StateChanged { state, reason: Some(reason) } => {
                Some(format!("{state}: {reason}"))
            }
            Event::Repaired { found } => Some(format!("mended: {found}")),
            _ => None,
        });
        told.collect()
    }
}

type Damage = fn(&mut Inner);

#[test]
fn whatever_is_damaged_is_told_and_mended() {
    let damages: [(&str, Damage); 8] = [
        ("hook INPUT (ipv4) gone", |kernel| kernel.input.clear()),
        ("hook INPUT (ipv4) not the first rule", |kernel| kernel.input.insert(0, "ACCEPT")),
        ("rule (ipv4) gone or changed", |kernel| kernel.chain = Some(Vec::new())),
        ("hook INPUT (ipv4) gone, chain tcptracker (ipv4) gone", |kernel| {
            (kernel.chain, kernel.input) = (None, vec!["ACCEPT"]);
        }),
        ("set (ipv4) gone or of another kind", |kernel| kernel.elements = None),
        ("1 blocked (ipv4) missing", |kernel| {
            kernel.elements.as_mut().unwrap().clear();
        }),
        ("1 not blocked (ipv6) there", |kernel| {
            let elements = kernel.elements.as_mut().unwrap();
            elements.insert("2001:db8::/32".parse().unwrap(), Duration::MAX);
        }),
        ("1 blocked (ipv4) missing and 1 not blocked there", |kernel| {
            let elements = kernel.elements.as_mut().unwrap();
            let (_, time) = elements.pop_first().unwrap();
            elements.insert("203.0.113.1/32".parse().unwrap(), time);
        }),
    ];
    for (found, damage) in damages {
        let mut bench = bench(|_| {});
        bench.scan(SCANNER, 0);
        let told = bench.after(1, damage);
        assert_eq!(
            told,
            [
                format!("degraded: blocks are not enforced: {found}"),
                format!("mended: {found}"),
                "enforcing".to_owned()
            ]
        );
        assert!(bench.kernel.drops(SCANNER), "{found}");
        let left = bench.kernel.inner().elements.as_ref().unwrap().len();
        assert_eq!(left, 1, "{found}: nobody else is blocked");
        assert_eq!(bench.after(2, |_| {}), Vec::<String>::new(), "{found}: told once");
    }
}

/// Else somebody who asks for something all the time would put off what mends.
#[test]
fn orders_do_not_put_off_the_next_look() {
    let mut bench = bench(|_| {});
    let at = |millis: u64| Moment::from_nanos(millis * 1_000_000);
    let pause = |bench: &Bench, now: u64| bench.thread.pause(at(now), at(1000));
    assert_eq!(pause(&bench, 1000), TICK);
    assert_eq!(pause(&bench, 1399), Duration::from_millis(1));
    assert_eq!(pause(&bench, 1500), Duration::ZERO);
    // What ends sooner comes sooner.
    bench.block("203.0.113.1", 1, 0).unwrap();
    bench.block("203.0.113.2", 60, 0).unwrap();
    assert_eq!(pause(&bench, 700), Duration::from_millis(300));
}

#[test]
fn a_mend_leaves_a_block_its_remaining_time() {
    let mut bench = bench(|_| {});
    bench.scan(SCANNER, 0);
    bench.after(600, |kernel| kernel.elements = None);
    let left = bench.kernel.holds(SCANNER).map(|time| time.as_secs());
    assert_eq!(left, Some(HOUR - 600));
}

#[test]
fn a_block_that_meets_damage_is_made_at_once() {
    let mut bench = bench(|_| {});
    bench.kernel.inner().elements = None;
    bench.scan(SCANNER, 0);
    assert!(bench.kernel.drops(SCANNER));
    assert_eq!(bench.list(0).len(), 1);
}

#[test]
fn what_cannot_be_mended_is_told_until_it_can() {
    let mut bench = bench(|_| {});
    bench.scan(SCANNER, 0);
    let told = bench.after(1, |kernel| (kernel.out_of_order, kernel.chain) = (true, None));
    assert!(told.last().unwrap().contains("mending failed: "), "{told:?}");
    assert_eq!(bench.health.status().state, State::Degraded);
    let told = bench.after(2, |kernel| kernel.out_of_order = false);
    assert_eq!(told, ["mended: chain tcptracker (ipv4) gone", "enforcing"]);
}

#[test]
fn who_undoes_every_mend_is_answered_ever_more_seldom_until_he_rests() {
    let mut bench = bench(|_| {});
    bench.scan(SCANNER, 0);
    let mut told = Vec::new();
    for second in 1..=120 {
        told.extend(bench.after(second, |kernel| kernel.input.insert(0, "ACCEPT")));
    }
    let mends = bench.kernel.inner().mends;
    assert!((10..30).contains(&mends), "{mends} in two minutes");
    let complaint = "degraded: another program keeps changing what blocks are enforced with";
    let complaints = told.iter().filter(|line| line.starts_with(complaint)).count();
    assert_eq!(complaints, 1, "one is enough: {told:?}");
    assert_eq!(bench.health.status().state, State::Degraded);

    for second in 121..200 {
        bench.after(second, |_| {});
    }
    assert!(bench.kernel.drops(SCANNER));
    assert_eq!(bench.state(), (State::Enforcing, None), "peace");
}

#[test]
fn a_fight_that_the_other_gives_up_is_over_after_a_minute() {
    let mut bench = bench(|_| {});
    let mut second = 0;
    while !bench.health.status().reason.is_some_and(|reason| reason.starts_with("another program"))
    {
        second += 1;
        bench.after(second, |kernel| kernel.input.insert(0, "ACCEPT"));
        assert!(second < 60);
    }
    bench.after(second + 1, |kernel| kernel.input.retain(|target| *target == "tcptracker"));
    assert_eq!(bench.health.status().state, State::Degraded, "he may only be resting");
    bench.after(second + 61, |_| {});
    assert_eq!(bench.state(), (State::Enforcing, None));
}

#[test]
fn a_mend_that_fails_again_and_again_is_no_fight() {
    let mut bench = bench(|_| {});
    bench.after(1, |kernel| (kernel.out_of_order, kernel.chain) = (true, None));
    for second in 2..60 {
        bench.after(second, |_| {});
        let reason = bench.health.status().reason.unwrap();
        assert!(reason.contains("mending failed"), "{reason}");
    }
}

#[test]
fn without_room_a_new_scanner_takes_the_place_of_the_one_nearest_his_end() {
    let mut bench = bench(|_| {});
    bench.kernel.inner().capacity = Some(3);
    bench.block("203.0.113.1", 60, 0).unwrap();
    bench.scan("198.51.100.1/32", 10);
    bench.scan("198.51.100.2/32", 5);
    bench.events();

    bench.scan("198.51.100.3/32", 20);
    assert!(bench.kernel.drops("198.51.100.3/32"));
    assert!(bench.kernel.drops("198.51.100.1/32"));
    assert_eq!(bench.kernel.holds("198.51.100.2/32"), None, "nearest its end");
    assert!(bench.kernel.drops("203.0.113.1/32"), "what was blocked by hand stays");
    let displaced = bench.events().into_iter().any(|event| {
        matches!(event, Event::Unblocked { cause: UnblockCause::Evicted, network, .. }
            if network.to_string() == "198.51.100.2/32")
    });
    assert!(displaced);
    let (state, reason) = bench.state();
    assert_eq!(state, State::Degraded);
    assert!(reason.unwrap().contains("no room for more blocks"));

    let refused = bench.block("203.0.113.2", 60, 21);
    assert!(
        matches!(&refused, Err(RequestError::Kernel(text)) if text.contains("block limit reached")),
        "{refused:?}"
    );
    assert_eq!(bench.list(21).len(), 3);

    bench.unblock("203.0.113.1", 22).unwrap();
    bench.thread.look_round(&clock(22));
    assert_eq!(bench.state(), (State::Enforcing, None), "there is room again");
}

/// Where there are always as many scanners as there is room for.
#[test]
fn room_for_one_is_not_told_as_room() {
    let mut bench = bench(|_| {});
    bench.kernel.inner().capacity = Some(200);
    for last in 0..201 {
        bench.scan(&format!("198.51.100.{last}/32"), last);
    }
    let state = |bench: &Bench| bench.health.status().state;
    assert_eq!(state(&bench), State::Degraded);
    let unblocked = |bench: &mut Bench, last: u64| {
        bench.unblock(&format!("198.51.100.{last}"), 300 + last).unwrap();
        bench.thread.look_round(&clock(300 + last));
    };
    for last in [1, 2] {
        unblocked(&mut bench, last);
        assert_eq!(state(&bench), State::Degraded, "{last}");
    }
    unblocked(&mut bench, 3);
    assert_eq!(state(&bench), State::Enforcing);
}

#[test]
fn blocks_by_hand_do_not_make_way() {
    let mut bench = bench(|_| {});
    bench.kernel.inner().capacity = Some(1);
    bench.block("203.0.113.1", 60, 0).unwrap();
    bench.scan(SCANNER, 1);
    assert!(matches!(bench.spared(), Some(SkipReason::Failed(_))));
    assert!(bench.kernel.drops("203.0.113.1/32"));
}
