//! The database file: its tables, and records in and out.
//!
//! Owns the SQL. It knows nothing of the ledger and decides nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use rusqlite::{Connection, OpenFlags, Row, ToSql, Transaction, TransactionBehavior};

use crate::block::store::records::{Offences, Record, Remembered};
use crate::block::store::timeline::Timeline;
use crate::block::store::{StoreError, beside};
use crate::types::{Block, BlockReason, Evidence, Moment};

/// "tcpt" in the file's header, by which file(1) and this module recognise it.
const APPLICATION: i32 = 0x7463_7074;

/// The version of the tables below.
const VERSION: i32 = 1;

/// How long to wait for another writer: the flusher, once in a thousand changes, or a user of sqlite3(1).
/// It is short because a caller who asks for a block waits as long.
const PATIENCE: Duration = Duration::from_millis(250);

/// Moments are nanoseconds on the timeline of the boot in the only row of `timeline`.
const TABLES: &str = "
    CREATE TABLE timeline (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        boot TEXT,
        moment INTEGER NOT NULL,
        unix_nanos INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE block (
        network TEXT PRIMARY KEY,
        since INTEGER NOT NULL,
        until INTEGER,
        offences INTEGER NOT NULL,
        reason TEXT NOT NULL,
        evidence TEXT
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE offences (
        network TEXT PRIMARY KEY,
        count INTEGER NOT NULL,
        latest INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE grace (
        network TEXT PRIMARY KEY,
        until INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
";

/// A connection to the file.
pub struct Database(Connection);

impl Database {
    /// Opens the file to read and write; creates it if it is missing.
    pub fn open(file: &Path) -> Result<Self, StoreError> {
        let database = Self::connect(file, OpenFlags::SQLITE_OPEN_CREATE)?;
        if !database.has_tables()? {
            let transaction = database.0.unchecked_transaction()?;
            transaction.execute_batch(TABLES)?;
            transaction.pragma_update(None, "application_id", APPLICATION)?;
            transaction.pragma_update(None, "user_version", VERSION)?;
            transaction.commit()?;
        }
        Ok(database)
    }

    /// Opens a file that another connection of this process has open.
    pub fn open_again(file: &Path) -> Result<Self, StoreError> {
        Self::connect(file, OpenFlags::empty())
    }

    /// Opens a file that cannot be written.
    pub fn open_to_read(file: &Path) -> Result<Self, StoreError> {
        let log = beside(file, "-wal").metadata().map_or(0, |data| data.len());
        // With an empty log the file is complete. Otherwise SQLite needs the log's index, which exists then.
        let immutable = if log == 0 { "&immutable=1" } else { "" };
        let uri = PathBuf::from(format!("file:{}?mode=ro{immutable}", escaped(file)));
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
        let database =
            Self(Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?);
        if database.has_tables()? { Ok(database) } else { Err(StoreError::Foreign) }
    }

    /// Returns the number of blocks.
    pub fn count_blocks(&self) -> Result<u64, StoreError> {
        let count: i64 = self.0.query_row("SELECT count(*) FROM block", [], |row| row.get(0))?;
        Ok(count.unsigned_abs())
    }

    fn connect(file: &Path, create: OpenFlags) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | create;
        let connection = Connection::open_with_flags(file, flags)?;
        connection.busy_timeout(PATIENCE)?;
        // With a write-ahead log a commit is written, not flushed: it outlives the process at once, and a
        // power cut after the next flush.
        let mode: String =
            connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
        if mode != "wal" {
            return Err(StoreError::NoLog);
        }
        connection.pragma_update(None, "synchronous", "normal")?;
        connection.pragma_update(None, "wal_autocheckpoint", 0)?;
        // The log shrinks when its content was moved.
        connection.pragma_update(None, "journal_size_limit", 0)?;
        Ok(Self(connection))
    }

    /// Whether the file has the tables of this version; false if it has none.
    fn has_tables(&self) -> Result<bool, StoreError> {
        let number = |name| self.0.pragma_query_value(None, name, |row| row.get(0));
        let (application, version): (i32, i32) =
            (number("application_id")?, number("user_version")?);
        if application == APPLICATION {
            return if version == VERSION { Ok(true) } else { Err(StoreError::Newer(version)) };
        }
        let tables: u32 =
            self.0.query_row("SELECT count(*) FROM sqlite_schema", (), |row| row.get(0))?;
        if tables == 0 { Ok(false) } else { Err(StoreError::Foreign) }
    }

    /// Reads the whole file to see whether it is as it was written.
    pub fn check(&self) -> Result<(), StoreError> {
        let check: String = self.0.query_row("PRAGMA quick_check(1)", (), |row| row.get(0))?;
        // SQLite may return several lines.
        if check == "ok" { Ok(()) } else { Err(StoreError::Damaged(check.replace('\n', " "))) }
    }

    /// Everything in the file, and the timeline on which it was written; none in a new file.
    pub fn load(&self) -> Result<(Remembered, Option<Timeline>), StoreError> {
        self.check()?;
        let blocks = "SELECT network, since, until, offences, reason, evidence FROM block";
        let offences = "SELECT network, count, latest FROM offences ORDER BY latest";
        let graces = "SELECT network, until FROM grace ORDER BY until";
        let timeline = "SELECT boot, moment, unix_nanos FROM timeline";
        let remembered = Remembered {
            blocks: self.rows(blocks, read_block)?,
            offences: self.rows(offences, |row| {
                Ok((network(row)?, Offences { count: row.get(1)?, latest: moment(row.get(2)?)? }))
            })?,
            graces: self.rows(graces, |row| Ok((network(row)?, moment(row.get(1)?)?)))?,
        };
        let timeline = self.rows(timeline, |row| {
            let unix_nanos = row.get::<_, i64>(2)?.into();
            Ok(Timeline { boot: row.get(0)?, moment: moment(row.get(1)?)?, unix_nanos })
        })?;
        Ok((remembered, timeline.into_iter().next()))
    }

    fn rows<T>(
        &self,
        sql: &str,
        read: impl Fn(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let mut statement = self.0.prepare(sql)?;
        let mut rows = statement.query(())?;
        let mut values = Vec::new();
        while let Some(row) = rows.next()? {
            values.push(read(row)?);
        }
        Ok(values)
    }

    /// Writes all of these records or none.
    pub fn write<'a>(
        &mut self,
        records: impl Iterator<Item = Record<'a>>,
    ) -> Result<(), StoreError> {
        let transaction = begin(&mut self.0)?;
        write_all(&transaction, records)?;
        Ok(transaction.commit()?)
    }

    /// Replaces all records by these, on this timeline.
    pub fn replace<'a>(
        &mut self,
        timeline: &Timeline,
        records: impl Iterator<Item = Record<'a>>,
    ) -> Result<(), StoreError> {
        let transaction = begin(&mut self.0)?;
        transaction.execute_batch("DELETE FROM block; DELETE FROM offences; DELETE FROM grace")?;
        write_timeline(&transaction, timeline)?;
        write_all(&transaction, records)?;
        Ok(transaction.commit()?)
    }

    /// Notes where the wall clock stands.
    pub fn set_timeline(&self, timeline: &Timeline) -> Result<(), StoreError> {
        write_timeline(&self.0, timeline)
    }

    /// Moves the content of the log into the file and flushes it, as far as no other connection has to wait.
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        Ok(self.0.query_row("PRAGMA wal_checkpoint(PASSIVE)", (), |_| Ok(()))?)
    }
}

fn begin(connection: &mut Connection) -> rusqlite::Result<Transaction<'_>> {
    connection.transaction_with_behavior(TransactionBehavior::Immediate)
}

