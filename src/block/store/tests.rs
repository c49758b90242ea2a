//! The store on a real file.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use ipnet::IpNet;
use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::block::store::flusher::flusher;
use crate::block::store::records::Offences;
use crate::types::{Attempt, Block, BlockReason, Evidence, Moment, Port, Rule, ScanKind};

fn at(seconds: u64) -> Moment {
    Moment::from_nanos(seconds * 1_000_000_000)
}

fn clock() -> WallClock {
    WallClock::at(at(1_000_000), 1_800_000_000)
}

fn block(reason: &str) -> Block {
    Block {
        since: at(999_000),
        until: Some(at(1_003_000)),
        offences: 2,
        reason: BlockReason::Manual(reason.to_owned()),
    }
}

fn evidence() -> Evidence {
    let attempt = |port| Attempt::at(Port(port), at(998_000 + u64::from(port)));
    Evidence {
        kind: ScanKind::Stealth,
        address: "2001:db8::7".parse().unwrap(),
        destination: "192.0.2.1".parse().unwrap(),
        attempts: [22, 80, 443, 1].map(attempt).to_vec(),
        probes: 17,
        rule: Rule::Ports,
        threshold: 3,
        span: Duration::from_secs(60),
        decoy: false,
    }
}

fn everything() -> Remembered {
    let scan = Block { reason: BlockReason::Scan(Box::new(evidence())), ..block("") };
    let endless = Block { until: None, offences: 0, ..block("for good") };
    Remembered {
        blocks: vec![
            ("192.0.2.0/24".parse().unwrap(), endless),
            ("2001:db8::/64".parse().unwrap(), scan),
        ],
        offences: vec![
            ("2001:db8::/64".parse().unwrap(), Offences { count: 2, latest: at(999_000) }),
            ("192.0.2.9/32".parse().unwrap(), Offences { count: 1, latest: at(999_001) }),
        ],
        graces: vec![("198.51.100.1/32".parse().unwrap(), at(1_000_500))],
    }
}

fn records(of: &Remembered) -> impl Iterator<Item = Record<'_>> {
    let blocks = of.blocks.iter().map(|(network, block)| Record::Block(*network, Some(block)));
    let offences =
        of.offences.iter().map(|(network, past)| Record::Offences(*network, Some(*past)));
    let graces = of.graces.iter().map(|(network, until)| Record::Grace(*network, Some(*until)));
    blocks.chain(offences).chain(graces)
}

impl Store {
    /// Replaces the content of the database.
    fn fill(&mut self, with: &Remembered) {
        let (database, _) = self.database.as_mut().unwrap();
        database.replace(&Timeline::new(boot(), &clock()), records(with)).unwrap();
    }
}

fn file_in(directory: &TempDir) -> PathBuf {
    directory.path().join("eth0").join(FILE)
}

/// Loads a database that has to be usable.
#[track_caller]
fn open(file: &Path) -> (Store, Loaded) {
    let mut store = flusher(file.to_owned()).0;
    let loaded = store.load(&clock());
    assert_eq!(store.failure(), None);
    assert!(store.warnings.is_empty(), "{:?}", store.warnings);
    (store, loaded)
}

#[track_caller]
fn load(file: &Path) -> Remembered {
    open(file).1.remembered
}

/// Loads a database that is renamed. Returns its new name and what was wrong with it, too.
#[track_caller]
fn load_renamed(file: &Path) -> (Remembered, Store, PathBuf, String) {
    let mut store = flusher(file.to_owned()).0;
    let loaded = store.load(&clock());
    let warning = store.warnings.pop();
    let Some(Warning::DatabaseQuarantined { kept, error, at_start: true, .. }) = warning else {
        panic!("the file was not renamed")
    };
    assert_eq!(store.failure(), None);
    (loaded.remembered, store, kept, error)
}

#[test]
fn saved_records_load_unchanged_and_deleted_ones_do_not() {
    let directory = TempDir::new().unwrap();
    let file = file_in(&directory);
    let (mut store, loaded) = open(&file);
    assert_eq!((loaded.remembered, loaded.is_outdated), (Remembered::default(), true));
    store.fill(&everything());
    // Another connection sees the records while this one is open, as after a crash.
    assert_eq!(load(&file), everything());

    let gone = ["192.0.2.0/24", "192.0.2.9/32", "198.51.100.1/32"].map(|n| n.parse().unwrap());
    let changes = [
        Record::Block(gone[0], None),
        Record::Offences(gone[1], None),
        Record::Grace(gone[2], None),
        // Was never in the database.
        Record::Block(gone[2], None),
    ];
    store.save(changes, at(1_000_000));
    assert_eq!(store.failure(), None);
    drop(store);
    let mut left = everything();
    left.blocks.remove(0);
    left.offences.pop();
    left.graces.clear();
    assert_eq!(load(&file), left);
    assert!(!beside(&file, "-wal").exists(), "the database was closed properly");
}

