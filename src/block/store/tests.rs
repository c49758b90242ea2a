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

fn path_in(directory: &TempDir) -> StorePath {
    flusher(directory.path().join("eth0").join(FILE)).0
}

/// Loads a database that has to be usable.
#[track_caller]
fn load(path: &StorePath) -> Remembered {
    let opened = path.load(&clock());
    assert!(opened.store.is_ok(), "{}", opened.store.err().unwrap());
    assert_eq!(opened.quarantined, None);
    opened.loaded.remembered
}

#[test]
fn saved_records_load_unchanged_and_deleted_ones_do_not() {
    let directory = TempDir::new().unwrap();
    let path = path_in(&directory);
    let opened = path.load(&clock());
    assert_eq!(
        (opened.loaded.remembered, opened.loaded.is_outdated),
        (Remembered::default(), true)
    );
    let mut store = opened.store.unwrap();
    store.replace(&clock(), records(&everything())).unwrap();
    // Another connection sees the records while this one is open, as after a crash.
    assert_eq!(load(&path), everything());

    let gone = ["192.0.2.0/24", "192.0.2.9/32", "198.51.100.1/32"].map(|n| n.parse().unwrap());
    let changes = [
        Record::Block(gone[0], None),
        Record::Offences(gone[1], None),
        Record::Grace(gone[2], None),
        // Was never in the database.
        Record::Block(gone[2], None),
    ];
    store.write(changes.into_iter()).unwrap();
    drop(store);
    let mut left = everything();
    left.blocks.remove(0);
    left.offences.pop();
    left.graces.clear();
    assert_eq!(load(&path), left);
    assert!(!beside(&path.file, "-wal").exists(), "the database was closed properly");
}

#[test]
fn unusable_files_are_renamed_and_the_last_three_are_kept() {
    let directory = TempDir::new().unwrap();
    let path = path_in(&directory);
    drop(load(&path));
    let kept = |number: u32| beside(&path.file, &format!(".aside-{number}"));
    for round in 1..=5u32 {
        std::fs::write(&path.file, format!("garbage {round}")).unwrap();
        let opened = path.load(&clock());
        let quarantined = opened.quarantined.unwrap();
        assert!(quarantined.error.contains("damaged database"), "{quarantined:?}");
        assert_eq!(quarantined.kept, kept(1));
        let mut store = opened.store.unwrap();
        store.replace(&clock(), records(&everything())).unwrap();
        drop(store);
        assert_eq!(load(&path), everything());
        for number in 1..=round.min(3) {
            let kept = std::fs::read_to_string(kept(number)).unwrap();
            assert_eq!(kept, format!("garbage {}", round + 1 - number));
        }
    }
    assert_eq!(std::fs::read_dir(path.file.parent().unwrap()).unwrap().count(), 1 + 3);
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
        ("PRAGMA user_version = 1; PRAGMA application_id = 1952673908", "no such table"),
    ] {
        let directory = TempDir::new().unwrap();
        let path = path_in(&directory);
        std::fs::create_dir(path.file.parent().unwrap()).unwrap();
        Connection::open(&path.file).unwrap().execute_batch(sql).unwrap();
        let opened = path.load(&clock());
        let error = opened.quarantined.map(|quarantined| quarantined.error).unwrap_or_default();
        assert!(error.contains(why), "{error:?}");
        assert!(opened.store.is_ok(), "{why}");
        assert_eq!(load(&path), Remembered::default());
    }
}

#[test]
fn damage_anywhere_in_the_file_is_noticed() {
    let directory = TempDir::new().unwrap();
    let path = path_in(&directory);
    let many = Remembered {
        blocks: (0..2000u32)
            .map(|n| (IpNet::from(IpAddr::V4(n.into())), block("one of many")))
            .collect(),
        ..Remembered::default()
    };
    path.load(&clock()).store.unwrap().replace(&clock(), records(&many)).unwrap();
    let whole = std::fs::read(&path.file).unwrap();
    assert!(whole.len() > 20 * 4096);
    for damage in [
        // Truncated, a page of noise, a page of zeros.
        whole[..whole.len() / 2].to_vec(),
        [&whole[..5 * 4096], &[0xa5; 4096], &whole[6 * 4096..]].concat(),
        [&whole[..9 * 4096], &[0; 4096], &whole[10 * 4096..]].concat(),
    ] {
        std::fs::write(&path.file, damage).unwrap();
        let opened = path.load(&clock());
        assert!(opened.quarantined.is_some_and(|file| file.error.contains("damaged database")));
        assert_eq!(opened.loaded.remembered, Remembered::default());
        assert!(opened.store.is_ok());
    }
}

/// Some characters that the kernel accepts in a name have a meaning in a URI.
#[test]
fn file_with_special_characters_in_its_path_is_readable() {
    let directory = TempDir::new().unwrap();
    let interface: IfName = "e%3f#?&th".parse().unwrap();
    let state = directory.path().join(interface.as_str());
    let (path, _) = flusher(file_of(&interface, Some(state.into())));
    path.load(&clock()).store.unwrap().replace(&clock(), records(&everything())).unwrap();
    let read = Database::open_to_read(&path.file).unwrap();
    assert_eq!(read.load().unwrap().0, everything());
}

#[test]
fn content_of_a_large_log_moves_into_the_file() {
    let directory = TempDir::new().unwrap();
    let (path, flusher) = flusher(directory.path().join(FILE));
    let wordy = block(&"why ".repeat(50));
    let many = Remembered {
        blocks: (0..20_000u32)
            .map(|n| (IpNet::from(IpAddr::V4(n.into())), wordy.clone()))
            .collect(),
        ..Remembered::default()
    };
    let mut store = path.load(&clock()).store.unwrap();
    store.replace(&clock(), records(&many)).unwrap();
    let length = |file: &Path| file.metadata().unwrap().len();
    let log = beside(&path.file, "-wal");
    assert!(length(&log) > 4 << 20);
    flusher.flush(&Timeline::new(boot(), &clock())).unwrap();
    assert!(length(&log) < 1 << 16, "{}", length(&log));
    assert!(length(&path.file) > 4 << 20);
    store.write([Record::Block(many.blocks[0].0, None)].into_iter()).unwrap();
    assert_eq!(load(&path).blocks.len(), many.blocks.len() - 1);

    std::fs::remove_file(&log).unwrap();
    let removed = flusher.flush(&Timeline::new(boot(), &clock()));
    assert!(matches!(removed, Err(StoreError::Removed)), "{removed:?}");
}

/// Root may have run one instance, and another user the next.
#[test]
fn only_the_directory_of_the_instance_is_private() {
    let directory = TempDir::new().unwrap();
    let (path, _) = flusher(directory.path().join("lib/eth0").join(FILE));
    drop(load(&path));
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