fn write_timeline(connection: &Connection, timeline: &Timeline) -> Result<(), StoreError> {
    let Timeline { boot, moment, unix_nanos } = timeline;
    let unix_nanos = i64::try_from(*unix_nanos).unwrap_or(i64::MAX);
    let sql = "INSERT OR REPLACE INTO timeline VALUES (1, ?, ?, ?)";
    connection.execute(sql, (boot, number(*moment), unix_nanos))?;
    Ok(())
}

fn write_all<'a>(
    transaction: &Transaction<'_>,
    records: impl Iterator<Item = Record<'a>>,
) -> Result<(), StoreError> {
    let run = |sql: &str, values: &[&dyn ToSql]| {
        transaction.prepare_cached(sql)?.execute(values).map(drop)
    };
    for record in records {
        match record {
            Record::Block(network, Some(block)) => {
                let Block { since, until, offences, reason } = block;
                let evidence = reason.evidence().map(serde_json::to_string).transpose();
                run(
                    "INSERT OR REPLACE INTO block VALUES (?, ?, ?, ?, ?, ?)",
                    &[
                        &network.to_string(),
                        &number(*since),
                        &until.map(number),
                        offences,
                        &reason.to_string(),
                        // Numbers and addresses always have a JSON form.
                        &evidence.unwrap_or_default(),
                    ],
                )?;
            }
            Record::Offences(network, Some(Offences { count, latest })) => run(
                "INSERT OR REPLACE INTO offences VALUES (?, ?, ?)",
                &[&network.to_string(), &count, &number(latest)],
            )?,
            Record::Grace(network, Some(until)) => run(
                "INSERT OR REPLACE INTO grace VALUES (?, ?)",
                &[&network.to_string(), &number(until)],
            )?,
            Record::Block(network, None) => {
                run("DELETE FROM block WHERE network = ?", &[&network.to_string()])?;
            }
            Record::Offences(network, None) => {
                run("DELETE FROM offences WHERE network = ?", &[&network.to_string()])?;
            }
            Record::Grace(network, None) => {
                run("DELETE FROM grace WHERE network = ?", &[&network.to_string()])?;
            }
        }
    }
    Ok(())
}

