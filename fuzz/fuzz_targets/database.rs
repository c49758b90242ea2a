//! Loads arbitrary rows from the database.
//!
//! The rows are inserted with SQLite, because this is how another program changes them. The file
//! format itself is SQLite's business.

#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use rusqlite::Connection;
use tcptracker::internals::{Database, Timeline, WallClock, parse_network, show_network};

/// A row of each table.
#[derive(Debug, Arbitrary)]
struct Rows<'a> {
    network: &'a str,
    since: i64,
    until: Option<i64>,
    offences: i64,
    reason: &'a str,
    evidence: Option<&'a str>,
    boot: Option<&'a str>,
    moment: i64,
    unix_nanos: i64,
}

/// The connection that writes, and the database that reads.
struct Pair {
    writer: Connection,
    reader: Database,
}

thread_local! {
    static PAIR: RefCell<Pair> = RefCell::new(open());
}

fn open() -> Pair {
    let file = std::env::temp_dir().join(format!("fuzz-{}.db", std::process::id()));
    let _ = std::fs::remove_file(&file);
    let reader = Database::open(&file).expect("a database");
    let writer = Connection::open(&file).expect("a second connection");
    writer.execute_batch("PRAGMA synchronous = off").expect("a pragma");
    Pair { writer, reader }
}

fuzz_target!(|rows: Rows| {
    PAIR.with_borrow_mut(|Pair { writer, reader }| {
        let transaction = writer.transaction().expect("no other writer");
        for table in ["block", "offences", "grace", "timeline"] {
            transaction.execute(&format!("DELETE FROM {table}"), ()).expect("our table");
        }
        // The tables have constraints, so that SQLite may refuse a row.
        let _ = transaction.execute(
            "INSERT INTO block VALUES (?, ?, ?, ?, ?, ?)",
            (rows.network, rows.since, rows.until, rows.offences, rows.reason, rows.evidence),
        );
        let _ = transaction.execute(
            "INSERT INTO offences VALUES (?, ?, ?)",
            (rows.network, rows.offences, rows.since),
        );
        let _ = transaction.execute("INSERT INTO grace VALUES (?, ?)", (rows.network, rows.since));
        let _ = transaction.execute(
            "INSERT INTO timeline VALUES (1, ?, ?, ?)",
            (rows.boot, rows.moment, rows.unix_nanos),
        );
        transaction.commit().expect("a commit");
        let present = Timeline::new(None, &WallClock::read());
        let content = reader.load(&present).expect("readable tables");
        for (network, block) in &content.remembered.blocks {
            assert_eq!(parse_network(&show_network(network)).as_ref(), Ok(network));
            assert!(network.prefix_len() > 0 && block.until.is_none_or(|until| until > block.since));
            assert!(!block.reason.to_string().contains(char::is_control));
        }
        // So that the log does not grow.
        let _ = reader.checkpoint();
    });
});
