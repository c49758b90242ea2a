//! The database file: its tables, and records in and out.
//!
//! Owns the SQL. It knows nothing of the ledger and decides nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, Row, Transaction, TransactionBehavior, params_from_iter};

use crate::block::store::records::{Offences, Record, Remembered};
use crate::block::store::timeline::Timeline;
use crate::block::store::{StoreError, beside};
use crate::types::{
    Block, BlockReason, Evidence, LONGEST_BLOCK, LONGEST_REASON, Moment, parse_network, printable,
    quotable,
};

/// "tcpt" in the file's header, by which file(1) and this module recognise it.
const APPLICATION: i32 = 0x7463_7074;

/// The version of the tables below.
const VERSION: i32 = 1;

/// How long to wait for another writer: the flusher, once in a thousand changes, or a user of sqlite3(1).
/// It is short because a caller who asks for a block waits as long.
const PATIENCE: Duration = Duration::from_millis(250);

/// How long reading the file may take: less than the watchdog waits for the thread that reads it.
const READING: Duration = Duration::from_secs(20);

/// Instructions of SQLite between two looks at the clock: less than a millisecond.
const STEPS: i32 = 10_000;

/// The longest evidence, in bytes. The service writes at most a tenth of it.
const LONGEST_EVIDENCE: usize = 64 << 10;

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

