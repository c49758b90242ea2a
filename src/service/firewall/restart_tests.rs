//! The actor ends and starts again, with a real database: what is remembered, and who is right where the
//! kernel says otherwise.

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use crate::block::backend::fake::FakeKernel;
use crate::block::store::flusher::flusher;
use crate::config::{BlockDuration, Config};
use crate::service::firewall::test_bench::{Bench, EPOCH, HOUR, bench_on, clock};
use crate::types::block::Evidence;
use crate::types::block::{BlockCause, SkipReason, UnblockCause};
use crate::types::event::{Event, Warning};
use crate::types::state::State;

const SCANNER: &str = "198.51.100.1/32";

/// The next instance, on what the last has left.
fn start(state: &Path, kernel: &FakeKernel, seconds: u64) -> Bench {
    start_as(state, kernel, seconds, |_| {})
}

fn start_as(
    state: &Path,
    kernel: &FakeKernel,
    seconds: u64,
    edit: impl FnOnce(&mut Config),
) -> Bench {
    let (store_path, _) = flusher(state.join("tcptracker.db"));
    let mut bench = bench_on(kernel.clone(), Some(store_path), edit);
    bench.thread.install(&clock(seconds), &mut |_, _| {}).unwrap();
    bench
}

fn addresses(bench: &mut Bench, seconds: u64) -> Vec<String> {
    bench.list(seconds).iter().map(|listed| listed.network.to_string()).collect()
}

#[test]
fn blocks_are_restored_as_they_were_with_their_remaining_time() {
    let state = TempDir::new().unwrap();
    let mut bench = start(state.path(), &FakeKernel::default(), 0);
    bench.scan(SCANNER, 10);
    bench.block("203.0.113.0/24", 0, 20).unwrap();
    bench.block("2001:db8::/64", 60, 20).unwrap();
    let listed = bench.list(20);
    drop(bench);

    // After a stop the kernel holds nothing.
    let kernel = FakeKernel::default();
    let mut bench = start(state.path(), &kernel, 110);
    assert_eq!(bench.list(110), listed[..2], "the third was over meanwhile");
    assert_eq!(kernel.holds(SCANNER), Some(Duration::from_secs(HOUR - 100)));
    assert!(kernel.holds("203.0.113.0/24").unwrap() > Duration::from_secs(1_000_000));
    assert_eq!(kernel.holds("2001:db8::/64"), None);
    let told = bench.events();
    assert!(matches!(told[..], [Event::Restored { blocks: 2, expired: 1 }]), "{told:?}");

    // They end, and are prolonged, as if nothing had happened.
    bench.thread.follow_time(&clock(10 + HOUR));
    assert_eq!(addresses(&mut bench, 10 + HOUR), ["203.0.113.0/24"]);
    assert!(matches!(bench.events()[..], [Event::Unblocked { cause: UnblockCause::Expired, .. }]));
    drop(bench);
    assert_eq!(start(state.path(), &FakeKernel::default(), 2 * HOUR).list(2 * HOUR).len(), 1);
}

#[test]
fn offences_and_graces_and_evidence_are_remembered() {
    let state = TempDir::new().unwrap();
    let kernel = FakeKernel::default();
    let mut bench = start(state.path(), &kernel, 0);
    bench.scan(SCANNER, 10);
    bench.scan("198.51.100.2/32", 11);
    bench.unblock("198.51.100.2", 12).unwrap();
    // Killed: nothing is said to anybody.
    drop(bench);

    let mut bench = start(state.path(), &kernel, HOUR);
    let network = SCANNER.parse().unwrap();
    let evidence = |bench: &Bench| bench.thread.ledger.get(&network).unwrap().evidence.clone();
    let ports = |evidence: Evidence| evidence.attempts.iter().map(|a| a.port.0).collect::<Vec<_>>();
    assert_eq!(ports(*evidence(&bench).unwrap()), [1, 2, 3, 4]);
    bench.scan("198.51.100.2/32", HOUR);
    assert!(matches!(bench.spared(), Some(SkipReason::Grace { .. })));
    drop(bench);

    let mut bench = start(state.path(), &FakeKernel::default(), 2 * HOUR);
    assert_eq!(bench.list(2 * HOUR), []);
    for (source, offence, hours) in [(SCANNER, 2, 4), ("198.51.100.2/32", 2, 4)] {
        bench.scan(source, 2 * HOUR);
        let listed = bench.list(2 * HOUR);
        let listed = listed.iter().find(|listed| listed.network == source.parse().unwrap());
        let until = EPOCH + (2 + hours) * HOUR;
        assert_eq!(listed.map(|l| (l.offences, l.until)), Some((offence, until)), "{source}");
    }
}

