//! Many blocks, as an earlier instance has left them: to make them one by one would take its time.

use std::net::Ipv4Addr;

use crate::lab::Lab;

/// The first of them.
pub const FIRST: &str = "100.64.0.0";

/// Has the next instance on `eth0` remember so many blocks, until unblocked and all for this reason.
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