fn read_block(row: &Row<'_>) -> Result<(IpNet, Block), StoreError> {
    let until: Option<i64> = row.get(2)?;
    let (text, evidence): (String, Option<String>) = (row.get(4)?, row.get(5)?);
    // Evidence that this version does not understand leaves the text.
    let evidence = evidence.and_then(|json| serde_json::from_str::<Box<Evidence>>(&json).ok());
    let reason = match evidence {
        Some(evidence) => BlockReason::Scan(evidence),
        None if text == BlockReason::Found.to_string() => BlockReason::Found,
        None => BlockReason::Manual(text),
    };
    let (since, offences) = (moment(row.get(1)?)?, row.get(3)?);
    let block = Block { since, until: until.map(moment).transpose()?, offences, reason };
    Ok((network(row)?, block))
}

fn network(row: &Row<'_>) -> Result<IpNet, StoreError> {
    let text: String = row.get(0)?;
    text.parse().map_err(|_| StoreError::Damaged(format!("{text:?} is not a network")))
}

fn moment(number: i64) -> Result<Moment, StoreError> {
    let nanos = u64::try_from(number);
    nanos
        .map(Moment::from_nanos)
        .map_err(|_| StoreError::Damaged(format!("{number} is not a time")))
}

fn number(moment: Moment) -> i64 {
    i64::try_from(moment.as_nanos()).unwrap_or(i64::MAX)
}

/// A path for a URI, in which `%`, `?` and `#` have a meaning.
fn escaped(file: &Path) -> String {
    let escape = |byte: &u8| {
        let plain = byte.is_ascii_alphanumeric() || b"/._-".contains(byte);
        if plain { char::from(*byte).to_string() } else { format!("%{byte:02x}") }
    };
    file.as_os_str().as_encoded_bytes().iter().map(escape).collect()
}