#[test]
fn forever_is_remembered_as_such() {
    let state = TempDir::new().unwrap();
    let forever = |config: &mut Config| {
        config.block.durations = vec![BlockDuration::Forever];
    };
    start_as(state.path(), &FakeKernel::default(), 0, forever).scan(SCANNER, 10);
    let year = 365 * 24 * HOUR;
    let mut bench = start_as(state.path(), &FakeKernel::default(), year, forever);
    let listed = bench.list(year);
    assert_eq!((listed[0].since, listed[0].until, listed[0].offences), (EPOCH + 10, 0, 1));
}

/// The file does not grow with every source that ever scanned.
#[test]
fn what_is_forgotten_is_no_longer_kept() {
    let state = TempDir::new().unwrap();
    let mut bench = start(state.path(), &FakeKernel::default(), 0);
    bench.scan(SCANNER, 10);
    bench.block("203.0.113.7", 60, 20).unwrap();
    bench.unblock("203.0.113.7", 30).unwrap();
    let rows = |table: &str| {
        let connection = rusqlite::Connection::open(state.path().join("tcptracker.db")).unwrap();
        let sql = format!("SELECT count(*) FROM {table}");
        connection.query_row(&sql, (), |row| row.get::<_, u32>(0)).unwrap()
    };
    assert_eq!(["block", "offences", "grace"].map(rows), [1, 1, 1]);
    let month = 30 * 24 * HOUR;
    bench.thread.follow_time(&clock(HOUR + 10));
    bench.thread.look_round(&clock(HOUR + 30));
    assert_eq!(["block", "offences", "grace"].map(rows), [0, 1, 0]);
    bench.thread.look_round(&clock(month + 9));
    assert_eq!(["block", "offences", "grace"].map(rows), [0, 1, 0]);
    bench.thread.look_round(&clock(month + 10));
    assert_eq!(["block", "offences", "grace"].map(rows), [0, 0, 0]);
}

#[test]
fn who_has_become_exempt_meanwhile_is_not_blocked_again() {
    let state = TempDir::new().unwrap();
    let kernel = FakeKernel::default();
    let mut bench = start(state.path(), &kernel, 0);
    bench.scan(SCANNER, 10);
    bench.scan("198.51.100.2/32", 10);
    drop(bench);
    // Whether the kernel still holds it or not.
    for kernel in [kernel, FakeKernel::default()] {
        let mut bench = start_as(state.path(), &kernel, 20, |config| {
            config.exempt.networks = vec![SCANNER.parse().unwrap()];
        });
        assert_eq!(addresses(&mut bench, 20), ["198.51.100.2/32"]);
        assert_eq!(kernel.holds(SCANNER), None);
        let is_told = |event: &Event| {
            matches!(event, Event::Unblocked { network, cause: UnblockCause::Exempt, .. }
                if *network == SCANNER.parse().unwrap())
        };
        assert!(bench.events().iter().any(is_told));
        // For the next round.
        bench.block("198.51.100.1", 0, 20).unwrap_err();
        drop(bench);
        start(state.path(), &kernel, 30).scan(SCANNER, 30);
    }
}