/// Everything in the file.
#[derive(Debug, Default)]
pub struct Content {
    /// On the file's own timeline.
    pub remembered: Remembered,
    /// None in a new file.
    pub timeline: Option<Timeline>,
    /// Rows that the service would not have written. They are left out.
    pub wrong: usize,
}

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
        check_kind(file)?;
        let log = beside(file, "-wal").metadata().map_or(0, |data| data.len());
        // With an empty log the file is complete. Otherwise SQLite needs the log's index, which exists then.
        let immutable = if log == 0 { "&immutable=1" } else { "" };
        let uri = PathBuf::from(format!("file:{}?mode=ro{immutable}", escaped(file)));
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
        let connection = Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        distrust(&connection)?;
        let database = Self(connection);
        if database.has_tables()? { Ok(database) } else { Err(StoreError::Foreign) }
    }

    /// Returns the number of blocks.
    pub fn count_blocks(&self) -> Result<u64, StoreError> {
        let count: i64 = self.0.query_row("SELECT count(*) FROM block", [], |row| row.get(0))?;
        Ok(count.unsigned_abs())
    }

    fn connect(file: &Path, create: OpenFlags) -> Result<Self, StoreError> {
        check_kind(file)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | create;
        let connection = Connection::open_with_flags(file, flags)?;
        distrust(&connection)?;
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

    /// Whether the file has the tables of this version and nothing else; false if it is empty.
    fn has_tables(&self) -> Result<bool, StoreError> {
        let number = |name| self.0.pragma_query_value(None, name, |row| row.get(0));
        let (application, version): (i32, i32) =
            (number("application_id")?, number("user_version")?);
        // SQLite may add tables of its own, with statistics.
        let sql = "SELECT sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite!_%' ESCAPE '!'";
        let mut statement = self.0.prepare(sql)?;
        let found: Vec<String> =
            statement.query_map((), |row| row.get(0))?.collect::<Result<_, _>>()?;
        match (application, version) {
            (APPLICATION, VERSION) => {}
            (APPLICATION, _) => return Err(StoreError::Newer(version)),
            _ if found.is_empty() => return Ok(false),
            _ => return Err(StoreError::Foreign),
        }
        let words = |sql: &str| sql.split_whitespace().collect::<Vec<_>>().join(" ");
        let ours: Vec<String> =
            TABLES.split(';').map(words).filter(|sql| !sql.is_empty()).collect();
        let found: Vec<String> = found.iter().map(|sql| words(sql)).collect();
        if let Some(missing) = ours.iter().find(|table| !found.contains(table)) {
            let name = missing.split(' ').nth(2).unwrap_or_default();
            return Err(StoreError::Damaged(format!("its table {name} is missing or changed")));
        }
        match found.iter().find(|sql| !ours.contains(sql)) {
            // Such as a trigger, which would run with each write.
            Some(foreign) => Err(StoreError::Damaged(format!("unexpected {}", quotable(foreign)))),
            None => Ok(true),
        }
    }

    /// Reads the whole file to see whether it is as it was written.
    pub fn check(&self) -> Result<(), StoreError> {
        let check: String = self.within(READING, || {
            Ok(self.0.query_row("PRAGMA quick_check(1)", (), |row| row.get(0))?)
        })?;
        // SQLite may return several lines.
        if check == "ok" { Ok(()) } else { Err(StoreError::Damaged(check.replace('\n', " "))) }
    }

    /// Reads everything that the service can have written until the present.
    pub fn load(&self, present: &Timeline) -> Result<Content, StoreError> {
        self.check()?;
        self.within(READING, || self.read_all(present))
    }

    fn read_all(&self, present: &Timeline) -> Result<Content, StoreError> {
        let mut wrong = 0;
        let timeline = "SELECT boot, moment, unix_nanos FROM timeline";
        let timeline = self.rows(timeline, &mut wrong, |row| {
            let moment = moment(row, 1, Moment::LAST)?;
            let unix_nanos = row.get::<_, i64>(2).ok()?.into();
            Some(Timeline { boot: row.get(0).ok()?, moment, unix_nanos })
        })?;
        let timeline = timeline.into_iter().next();
        let latest = timeline.as_ref().map_or(Moment::LAST, |line| line.latest_until(present));
        let blocks = "SELECT network, since, until, offences, reason, evidence FROM block";
        let offences = "SELECT network, latest, count FROM offences ORDER BY latest";
        let graces = "SELECT network, until FROM grace ORDER BY until";
        let remembered = Remembered {
            blocks: self.rows(blocks, &mut wrong, |row| read_block(row, latest))?,
            offences: self.rows(offences, &mut wrong, |row| {
                let latest = moment(row, 1, latest)?;
                Some((network(row)?, Offences { count: row.get(2).ok()?, latest }))
            })?,
            graces: self.rows(graces, &mut wrong, |row| {
                Some((network(row)?, moment(row, 1, latest + LONGEST_BLOCK)?))
            })?,
        };
        Ok(Content { remembered, timeline, wrong })
    }

    /// Reads rows one by one, and counts the wrong ones.
    fn rows<T>(
        &self,
        sql: &str,
        wrong: &mut usize,
        read: impl Fn(&Row<'_>) -> Option<T>,
    ) -> Result<Vec<T>, StoreError> {
        let mut statement = self.0.prepare(sql)?;
        let mut rows = statement.query(())?;
        let mut values = Vec::new();
        while let Some(row) = rows.next()? {
            match read(row) {
                Some(value) => values.push(value),
                None => *wrong += 1,
            }
        }
        Ok(values)
    }

    /// Interrupts SQLite if it works longer than this.
    fn within<T>(
        &self,
        limit: Duration,
        work: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let begun = Moment::now();
        self.0.progress_handler(STEPS, Some(move || Moment::now().is_past(begun, limit)))?;
        let result = work();
        self.0.progress_handler(STEPS, None::<fn() -> bool>)?;
        result
    }

    /// Writes a copy to a file that does not exist.
    pub fn copy_to(&self, file: &Path) -> Result<(), StoreError> {
        // SQLite takes any path, but rusqlite binds text.
        let file = file.to_string_lossy();
        self.within(READING, || Ok(self.0.execute("VACUUM INTO ?", [file]).map(drop)?))
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
    for record in records {
        let (table, network, values) = match record {
            Record::Block(network, block) => ("block", network, block.map(block_values)),
            Record::Offences(network, past) => {
                let values = |past: Offences| vec![past.count.into(), number(past.latest).into()];
                ("offences", network, past.map(values))
            }
            Record::Grace(network, until) => {
                ("grace", network, until.map(|until| vec![number(until).into()]))
            }
        };
        let sql = match &values {
            Some(values) => {
                let places = ", ?".repeat(values.len());
                format!("INSERT OR REPLACE INTO {table} VALUES (?{places})")
            }
            None => format!("DELETE FROM {table} WHERE network = ?"),
        };
        let network = Value::from(network.to_string());
        let row = std::iter::once(network).chain(values.into_iter().flatten());
        transaction.prepare_cached(&sql)?.execute(params_from_iter(row))?;
    }
    Ok(())
}

/// The columns after the network.
fn block_values(block: &Block) -> Vec<Value> {
    let Block { since, until, offences, reason } = block;
    // Numbers and addresses always have a JSON form.
    let evidence = reason.evidence().and_then(|evidence| serde_json::to_string(evidence).ok());
    vec![
        number(*since).into(),
        until.map(number).into(),
        (*offences).into(),
        reason.to_string().into(),
        evidence.into(),
    ]
}

/// Reads a block as the bus accepts it: the file may have been changed by other programs.
fn read_block(row: &Row<'_>, latest: Moment) -> Option<(IpNet, Block)> {
    let since = moment(row, 1, latest)?;
    let until = match row.get::<_, Option<i64>>(2).ok()? {
        Some(_) => Some(moment(row, 2, since + LONGEST_BLOCK).filter(|until| *until > since)?),
        None => None,
    };
    let text = row.get_ref(4).ok()?.as_str().ok()?;
    let evidence = row.get_ref(5).ok()?.as_str_or_null().ok()?;
    // Evidence that this version does not understand leaves the text.
    let evidence = evidence.filter(|json| json.len() <= LONGEST_EVIDENCE);
    let evidence = evidence.and_then(|json| serde_json::from_str::<Box<Evidence>>(json).ok());
    let reason = match evidence {
        Some(evidence) => BlockReason::Scan(evidence),
        None if text == BlockReason::Found.to_string() => BlockReason::Found,
        None if text.chars().nth(LONGEST_REASON).is_some() => return None,
        // Earlier versions accepted invisible characters.
        None => BlockReason::Manual(printable(text).into_owned()),
    };
    Some((network(row)?, Block { since, until, offences: row.get(3).ok()?, reason }))
}

fn network(row: &Row<'_>) -> Option<IpNet> {
    let text = row.get_ref(0).ok()?.as_str().ok()?;
    // By this text the row is replaced and deleted.
    let network = parse_network(text).ok().filter(|network| network.to_string() == text)?;
    (network.prefix_len() > 0).then_some(network)
}

fn moment(row: &Row<'_>, column: usize, latest: Moment) -> Option<Moment> {
    let nanos = u64::try_from(row.get::<_, i64>(column).ok()?).ok()?;
    Some(Moment::from_nanos(nanos)).filter(|moment| *moment <= latest)
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

/// Checks that the database and the files beside it are files. SQLite would follow a link, and wait for the
/// other end of a FIFO.
fn check_kind(file: &Path) -> Result<(), StoreError> {
    let parts = ["", "-wal", "-shm", "-journal"].map(|suffix| beside(file, suffix));
    let is_other =
        |part: &PathBuf| part.symlink_metadata().is_ok_and(|metadata| !metadata.is_file());
    match parts.into_iter().find(is_other) {
        Some(part) => Err(StoreError::NoFile(part)),
        None => Ok(()),
    }
}

/// Allows nothing in the file to act (<https://sqlite.org/security.html>, "Untrusted SQLite Database Files").
fn distrust(connection: &Connection) -> Result<(), StoreError> {
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endless_statement_is_interrupted() {
        let directory = tempfile::TempDir::new().unwrap();
        let database = Database::open(&directory.path().join("file")).unwrap();
        let endless =
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n";
        let result = database
            .within(Duration::from_millis(10), || database.rows(endless, &mut 0, |_| Some(())));
        assert!(matches!(result, Err(StoreError::Slow)), "{result:?}");
        // The limit does not outlast the work.
        database.check().unwrap();
    }
}