#[test]
fn unusable_files_are_renamed_and_the_last_three_are_kept() {
    let directory = TempDir::new().unwrap();
    let file = file_in(&directory);
    drop(load(&file));
    let kept = |number: u32| beside(&file, &format!(".aside-{number}"));
    for round in 1..=5u32 {
        std::fs::write(&file, format!("garbage {round}")).unwrap();
        let (_, mut store, renamed, error) = load_renamed(&file);
        assert!(error.contains("damaged database"), "{error}");
        assert_eq!(renamed, kept(1));
        store.fill(&everything());
        drop(store);
        assert_eq!(load(&file), everything());
        for number in 1..=round.min(3) {
            let kept = std::fs::read_to_string(kept(number)).unwrap();
            assert_eq!(kept, format!("garbage {}", round + 1 - number));
        }
    }
    assert_eq!(std::fs::read_dir(file.parent().unwrap()).unwrap().count(), 1 + 3);
}

/// A log is part of its database and must never lie next to another one.
#[test]
fn log_is_renamed_with_its_database() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join(FILE);
    let kept = |number: u32| beside(&file, &format!(".aside-{number}"));
    for (round, has_log) in [(1, true), (2, false)] {
        std::fs::write(&file, format!("file {round}")).unwrap();
        if has_log {
            std::fs::write(beside(&file, "-wal"), format!("log {round}")).unwrap();
        }
        std::fs::write(beside(&file, "-shm"), "index").unwrap();
        assert_eq!(quarantine(&file).unwrap(), kept(1));
    }
    let read = |file: &Path| std::fs::read_to_string(file).ok();
    assert_eq!(read(&kept(1)).as_deref(), Some("file 2"));
    assert_eq!(read(&beside(&kept(1), "-wal")), None);
    assert_eq!(read(&kept(2)).as_deref(), Some("file 1"));
    assert_eq!(read(&beside(&kept(2), "-wal")).as_deref(), Some("log 1"));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 3, "no other files");
}

#[test]
fn files_of_other_programs_and_versions_are_renamed() {
    for (sql, why) in [
        ("CREATE TABLE recipes (soup TEXT)", "not a tcptracker database"),
        (
            "PRAGMA user_version = 2; PRAGMA application_id = 1952673908",
            "unsupported database version 2",
        ),
        (
            "PRAGMA user_version = 1; PRAGMA application_id = 1952673908",
            "its table timeline is missing",
        ),
    ] {
        let directory = TempDir::new().unwrap();
        let file = file_in(&directory);
        std::fs::create_dir(file.parent().unwrap()).unwrap();
        Connection::open(&file).unwrap().execute_batch(sql).unwrap();
        let (_, store, _, error) = load_renamed(&file);
        assert!(error.contains(why), "{error:?}");
        drop(store);
        assert_eq!(load(&file), Remembered::default());
    }
}

