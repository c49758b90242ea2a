//! A start that restores many blocks, compared with `ipset restore` of the same list.

use std::fmt::Write;
use std::time::Instant;

use rusqlite::Connection;

use crate::lab::Lab;
use crate::{median, row};

const BLOCKS: u32 = 100_000;

/// Inserts automatic blocks that expire in 1 h, in the format of the service.
const MANY: &str = r#"
    WITH RECURSIVE number(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM number WHERE n + 1 < ?)
    INSERT INTO block
    SELECT
        format('11.%d.%d.%d/32', n >> 16, n >> 8 & 255, n & 255),
        moment,
        moment + 3600 * 1000000000,
        1,
        'vertical scan: ports 1, 2, 3, 4',
        format('{"kind":"vertical","address":"11.%d.%d.%d","destination":"10.78.0.2",
            "attempts":[{"port":1,"moment":%d},{"port":2,"moment":%d},{"port":3,"moment":%d},
            {"port":4,"moment":%d}],"probes":4,"threshold":3,"span":{"secs":60,"nanos":0}}',
            n >> 16, n >> 8 & 255, n & 255, moment, moment, moment, moment)
    FROM number, timeline
"#;

/// Writes `count` blocks to the database, for the next start to restore.
pub(crate) fn block_many(lab: &Lab, count: u32) {
    let database = Connection::open(lab.state().join("tcptracker.db")).unwrap();
    database.execute(MANY, (count,)).unwrap();
}

/// Measures from the start of the process to its ready message, with and without blocks to restore.
pub(crate) fn run() {
    let lab = Lab::new();
    let start = || {
        let before = Instant::now();
        let service = lab.serve();
        let took = before.elapsed().as_secs_f64();
        drop(service);
        took
    };
    let empty = median((0..3).map(|_| start()).collect());
    block_many(&lab, BLOCKS);
    let mut list = "create many hash:net timeout 0 counters maxelem 524288\n".to_owned();
    for n in 0..BLOCKS {
        writeln!(list, "add many 11.{}.{}.{} timeout 3600", n >> 16, n >> 8 & 255, n & 255)
            .unwrap();
    }
    let file = lab.state().join("list");
    std::fs::write(&file, list).unwrap();
    let ipset = |arguments: &[&str]| {
        let mut command = lab.on_victim("ipset", arguments);
        let before = Instant::now();
        assert!(command.status().unwrap().success());
        before.elapsed().as_secs_f64()
    };
    let (mut ours, mut reference) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        ours.push(start());
        reference.push(ipset(&["restore", "-file", file.to_str().unwrap()]));
        ipset(&["destroy", "many"]);
    }
    let (ours, reference) = (median(ours), median(reference));
    row(
        &format!("start: {BLOCKS} blocks restored; reference: ipset restore"),
        &format!("{ours:.2} s"),
        &format!("{reference:.2} s"),
        Some(ours / reference),
        "below 1 s, or at most 3 times",
    );
    row("start: nothing to restore", &format!("{empty:.2} s"), "-", None, "");
}
