//! Persistence of blocks across stops, crashes, reboots and disk failures.

use std::path::{Path, PathBuf};

use crate::bus::Block;
use crate::bus_client::{BusClient, Reply};
use crate::disk::Disk;
use crate::kernel::{Rules, remaining, wipe};
use crate::lab::{ATTACKER, Lab, OPEN_PORT, VICTIM};
use crate::scenarios::repairs::shell;
use crate::service::{Service, Start};
use crate::tools::unix_now;

/// The reported cause, and a function that damages the file.
type Damage<'a> = (&'a str, &'a dyn Fn(&Path));

fn file(lab: &Lab) -> PathBuf {
    lab.state_directory("eth0").join("tcptracker.db")
}

fn block(lab: &Lab, address: &str, seconds: &str) {
    lab.bus.call("eth0", &["Block", "sts", address, seconds, "by a test"]).ok();
}

/// Starts an instance that sees another boot: a different boot ID and an uptime of `age` seconds.
fn start_after_reboot(lab: &Lab, boot: &str, age: i64) -> Service {
    let name = lab.path(boot);
    std::fs::write(&name, format!("{boot}\n")).unwrap();
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
    let uptime: i64 = uptime.split('.').next().unwrap().parse().unwrap();
    let enter =
        format!("mount --bind {} /proc/sys/kernel/random/boot_id && exec \"$@\"", name.display());
    let offset = (age - uptime).to_string();
    let clock = ["unshare", "--time", "--boottime", &offset, "--fork", "--kill-child"];
    let words = ["sh", "-c", &enter, "sh"].into_iter().chain(clock);
    Start::on("eth0").through(words).begin(lab).await_ready()
}

/// Creates an automatic block, a permanent network block and a temporary IPv6 block, and unblocks a
/// fourth address.
fn fill(lab: &Lab, service: &mut Service) -> Vec<Block> {
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line(&format!("WARN blocked {ATTACKER}"));
    block(lab, "203.0.113.0/24", "0");
    block(lab, "2001:db8::/32", "7200");
    block(lab, "198.51.100.1", "7200");
    lab.bus.call("eth0", &["Unblock", "s", "198.51.100.1"]).ok();
    lab.bus.list()
}

/// Asserts that the blocks are the same, with 1 s of tolerance: the kernel counts whole seconds,
/// and the service compares the clocks again at each start.
#[track_caller]
fn assert_restored(lab: &Lab, before: &[Block]) {
    let after = lab.bus.list();
    assert_eq!(after.len(), before.len(), "{after:?}");
    for (before, after) in before.iter().zip(&after) {
        assert_eq!((&before.0, before.3, &before.4), (&after.0, after.3, &after.4));
        assert!(before.1.abs_diff(after.1) <= 1 && before.2.abs_diff(after.2) <= 1, "{after:?}");
    }
    Rules::of(&lab.victim).assert_enforced_for(&["eth0"]);
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    lab.bystander.assert_reaches(VICTIM, OPEN_PORT);
    let until = lab.bus.block_of(&ATTACKER).2;
    let earliest = unix_now();
    let left = remaining(&lab.victim, "tcptracker-eth0-v4", "10.77.0.1");
    let ends = earliest + left..=unix_now() + left;
    assert!((ends.start() - 2..=ends.end() + 2).contains(&until), "{left} s left until {until}");
}

#[test]
fn restart_restores_all_blocks() {
    let lab = Lab::new();
    let mut service = lab.start();
    let before = fill(&lab, &mut service);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);

    let mut service = lab.start();
    service.await_line("restored 3 blocks");
    assert_restored(&lab, &before);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
    // Other users must not read the database: it lists observed hosts.
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &lab.state_directory("eth0").metadata().unwrap().permissions(),
    );
    assert_eq!(mode & 0o7, 0, "{mode:o}");
}