/// What another program may insert into the file of a running or stopped service.
#[test]
fn wrong_rows_are_left_out_told_and_kept_in_a_copy() {
    let long =
        format!("INSERT INTO block VALUES ('192.0.2.9/32', 1, 2, 1, '{}', NULL)", "x".repeat(201));
    for row in [
        "INSERT INTO block VALUES ('oops', 1, 2, 1, 'x', NULL)",
        "INSERT INTO block VALUES ('198.51.100.77/24', 1, 2, 1, 'x', NULL)",
        "INSERT INTO block VALUES ('198.51.100.77', 1, 2, 1, 'x', NULL)",
        "INSERT INTO block VALUES ('::ffff:192.0.2.9/128', 1, 2, 1, 'x', NULL)",
        "INSERT INTO block VALUES ('0.0.0.0/0', 1, 2, 1, 'x', NULL)",
        "INSERT INTO block VALUES ('::/0', 1, 2, 1, 'x', NULL)",
        "INSERT INTO block VALUES ('192.0.2.9/32', -1, 2, 1, 'x', NULL)",
        "INSERT INTO block VALUES ('192.0.2.9/32', 2, 1, 1, 'x', NULL)",
        "INSERT INTO block VALUES ('192.0.2.9/32', 1, 9000000000000000000, 1, 'x', NULL)",
        "INSERT INTO block VALUES ('192.0.2.9/32', 1000000000000001, 2000000000000000, 1, 'x', NULL)",
        "INSERT INTO block VALUES ('192.0.2.9/32', 1, 2, 1099511627776, 'x', NULL)",
        "INSERT INTO block VALUES ('192.0.2.9/32', 1, 2, -1, 'x', NULL)",
        "INSERT INTO block VALUES ('192.0.2.9/32', 1, 2, 1, CAST(x'ff' AS TEXT), NULL)",
        &long,
        "INSERT INTO offences VALUES ('oops', 1, 1)",
        "INSERT INTO offences VALUES ('192.0.2.0/24', 1099511627776, 1)",
        "INSERT INTO offences VALUES ('192.0.2.0/24', 1, 9000000000000000000)",
        "INSERT INTO grace VALUES ('192.0.2.7/24', 1)",
        "INSERT INTO grace VALUES ('192.0.2.0/24', -1)",
    ] {
        let directory = TempDir::new().unwrap();
        let file = file_in(&directory);
        open(&file).0.fill(&everything());
        Connection::open(&file).unwrap().execute_batch(row).unwrap();
        let mut store = flusher(file.clone()).0;
        let loaded = store.load(&clock());
        assert_eq!(loaded.remembered, everything(), "{row}");
        assert!(loaded.is_outdated, "the wrong row is written over");
        let [Warning::DatabaseRowsLeftOut { count: 1, kept: Ok(kept), .. }] = &store.warnings[..]
        else {
            panic!("{row}: {:?}", store.warnings)
        };
        assert_eq!(*kept, beside(&file, ".aside-1"));
        let repeated = Connection::open(kept).unwrap().execute_batch(row);
        let is_there = repeated.is_err_and(|error| error.to_string().contains("UNIQUE"));
        assert!(is_there, "the copy has the row: {row}");
        store.fill(&loaded.remembered);
        assert_eq!(load(&file), everything());
    }
}

#[test]
fn reason_with_invisible_characters_is_shown_safely() {
    let directory = TempDir::new().unwrap();
    let file = file_in(&directory);
    drop(load(&file));
    let row = "INSERT INTO block VALUES ('192.0.2.9/32', 1, NULL, 1, 'a' || char(10, 27) || '[31m', NULL)";
    Connection::open(&file).unwrap().execute_batch(row).unwrap();
    let [(_, block)] = &load(&file).blocks[..] else { panic!("left out") };
    assert_eq!(block.reason, BlockReason::Manual(r"a\n\u{1b}[31m".to_owned()));
}

/// An endless view, for example, would hold up the start.
#[test]
fn files_with_anything_but_the_tables_are_renamed() {
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
        SELECT i || '.1/32' network, 1 since, 2 until, 1 offences, 'x' reason, NULL evidence FROM n";
    for (sql, why) in [
        (format!("DROP TABLE block; CREATE VIEW block AS {endless}"), "its table block is"),
        ("ALTER TABLE grace ADD more TEXT".to_owned(), "its table grace is missing or changed"),
        (
            "CREATE TRIGGER t AFTER INSERT ON block BEGIN DELETE FROM block; END".to_owned(),
            "unexpected CREATE TRIGGER t",
        ),
        ("CREATE TABLE more (x)".to_owned(), "unexpected CREATE TABLE more"),
    ] {
        let directory = TempDir::new().unwrap();
        let file = file_in(&directory);
        open(&file).0.fill(&everything());
        Connection::open(&file).unwrap().execute_batch(&sql).unwrap();
        let (_, _, _, error) = load_renamed(&file);
        assert!(error.contains(why), "{error}");
    }
    // ANALYZE by an administrator adds tables of SQLite.
    let directory = TempDir::new().unwrap();
    let file = file_in(&directory);
    open(&file).0.fill(&everything());
    Connection::open(&file).unwrap().execute_batch("ANALYZE").unwrap();
    assert_eq!(load(&file), everything());
}

