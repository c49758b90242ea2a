//! The database, on a real file.

use crate::block::store::{flusher::flusher, quarantine};
use crate::types::block::Offences;
use crate::types::block::{Block, Evidence};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use ipnet::IpNet;
use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::types::clock::Moment;
use crate::types::rule::Rule;
use crate::types::scan::{Attempt, ScanKind};
use crate::types::segment::Port;

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
        reason: reason.to_owned(),
        evidence: None,
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
    let scan = Block { evidence: Some(Box::new(evidence())), ..block("stealth scan: \"ports\" 1") };
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

fn place(directory: &TempDir) -> StorePath {
    flusher(directory.path().join("eth0").join(FILE)).0
}

/// What is recalled, and that all is well.
#[track_caller]
fn recalled(place: &StorePath) -> Remembered {
    let found = place.load(&clock());
    assert!(found.store.is_ok(), "{}", found.store.err().unwrap());
    assert_eq!(found.set_aside, None);
    found.remembered
}

#[test]
fn what_was_kept_is_recalled_as_it_was_and_what_has_ended_is_not() {
    let directory = TempDir::new().unwrap();
    let place = place(&directory);
    let found = place.load(&clock());
    assert_eq!((found.remembered, found.is_outdated), (Remembered::default(), true));
    let mut store = found.store.unwrap();
    store.write_anew(&clock(), records(&everything())).unwrap();
    // Another connection sees it while this one is open, as after a crash.
    assert_eq!(recalled(&place), everything());

    let gone = ["192.0.2.0/24", "192.0.2.9/32", "198.51.100.1/32"].map(|n| n.parse().unwrap());
    let changes = [
        Record::Block(gone[0], None),
        Record::Offences(gone[1], None),
        Record::Grace(gone[2], None),
        // Never there.
        Record::Block(gone[2], None),
    ];
    store.write(changes.into_iter()).unwrap();
    drop(store);
    let mut left = everything();
    left.blocks.remove(0);
    left.offences.pop();
    left.graces.clear();
    assert_eq!(recalled(&place), left);
    assert!(!beside(&place.file, "-wal").exists(), "closed in order");
}

/// One that is of no use is kept, and those that were kept before, as far as there is room.
#[test]
fn a_useless_file_is_set_aside_and_a_few_of_them_are_kept() {
    let directory = TempDir::new().unwrap();
    let place = place(&directory);
    drop(recalled(&place));
    let kept = |number: u32| beside(&place.file, &format!(".aside-{number}"));
    for round in 1..=5u32 {
        std::fs::write(&place.file, format!("garbage {round}")).unwrap();
        let found = place.load(&clock());
        let quarantined = found.set_aside.unwrap();
        assert!(quarantined.error.contains("is damaged"), "{quarantined:?}");
        assert_eq!(quarantined.kept, kept(1));
        let mut store = found.store.unwrap();
        store.write_anew(&clock(), records(&everything())).unwrap();
        drop(store);
        assert_eq!(recalled(&place), everything());
        for number in 1..=round.min(3) {
            let kept = std::fs::read_to_string(kept(number)).unwrap();
            assert_eq!(kept, format!("garbage {}", round + 1 - number));
        }
    }
    assert_eq!(std::fs::read_dir(place.file.parent().unwrap()).unwrap().count(), 1 + 3);
}

/// A log is part of its database, and must never lie beside another.
#[test]
fn a_log_goes_with_its_database() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join(FILE);
    let kept = |number: u32| beside(&file, &format!(".aside-{number}"));
    for (round, has_log) in [(1, true), (2, false)] {
        std::fs::write(&file, format!("file {round}")).unwrap();
        if has_log {
            std::fs::write(beside(&file, "-wal"), format!("log {round}")).unwrap();
        }
        std::fs::write(beside(&file, "-shm"), "index").unwrap();
        assert_eq!(quarantine::set_aside(&file).unwrap(), kept(1));
    }
    let read = |file: &Path| std::fs::read_to_string(file).ok();
    assert_eq!(read(&kept(1)).as_deref(), Some("file 2"));
    assert_eq!(read(&beside(&kept(1), "-wal")), None);
    assert_eq!(read(&kept(2)).as_deref(), Some("file 1"));
    assert_eq!(read(&beside(&kept(2), "-wal")).as_deref(), Some("log 1"));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 3, "and nothing else");
}