/// Killed between the kernel's acknowledgement and the database's: nobody was told yet. What was told is
/// in the database.
#[test]
fn a_killed_instance_is_continued_by_what_callers_were_told() {
    let state = TempDir::new().unwrap();
    let kernel = FakeKernel::default();
    let mut bench = start(state.path(), &kernel, 0);
    for address in ["203.0.113.1", "203.0.113.2", "203.0.113.3"] {
        bench.block(address, 600, 0).unwrap();
    }
    bench.block("203.0.113.4", 60, 0).unwrap();
    drop(bench);
    {
        let mut inner = kernel.inner();
        let elements = inner.elements.as_mut().unwrap();
        let mut put = |network: &str, seconds| {
            elements.insert(network.parse().unwrap(), Duration::from_secs(seconds))
        };
        // Blocked, not yet kept; for longer, not yet kept; over, and the kernel rounds up.
        put("203.0.113.9/32", 300);
        put("203.0.113.2/32", 7000);
        put("203.0.113.4/32", 1);
        // Unblocked, not yet kept; or flushed by somebody.
        elements.remove(&"203.0.113.3/32".parse().unwrap());
    }
    let mut bench = start(state.path(), &kernel, 100);
    let listed = bench.list(100);
    let ends: Vec<_> =
        listed.iter().map(|l| (l.network.addr().to_string(), l.until - EPOCH)).collect();
    let expected = [(1, 600), (2, 600), (3, 600), (9, 400)]
        .map(|(last, until)| (format!("203.0.113.{last}"), until));
    assert_eq!(ends, expected);
    assert_eq!(kernel.holds("203.0.113.2/32"), Some(Duration::from_secs(500)));
    assert_eq!(kernel.holds("203.0.113.4/32"), None);
    let told = bench.events();
    let found = told
        .iter()
        .filter(|event| matches!(event, Event::Blocked { cause: BlockCause::Found, .. }));
    assert_eq!(found.count(), 1, "{told:?}");
    drop(bench);
    // And so it stays.
    assert_eq!(start(state.path(), &kernel, 100).list(100).len(), 4);
}

/// By a program that keeps sets over a boot (netfilter-persistent, ipset.service).
#[test]
fn who_was_let_in_stays_so_though_the_sets_of_before_are_brought_back() {
    let (scanner, other) = (SCANNER.parse().unwrap(), "198.51.100.2/32".parse().unwrap());
    let hour = Duration::from_secs(HOUR);
    for (is_of_another_boot, left) in [(false, vec!["198.51.100.2/32"]), (true, vec![])] {
        let state = TempDir::new().unwrap();
        let mut bench = start(state.path(), &FakeKernel::default(), 0);
        bench.scan(SCANNER, 10);
        bench.unblock("198.51.100.1", 20).unwrap();
        drop(bench);
        if is_of_another_boot {
            let database = rusqlite::Connection::open(state.path().join("tcptracker.db")).unwrap();
            database.execute("UPDATE timeline SET boot = 'an earlier one'", ()).unwrap();
        }
        let kernel = FakeKernel::default();
        kernel.inner().elements = Some([(scanner, hour), (other, hour)].into());
        let mut bench = start(state.path(), &kernel, 30);
        assert_eq!(addresses(&mut bench, 30), left, "within a boot it may be the last moment's");
        assert_eq!(kernel.holds(SCANNER), None);
        assert_eq!(kernel.holds("198.51.100.2/32").is_some(), !is_of_another_boot);
        let told = bench.events();
        let is_told =
            |event: &Event| matches!(event, Event::Warning(Warning::StaleBlocksRemoved { .. }));
        assert!(told.iter().any(is_told), "{told:?}");
    }
}