#[test]
fn only_regular_files_are_opened() {
    for suffix in ["", "-wal", "-journal"] {
        for kind in ["fifo", "link"] {
            let directory = TempDir::new().unwrap();
            let file = file_in(&directory);
            std::fs::create_dir(file.parent().unwrap()).unwrap();
            let other = directory.path().join("other");
            std::fs::write(&other, "of another program").unwrap();
            let part = beside(&file, suffix);
            if kind == "fifo" {
                use rustix::fs::{CWD, FileType, Mode, mknodat};
                mknodat(CWD, &part, FileType::Fifo, Mode::RWXU, 0).unwrap();
            } else {
                std::os::unix::fs::symlink(&other, &part).unwrap();
            }
            let (_, store, kept, error) = load_renamed(&file);
            assert!(
                error.contains(&format!("tcptracker.db{suffix} is not a regular file")),
                "{error}"
            );
            assert!(beside(&kept, suffix).symlink_metadata().is_ok_and(|data| !data.is_file()));
            drop(store);
            assert_eq!(load(&file), Remembered::default());
            assert_eq!(std::fs::read_to_string(other).unwrap(), "of another program");
        }
    }
}

#[test]
fn damage_anywhere_in_the_file_is_noticed() {
    let directory = TempDir::new().unwrap();
    let file = file_in(&directory);
    let many = Remembered {
        blocks: (0..2000u32)
            .map(|n| (IpNet::from(IpAddr::V4(n.into())), block("one of many")))
            .collect(),
        ..Remembered::default()
    };
    open(&file).0.fill(&many);
    let whole = std::fs::read(&file).unwrap();
    assert!(whole.len() > 20 * 4096);
    for damage in [
        // Truncated, a page of noise, a page of zeros.
        whole[..whole.len() / 2].to_vec(),
        [&whole[..5 * 4096], &[0xa5; 4096], &whole[6 * 4096..]].concat(),
        [&whole[..9 * 4096], &[0; 4096], &whole[10 * 4096..]].concat(),
    ] {
        std::fs::write(&file, damage).unwrap();
        let (remembered, _, _, error) = load_renamed(&file);
        assert!(error.contains("damaged database"), "{error}");
        assert_eq!(remembered, Remembered::default());
    }
}

/// Some characters that the kernel accepts in a name have a meaning in a URI.
#[test]
fn file_with_special_characters_in_its_path_is_readable() {
    let directory = TempDir::new().unwrap();
    let interface: IfName = "e%3f#?&th".parse().unwrap();
    let state = directory.path().join(interface.as_str());
    let file = file_of(&interface, Some(state.into()));
    open(&file).0.fill(&everything());
    let read = Database::open_to_read(&file).unwrap();
    let present = Timeline::new(boot(), &clock());
    assert_eq!(read.load(&present).unwrap().remembered, everything());
}

#[test]
fn content_of_a_large_log_moves_into_the_file() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join(FILE);
    let (mut store, flusher) = flusher(file.clone());
    let wordy = block(&"why ".repeat(50));
    let many = Remembered {
        blocks: (0..20_000u32)
            .map(|n| (IpNet::from(IpAddr::V4(n.into())), wordy.clone()))
            .collect(),
        ..Remembered::default()
    };
    store.load(&clock());
    store.fill(&many);
    let length = |file: &Path| file.metadata().unwrap().len();
    let log = beside(&file, "-wal");
    assert!(length(&log) > 4 << 20);
    flusher.flush(&Timeline::new(boot(), &clock())).unwrap();
    assert!(length(&log) < 1 << 16, "{}", length(&log));
    assert!(length(&file) > 4 << 20);
    store.save([Record::Block(many.blocks[0].0, None)], at(1_000_000));
    assert_eq!(load(&file).blocks.len(), many.blocks.len() - 1);

    std::fs::remove_file(&log).unwrap();
    let removed = flusher.flush(&Timeline::new(boot(), &clock()));
    assert!(matches!(removed, Err(StoreError::Removed)), "{removed:?}");
}

/// Root may have run one instance, and another user the next.
#[test]
fn only_the_directory_of_the_instance_is_private() {
    let directory = TempDir::new().unwrap();
    drop(load(&directory.path().join("lib/eth0").join(FILE)));
    std::fs::create_dir(directory.path().join("ordinary")).unwrap();
    let mode = |path: &str| directory.path().join(path).metadata().unwrap().permissions().mode();
    assert_eq!(mode("lib/eth0") & 0o027, 0);
    assert_eq!(mode("lib"), mode("ordinary"));
}

#[test]
fn file_is_in_the_state_directory() {
    let interface: IfName = "eth0".parse().unwrap();
    let expected = Path::new("/var/lib/tcptracker/eth0/tcptracker.db");
    assert_eq!(file_of(&interface, None), expected);
    assert_eq!(file_of(&interface, Some("/var/lib/tcptracker/eth0".into())), expected);
}