#[test]
fn files_of_others_and_of_later_versions_are_set_aside() {
    for (sql, why) in [
        ("CREATE TABLE recipes (soup TEXT)", "no database of tcptracker"),
        ("PRAGMA user_version = 2; PRAGMA application_id = 1952673908", "of format 2"),
        ("PRAGMA user_version = 1; PRAGMA application_id = 1952673908", "no such table"),
    ] {
        let directory = TempDir::new().unwrap();
        let place = place(&directory);
        std::fs::create_dir(place.file.parent().unwrap()).unwrap();
        Connection::open(&place.file).unwrap().execute_batch(sql).unwrap();
        let found = place.load(&clock());
        let error = found.set_aside.map(|quarantined| quarantined.error).unwrap_or_default();
        assert!(error.contains(why), "{error:?}");
        assert!(found.store.is_ok(), "{why}");
        assert_eq!(recalled(&place), Remembered::default());
    }
}

#[test]
fn damage_anywhere_is_noticed() {
    let directory = TempDir::new().unwrap();
    let place = place(&directory);
    let many = Remembered {
        blocks: (0..2000u32)
            .map(|n| (IpNet::from(IpAddr::V4(n.into())), block("one of many")))
            .collect(),
        ..Remembered::default()
    };
    place.load(&clock()).store.unwrap().write_anew(&clock(), records(&many)).unwrap();
    let whole = std::fs::read(&place.file).unwrap();
    assert!(whole.len() > 20 * 4096);
    for damage in [
        // Cut off; a page of noise; a page of nothing.
        whole[..whole.len() / 2].to_vec(),
        [&whole[..5 * 4096], &[0xa5; 4096], &whole[6 * 4096..]].concat(),
        [&whole[..9 * 4096], &[0; 4096], &whole[10 * 4096..]].concat(),
    ] {
        std::fs::write(&place.file, damage).unwrap();
        let found = place.load(&clock());
        assert!(found.set_aside.is_some_and(|file| file.error.contains("is damaged")));
        assert_eq!(found.remembered, Remembered::default());
        assert!(found.store.is_ok());
    }
}

/// SQLite would take some characters for its own, the kernel takes them for a name.
#[test]
fn what_cannot_be_written_is_read_whatever_its_name() {
    let directory = TempDir::new().unwrap();
    let interface: IfName = "e%3f#?&th".parse().unwrap();
    let state = directory.path().join(interface.as_str());
    let (place, _) = flusher(file_of(&interface, Some(state.into())));
    place.load(&clock()).store.unwrap().write_anew(&clock(), records(&everything())).unwrap();
    let read = Database::open_to_read(&place.file).unwrap();
    assert_eq!(read.load().unwrap().0, everything());
}

/// However much changes, the log stays as small as what it has room for.
#[test]
fn a_log_that_has_grown_is_moved_into_the_file() {
    let directory = TempDir::new().unwrap();
    let (place, flusher) = flusher(directory.path().join(FILE));
    let wordy = block(&"why ".repeat(50));
    let many = Remembered {
        blocks: (0..20_000u32)
            .map(|n| (IpNet::from(IpAddr::V4(n.into())), wordy.clone()))
            .collect(),
        ..Remembered::default()
    };
    let mut store = place.load(&clock()).store.unwrap();
    store.write_anew(&clock(), records(&many)).unwrap();
    let length = |file: &Path| file.metadata().unwrap().len();
    let log = beside(&place.file, "-wal");
    assert!(length(&log) > 4 << 20);
    flusher.flush(&Timeline::new(boot(), &clock())).unwrap();
    assert!(length(&log) < 1 << 16, "{}", length(&log));
    assert!(length(&place.file) > 4 << 20);
    store.write([Record::Block(many.blocks[0].0, None)].into_iter()).unwrap();
    assert_eq!(recalled(&place).blocks.len(), many.blocks.len() - 1);

    std::fs::remove_file(&log).unwrap();
    let removed = flusher.flush(&Timeline::new(boot(), &clock()));
    assert!(matches!(removed, Err(StoreError::Removed)), "{removed:?}");
}

/// One instance may have been run by root, the next by its own user.
#[test]
fn only_the_instances_own_directory_is_closed_to_others() {
    let directory = TempDir::new().unwrap();
    let (place, _) = flusher(directory.path().join("lib/eth0").join(FILE));
    drop(recalled(&place));
    std::fs::create_dir(directory.path().join("ordinary")).unwrap();
    let mode = |path: &str| directory.path().join(path).metadata().unwrap().permissions().mode();
    assert_eq!(mode("lib/eth0") & 0o027, 0);
    assert_eq!(mode("lib"), mode("ordinary"));
}

#[test]
fn the_file_lies_where_the_contract_says() {
    let interface: IfName = "eth0".parse().unwrap();
    let expected = Path::new("/var/lib/tcptracker/eth0/tcptracker.db");
    assert_eq!(file_of(&interface, None), expected);
    assert_eq!(file_of(&interface, Some("/var/lib/tcptracker/eth0".into())), expected);
}