/// The state directory becomes useless while the service runs, and again usable.
#[test]
fn blocks_go_on_while_nothing_can_be_kept_and_are_kept_as_soon_as_it_can() {
    let directory = TempDir::new().unwrap();
    let (state, away) = (directory.path().join("state"), directory.path().join("away"));
    std::fs::write(&state, "in the way").unwrap();
    let kernel = FakeKernel::default();
    let mut bench = start(&state, &kernel, 0);
    let (degraded, why) = bench.state();
    assert_eq!(degraded, State::Degraded);
    let why = why.unwrap();
    assert!(why.contains("state/tcptracker.db: its directory cannot be made"), "{why}");
    bench.scan(SCANNER, 1);
    bench.block("203.0.113.7", 0, 1).unwrap();
    assert!(kernel.holds(SCANNER).is_some());
    assert_eq!(bench.list(1).len(), 2);
    assert_eq!(bench.health.status().state, State::Degraded);

    std::fs::rename(&state, &away).unwrap();
    bench.thread.look_round(&clock(4));
    assert_eq!(bench.health.status().state, State::Degraded, "not tried all the time");
    bench.thread.look_round(&clock(5));
    assert_eq!(bench.state(), (State::Enforcing, None));
    let listed = bench.list(5);
    drop(bench);
    assert_eq!(start(&state, &FakeKernel::default(), 6).list(6), listed);
}

/// What is read may be old where it cannot be written: then the kernel knows better, as long as it has
/// not been told to stop.
#[test]
fn what_happened_while_nothing_could_be_kept_is_taken_from_the_kernel() {
    let directory = TempDir::new().unwrap();
    let state = directory.path().join("state");
    let kernel = FakeKernel::default();
    let mut bench = start(&state, &kernel, 0);
    for address in ["203.0.113.1", "203.0.113.2"] {
        bench.block(address, 600, 0).unwrap();
    }
    bench.block("203.0.113.3", 60, 0).unwrap();
    drop(bench);
    // From here on somebody keeps it locked.
    let file = state.join("tcptracker.db");
    let other = rusqlite::Connection::open(&file).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();

    let mut bench = start(&state, &kernel, 10);
    assert_eq!(bench.list(10).len(), 3);
    assert_eq!(bench.health.status().state, State::Degraded);
    bench.unblock("203.0.113.1", 10).unwrap();
    bench.block("203.0.113.3", 600, 10).unwrap();
    bench.block("203.0.113.4", 600, 10).unwrap();
    let listed = bench.list(10);
    drop(bench);

    let ends = |bench: &mut Bench| {
        bench.list(100).iter().map(|l| (l.network.to_string(), l.until)).collect::<Vec<_>>()
    };
    let expected: Vec<_> = listed.iter().map(|l| (l.network.to_string(), l.until)).collect();
    // The kernel's timeouts run on.
    let elapsed = Duration::from_secs(90);
    for remaining in kernel.inner().elements.as_mut().unwrap().values_mut() {
        *remaining -= elapsed;
    }
    let mut bench = start(&state, &kernel, 100);
    assert_eq!(ends(&mut bench), expected, "what was let in stays so, what was blocked as well");
    drop(bench);
    drop(other);

    // Once it can be written again, everything is: what is in it already is old.
    drop(start(&state, &kernel, 100));
    assert_eq!(ends(&mut start(&state, &FakeKernel::default(), 100)), expected);
}

#[test]
fn a_file_that_is_of_no_use_keeps_nobody_from_being_blocked() {
    let state = TempDir::new().unwrap();
    let kernel = FakeKernel::default();
    start(state.path(), &kernel, 0).scan(SCANNER, 10);
    std::fs::write(state.path().join("tcptracker.db"), "not what it was").unwrap();
    let _ = std::fs::remove_file(state.path().join("tcptracker.db-wal"));
    let mut bench = start(state.path(), &kernel, 20);
    assert_eq!(addresses(&mut bench, 20), [SCANNER], "the kernel still holds it");
    assert_eq!(bench.state(), (State::Enforcing, None));
    let told = bench.events();
    assert!(
        told.iter().any(|event| matches!(event, Event::Warning(Warning::DatabaseQuarantined { error, at_start: true, .. })
            if error.contains("it is damaged"))),
        "{told:?}"
    );
}
