//! RecordedFrame blocks of an earlier instance, written to the database directly, because D-Bus calls are
//! slow.

use std::net::Ipv4Addr;

use crate::lab::Lab;

/// The first saved address.
pub const FIRST: &str = "100.64.0.0";

/// Saves blocks without an end, all with this reason, for the next instance on `eth0`.
pub fn save_blocks(lab: &Lab, count: u32, reason: &str) {
    let mut service = lab.start();
    lab.bus.call("eth0", &["Block", "sts", FIRST, "0", reason]).ok();
    assert_eq!(service.stop().code(), Some(0));

    let file = lab.state_directory("eth0").join("tcptracker.db");
    let mut database = rusqlite::Connection::open(file).unwrap();
    let all = database.transaction().unwrap();
    {
        let copy = "INSERT INTO block SELECT ?1, since, until, offences, reason, evidence \
                    FROM block WHERE network = ?2";
        let mut copy = all.prepare(copy).unwrap();
        let first: Ipv4Addr = FIRST.parse().unwrap();
        for address in (1..count).map(|number| Ipv4Addr::from(u32::from(first) + number)) {
            copy.execute([format!("{address}/32"), format!("{first}/32")]).unwrap();
        }
    }
    all.commit().unwrap();
}
