//! Restarts of the firewall thread with a real database: what survives, and what counts if the database and
//! the kernel differ.

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use crate::block::backend::fake::FakeKernel;
use crate::block::store::flusher::flusher;
use crate::config::{BlockDuration, Config};
use crate::handles::Command;
use crate::service::firewall::test_bench::{Bench, EPOCH, HOUR, bench_on, clock};
use crate::types::{BlockCause, Event, Port, SkipReason, State, UnblockCause, Warning};

const SCANNER: &str = "198.51.100.1/32";

/// Starts the next instance on what the last one has left.
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
    bench.install(seconds);
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
    assert_eq!(bench.list(110), listed[..2], "the third one has expired");
    assert_eq!(kernel.holds(SCANNER), Some(Duration::from_secs(HOUR - 100)));
    assert!(kernel.holds("203.0.113.0/24").unwrap() > Duration::from_secs(1_000_000));
    assert_eq!(kernel.holds("2001:db8::/64"), None);
    let events = bench.events();
    assert!(matches!(events[..], [Event::Restored { blocks: 2, expired: 1 }]), "{events:?}");

    // They expire, and are prolonged, as without a restart.
    bench.thread.expire(&clock(10 + HOUR));
    assert_eq!(addresses(&mut bench, 10 + HOUR), ["203.0.113.0/24"]);
    assert!(matches!(bench.events()[..], [Event::Unblocked { cause: UnblockCause::Expired, .. }]));
    drop(bench);
    assert_eq!(start(state.path(), &FakeKernel::default(), 2 * HOUR).list(2 * HOUR).len(), 1);
}