#[test]
fn reboot_restores_all_blocks() {
    let lab = Lab::new();
    let mut service = lab.start();
    let before = fill(&lab, &mut service);
    service.crash();
    wipe(&lab.victim);
    lab.assert_untouched();
    let mut service = start_after_reboot(&lab, "the-next-boot", 60);
    assert_restored(&lab, &before);
    service.crash();
    wipe(&lab.victim);
    // Adopted blocks are stored relative to the new boot's clock.
    let mut service = start_after_reboot(&lab, "another-boot", 2);
    assert_restored(&lab, &before);
    service.crash();
    let mut service = lab.start();
    assert_restored(&lab, &before);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// netfilter-persistent and ipset.service restore the sets they once saved at each boot.
#[test]
fn stale_saved_sets_do_not_block_unblocked_addresses() {
    let lab = Lab::new();
    lab.configure("[block]\ngrace_after_unblock = \"0s\"\n");
    let mut service = lab.start();
    block(&lab, "10.77.0.1", "0");
    let at = |name: &str| lab.path(name).display().to_string();
    let (sets, rules) = (at("sets"), at("rules"));
    shell(&lab.victim, &format!("ipset save >{sets}; iptables-save >{rules}"));
    lab.bus.call("eth0", &["Unblock", "s", "10.77.0.1"]).ok();
    assert_eq!(service.stop().code(), Some(0));

    shell(&lab.victim, &format!("ipset restore <{sets}; iptables-restore <{rules}"));
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    let mut service = start_after_reboot(&lab, "the-next-boot", 60);
    service.await_line("removed 1 stale block that another program restored to the kernel");
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
    assert_eq!(lab.bus.list(), []);
}

#[test]
fn offence_count_survives_restarts() {
    let lab = Lab::new();
    lab.configure("[block]\ndurations = [\"2s\", \"1h\", \"forever\"]\n");
    for (offence, span) in [(1, "for 2s"), (2, "for 1h"), (3, "until unblocked")] {
        let mut service = lab.start();
        if offence == 3 {
            // Replaces the 1 h block by a short one, so that the test need not wait for its end.
            lab.bus.call("eth0", &["Block", "sts", "10.77.0.1", "1", "to let it end"]).ok();
            service.await_line("unblocked 10.77.0.1: expired");
        }
        // Exactly 4 ports: a probe after the end of the 2 s block would start the next offence.
        lab.attacker.nmap("-sS -p 1-4", VICTIM);
        service.await_line(&format!("WARN blocked 10.77.0.1 {span} (offence {offence})"));
        if offence == 1 {
            service.await_line("unblocked 10.77.0.1: expired");
        }
        if offence == 2 {
            service.crash();
        } else {
            assert_eq!(service.stop().code(), Some(0));
        }
    }
    let mut service = lab.start();
    assert_eq!(lab.bus.block_of(&ATTACKER).2, 0);
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn grace_after_unblock_survives_restarts() {
    let lab = Lab::new();
    let mut service = lab.start();
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line(&format!("WARN blocked {ATTACKER}"));
    lab.bus.call("eth0", &["Unblock", "s", "10.77.0.1"]).ok();
    // The reply promises that the change is durable: crash right after it.
    service.crash();
    for by_crash in [true, false] {
        let mut service = lab.start();
        assert_eq!(lab.bus.list(), []);
        lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
        lab.attacker.nmap("-sS -p 1-10", VICTIM);
        service.await_line("did not block 10.77.0.1: unblocked manually");
        lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
        if by_crash {
            service.crash();
        } else {
            assert_eq!(service.stop().code(), Some(0));
        }
    }
    lab.assert_untouched();
}

/// Blocks stay, requests succeed, and the state is degraded.
#[test]
fn full_disk_keeps_all_blocks() {
    let lab = Lab::new();
    let disk = Disk::for_state(&lab, 512);
    let mut service = lab.start();
    for address in ["10.77.0.1", "198.51.100.1"] {
        block(&lab, address, "0");
    }
    disk.fill();
    // Writes succeed until the free pages of the file are used up.
    let mut more = 0;
    while lab.bus.property("State").1 == "enforcing" {
        more += 1;
        assert!(more < 200, "the disk never became full");
        block(&lab, &format!("203.0.113.{more}"), "0");
    }
    let said = service.await_line("degraded: ");
    assert!(said.contains("tcptracker.db: the disk is full; free some space"), "{said}");
    assert_eq!(lab.victim.http_get(8081, "/health").0, 503);
    lab.bus.call("eth0", &["Unblock", "s", "198.51.100.1"]).ok();
    block(&lab, "198.51.100.2", "0");
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    let before = lab.bus.list();
    assert_eq!(before.len(), more + 2);

    service.crash();
    let mut service = lab.start();
    assert_eq!(lab.bus.property("State").1, "degraded");
    assert_eq!(lab.bus.list().iter().map(|b| &b.0).collect::<Vec<_>>(), addresses(&before));
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);

    disk.free_space();
    service.await_line("enforcing: no problems");
    assert_eq!(service.stop().code(), Some(0));
    let mut service = lab.start();
    assert_eq!(lab.bus.list().iter().map(|b| &b.0).collect::<Vec<_>>(), addresses(&before));
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn read_only_disk_still_restores_blocks() {
    let lab = Lab::new();
    let disk = Disk::for_state(&lab, 4096);
    let mut service = lab.start();
    let before = fill(&lab, &mut service);
    // With a write-ahead log next to the file, and without.
    for by_crash in [true, false] {
        if by_crash {
            service.crash();
        } else {
            disk.set_read_only(false);
            service = lab.start();
            assert_eq!(service.stop().code(), Some(0));
        }
        wipe(&lab.victim);
        disk.set_read_only(true);
        service = lab.start();
        assert_restored(&lab, &before);
        let said = service.await_line("degraded: ");
        assert!(said.contains("is read-only, or belongs to another user"), "{said}");
        // Requests still succeed; new changes are not stored.
        block(&lab, "198.51.100.9", "0");
        lab.bus.call("eth0", &["Unblock", "s", "198.51.100.9"]).ok();
        assert_eq!(service.stop().code(), Some(0));
    }
    lab.assert_untouched();
}

#[test]
fn unusable_database_is_moved_and_blocks_are_adopted() {
    let lab = Lab::new();
    let mut service = lab.start();
    fill(&lab, &mut service);
    // SQLite would repair the file from its write-ahead log. Closing the database moves the log
    // into the file first.
    let without_log = |file: &Path| {
        let file = rusqlite::Connection::open(file).unwrap();
        file.query_row("PRAGMA quick_check", (), |_| Ok(())).unwrap();
    };
    let damage: [Damage<'_>; 3] = [
        ("damaged database", &|file| {
            without_log(file);
            std::fs::write(file, "garbage").unwrap();
        }),
        ("damaged database", &|file| {
            without_log(file);
            let whole = std::fs::read(file).unwrap();
            std::fs::write(file, &whole[..whole.len() / 2]).unwrap();
        }),
        ("unsupported database version 9; upgrade tcptracker", &|file| {
            let file = rusqlite::Connection::open(file).unwrap();
            file.execute_batch("PRAGMA user_version = 9").unwrap();
        }),
    ];
    for (number, (why, damage)) in damage.into_iter().enumerate() {
        service.crash();
        damage(&file(&lab));
        service = lab.start();
        let said = service.await_line("cannot use ");
        assert!(said.contains(&format!("tcptracker.db ({why}")), "{said}");
        assert!(said.contains("moved it to ") && said.contains("tcptracker.db.aside-1"), "{said}");
        assert_eq!(lab.bus.list().len(), 3, "blocks were not adopted from the kernel");
        assert_eq!(lab.bus.property("State").1, "enforcing");
        assert!(file(&lab).with_extension(format!("db.aside-{}", number + 1)).exists());
        lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    }
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// Rows that another program changed, or a faulty disk.
#[test]
fn wrong_rows_of_the_database_cost_only_themselves() {
    let lab = Lab::new();
    let mut service = lab.start();
    let before = fill(&lab, &mut service);
    assert_eq!(service.stop().code(), Some(0));
    let rows = "
        INSERT INTO block VALUES ('oops', 1, 2, 1, 'x', NULL);
        INSERT INTO block VALUES ('192.0.2.1/32', -1, NULL, 1, 'x', NULL);
        INSERT INTO block VALUES ('192.0.2.2/32', 1, NULL, 1099511627776, 'x', NULL);
        INSERT INTO block VALUES ('198.51.100.77/24', 1, NULL, 1, 'x', NULL);
        INSERT INTO block VALUES ('0.0.0.0/0', 1, NULL, 1, 'x', NULL);
        INSERT INTO block VALUES ('::/0', 1, NULL, 1, 'x', NULL);
        INSERT INTO block VALUES ('192.0.2.3/32', 1, NULL, 1, hex(zeroblob(50000000)), NULL);
        INSERT INTO block VALUES ('192.0.2.4/32', 9000000000000000000, NULL, 1, 'x', NULL);
        INSERT INTO offences VALUES ('oops', 1, 1);
        INSERT INTO grace VALUES ('198.51.100.77/24', 1);";
    rusqlite::Connection::open(file(&lab)).unwrap().execute_batch(rows).unwrap();

    let mut service = lab.start();
    let said = service.await_line("left out 10 rows of ");
    assert!(said.contains("compare them with the copy "), "{said}");
    assert!(service.resident_bytes() < 64 << 20, "{}", service.resident_bytes());
    assert_restored(&lab, &before);
    assert_eq!(lab.bus.property("State").1, "enforcing");
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    let copy = rusqlite::Connection::open(file(&lab).with_extension("db.aside-1")).unwrap();
    let count = |sql| copy.query_row(sql, (), |row| row.get::<_, u32>(0)).unwrap();
    assert_eq!(count("SELECT count(*) FROM block"), 8 + 3);
    assert_eq!(count("SELECT count(*) FROM grace WHERE network = '198.51.100.77/24'"), 1);
    assert_eq!(service.stop().code(), Some(0));

    let mut service = lab.start();
    service.await_line("restored 3 blocks");
    assert_eq!(service.lines_with("left out"), Vec::<String>::new(), "the rows are gone");
    assert_restored(&lab, &before);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn endless_or_foreign_database_does_not_hold_up_the_start() {
    let lab = Lab::new();
    let mut service = lab.start();
    block(&lab, "192.0.2.7", "0");
    let endless = |file: &Path| {
        let view = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT \
                    i || '.1/32' network, 1 since, 2 until, 1 offences, 'x' reason, NULL evidence FROM n";
        let sql = format!("DROP TABLE block; CREATE VIEW block AS {view}");
        rusqlite::Connection::open(file).unwrap().execute_batch(&sql).unwrap();
    };
    let fifo = |file: &Path| {
        std::fs::remove_file(file).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, file, rustix::fs::Mode::RWXU).unwrap();
    };
    let damage: [Damage<'_>; 2] =
        [("its table block is missing or changed", &endless), ("is not a regular file", &fifo)];
    for (why, damage) in damage {
        service.crash();
        damage(&file(&lab));
        service = lab.start();
        let said = service.await_line("cannot use ");
        assert!(said.contains(why) && said.contains("moved it to "), "{said}");
        assert_eq!(addresses(&lab.bus.list()), ["192.0.2.7"], "adopted from the kernel");
        assert_eq!(lab.bus.property("State").1, "enforcing");
    }
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// If the file is removed or damaged while the service runs, the service writes all blocks again.
/// If it stops immediately, it writes them before it exits.
#[test]
fn lost_database_is_written_again() {
    let remove_all = |file: &Path| std::fs::remove_dir_all(file.parent().unwrap()).unwrap();
    let remove_one = |file: &Path| std::fs::remove_file(file).unwrap();
    let damage = |file: &Path| {
        let connection = rusqlite::Connection::open(file).unwrap();
        let moved = "PRAGMA wal_checkpoint(TRUNCATE)";
        connection.query_row(moved, (), |_| Ok(())).unwrap();
        let whole = std::fs::read(file).unwrap();
        assert!(whole.len() > 8 * 4096, "{}", whole.len());
        let noise = vec![0xa5; whole.len() - 4096];
        std::fs::write(file, [&whole[..4096], &noise].concat()).unwrap();
    };
    let losses: [Damage<'_>; 3] = [
        ("the file was removed", &remove_all),
        ("the file was removed", &remove_one),
        ("damaged database", &damage),
    ];
    let lab = Lab::new();
    let mut service = lab.start();
    fill(&lab, &mut service);
    let caller = BusClient::on(&lab.bus);
    for number in 0..250 {
        let reason = "one of many, and with a reason of some length";
        assert_eq!(caller.block(&format!("192.0.2.{number}"), 0, reason), Reply::Value(()));
    }
    let before = lab.bus.list();
    for (why, lose) in losses {
        lose(&file(&lab));
        if why.contains("damaged") {
            // The damage shows only when SQLite reads the file.
            block(&lab, "198.51.100.7", "0");
            lab.bus.call("eth0", &["Unblock", "s", "198.51.100.7"]).ok();
        }
        let said = service.await_line("degraded: ");
        assert!(said.contains(&format!("tcptracker.db: {why}")), "{said}");
        service.await_line("enforcing: no problems");
        assert_eq!(service.stop().code(), Some(0));
        service = lab.start();
        assert_restored(&lab, &before);

        lose(&file(&lab));
        assert_eq!(service.stop().code(), Some(0));
        service = lab.start();
        assert_restored(&lab, &before);
    }
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

fn addresses(blocks: &[Block]) -> Vec<&String> {
    blocks.iter().map(|block| &block.0).collect()
}