#[test]
fn offences_grace_periods_and_evidence_survive_a_restart() {
    let state = TempDir::new().unwrap();
    let kernel = FakeKernel::default();
    let mut bench = start(state.path(), &kernel, 0);
    bench.scan(SCANNER, 10);
    bench.scan("198.51.100.2/32", 11);
    bench.unblock("198.51.100.2", 12).unwrap();
    // Killed: nothing is removed.
    drop(bench);

    let mut bench = start(state.path(), &kernel, HOUR);
    let network = SCANNER.parse().unwrap();
    let question = |reply| Command::Why { network, reply };
    let evidence = bench.ask(HOUR, question).unwrap().block.unwrap().evidence.unwrap();
    assert_eq!(evidence.ports().collect::<Vec<_>>(), [1, 2, 3, 4].map(Port));
    bench.scan("198.51.100.2/32", HOUR);
    assert!(matches!(bench.skipped(), Some(SkipReason::Grace { .. })));
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
fn block_without_an_end_survives_a_restart() {
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

/// Otherwise the file would grow with every source that ever scanned.
#[test]
fn forgotten_offences_and_grace_periods_are_deleted() {
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
    bench.thread.expire(&clock(HOUR + 10));
    bench.maintain(HOUR + 30);
    assert_eq!(["block", "offences", "grace"].map(rows), [0, 1, 0]);
    bench.maintain(month + 9);
    assert_eq!(["block", "offences", "grace"].map(rows), [0, 1, 0]);
    bench.maintain(month + 10);
    assert_eq!(["block", "offences", "grace"].map(rows), [0, 0, 0]);
}

#[test]
fn newly_exempt_address_is_not_restored() {
    let state = TempDir::new().unwrap();
    let kernel = FakeKernel::default();
    let mut bench = start(state.path(), &kernel, 0);
    bench.scan(SCANNER, 10);
    bench.scan("198.51.100.2/32", 10);
    drop(bench);
    // The kernel still holds it, or does not.
    for kernel in [kernel, FakeKernel::default()] {
        let mut bench = start_as(state.path(), &kernel, 20, |config| {
            config.exempt.networks = vec![SCANNER.parse().unwrap()];
        });
        assert_eq!(addresses(&mut bench, 20), ["198.51.100.2/32"]);
        assert_eq!(kernel.holds(SCANNER), None);
        let is_reported = |event: &Event| {
            matches!(event, Event::Unblocked { network, cause: UnblockCause::Exempt, .. }
                if *network == SCANNER.parse().unwrap())
        };
        assert!(bench.events().iter().any(is_reported));
        // It stays exempt.
        bench.block("198.51.100.1", 0, 20).unwrap_err();
        drop(bench);
        start(state.path(), &kernel, 30).scan(SCANNER, 30);
    }
}

/// The instance was killed between the kernel and the database, so no caller had its answer yet. What
/// callers were told is in the database.
#[test]
fn restart_after_a_kill_keeps_what_callers_were_told() {
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
        // Blocked and not saved yet; prolonged and not saved yet; expired, but the kernel rounds up.
        put("203.0.113.9/32", 300);
        put("203.0.113.2/32", 7000);
        put("203.0.113.4/32", 1);
        // Unblocked and not saved yet; or removed by another program.
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
    let events = bench.events();
    let found = events
        .iter()
        .filter(|event| matches!(event, Event::Blocked { cause: BlockCause::Found, .. }));
    assert_eq!(found.count(), 1, "{events:?}");
    drop(bench);
    // The next restart changes nothing.
    assert_eq!(start(state.path(), &kernel, 100).list(100).len(), 4);
}

/// A program may save and restore sets (netfilter-persistent, ipset.service).
#[test]
fn unblocked_address_stays_unblocked_when_another_program_restores_sets() {
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
        assert_eq!(addresses(&mut bench, 30), left, "within a boot it may be of the last moment");
        assert_eq!(kernel.holds(SCANNER), None);
        assert_eq!(kernel.holds("198.51.100.2/32").is_some(), !is_of_another_boot);
        let events = bench.events();
        let is_reported =
            |event: &Event| matches!(event, Event::Warning(Warning::StaleBlocksRemoved { .. }));
        assert!(events.iter().any(is_reported), "{events:?}");
    }
}

/// The state directory becomes unusable while the service runs, and then usable again.
#[test]
fn blocks_continue_without_a_database_and_are_saved_as_soon_as_possible() {
    let directory = TempDir::new().unwrap();
    let (state, away) = (directory.path().join("state"), directory.path().join("away"));
    std::fs::write(&state, "in the way").unwrap();
    let kernel = FakeKernel::default();
    let mut bench = start(&state, &kernel, 0);
    let (degraded, why) = bench.state();
    assert_eq!(degraded, State::Degraded);
    let why = why.unwrap();
    assert!(why.contains("state/tcptracker.db: cannot create its directory"), "{why}");
    bench.scan(SCANNER, 1);
    bench.block("203.0.113.7", 0, 1).unwrap();
    assert!(kernel.holds(SCANNER).is_some());
    assert_eq!(bench.list(1).len(), 2);
    assert_eq!(bench.health.status().state, State::Degraded);

    std::fs::rename(&state, &away).unwrap();
    bench.maintain(4);
    assert_eq!(bench.health.status().state, State::Degraded, "there is a pause between attempts");
    bench.maintain(5);
    assert_eq!(bench.state(), (State::Enforcing, None));
    let listed = bench.list(5);
    drop(bench);
    assert_eq!(start(&state, &FakeKernel::default(), 6).list(6), listed);
}

/// A database that is not writable may be outdated: then the kernel is right, as long as the last instance
/// has not removed its sets.
#[test]
fn changes_missing_in_the_database_are_taken_from_the_kernel() {
    let directory = TempDir::new().unwrap();
    let state = directory.path().join("state");
    let kernel = FakeKernel::default();
    let mut bench = start(&state, &kernel, 0);
    for address in ["203.0.113.1", "203.0.113.2"] {
        bench.block(address, 600, 0).unwrap();
    }
    bench.block("203.0.113.3", 60, 0).unwrap();
    drop(bench);
    // From here on another program locks it.
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
    assert_eq!(ends(&mut bench), expected, "unblocked stays unblocked, blocked stays blocked");
    drop(bench);
    drop(other);

    // Once the database is writable, all of it is written: its content is outdated.
    drop(start(&state, &kernel, 100));
    assert_eq!(ends(&mut start(&state, &FakeKernel::default(), 100)), expected);
}

#[test]
fn unusable_database_does_not_keep_the_service_from_blocking() {
    let state = TempDir::new().unwrap();
    let kernel = FakeKernel::default();
    start(state.path(), &kernel, 0).scan(SCANNER, 10);
    std::fs::write(state.path().join("tcptracker.db"), "garbage").unwrap();
    let _ = std::fs::remove_file(state.path().join("tcptracker.db-wal"));
    let mut bench = start(state.path(), &kernel, 20);
    assert_eq!(addresses(&mut bench, 20), [SCANNER], "the kernel still holds it");
    assert_eq!(bench.state(), (State::Enforcing, None));
    let events = bench.events();
    assert!(
        events.iter().any(|event| matches!(event, Event::Warning(Warning::DatabaseQuarantined { error, at_start: true, .. })
            if error.contains("damaged database"))),
        "{events:?}"
    );
}
