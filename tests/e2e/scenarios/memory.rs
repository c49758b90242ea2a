//! What is remembered: over a stop, a crash, a boot, and whatever becomes of the disk.

use std::path::{Path, PathBuf};

use crate::bus::Block;
use crate::bus_client::{BusClient, Reply};
use crate::disk::Disk;
use crate::kernel::{Rules, remaining, wipe};
use crate::lab::{ATTACKER, Lab, OPEN_PORT, VICTIM};
use crate::scenarios::repairs::shell;
use crate::service::{Service, Start};
use crate::tools::unix_now;

/// What happens to a file, and what is said of it.
type Damage<'a> = (&'a str, &'a dyn Fn(&Path));

fn file(lab: &Lab) -> PathBuf {
    lab.state_directory("eth0").join("tcptracker.db")
}

fn block(lab: &Lab, address: &str, seconds: &str) {
    lab.bus.call("eth0", &["Block", "sts", address, seconds, "by a test"]).ok();
}

/// An instance that another boot has started: of another name, and younger.
fn start_after_a_boot(lab: &Lab, boot: &str, age: i64) -> Service {
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

/// A scan, a network for good, and two addresses for some time; one of them just let in again.
fn fill(lab: &Lab, service: &mut Service) -> Vec<Block> {
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line(&format!("WARN blocked {ATTACKER}"));
    block(lab, "203.0.113.0/24", "0");
    block(lab, "2001:db8::/32", "7200");
    block(lab, "198.51.100.1", "7200");
    lab.bus.call("eth0", &["Unblock", "s", "198.51.100.1"]).ok();
    lab.bus.list()
}

/// The same blocks, as a person sees them: the kernel counts in whole seconds, and so do clocks that
/// were compared anew.
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
fn a_stop_and_a_start_forget_nothing() {
    let lab = Lab::new();
    let mut service = lab.start();
    let before = fill(&lab, &mut service);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);

    let mut service = lab.start();
    service.await_line("restored 3 blocks; 0 more had ended meanwhile");
    assert_restored(&lab, &before);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
    // Nobody but the service may read who is watched.
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &lab.state_directory("eth0").metadata().unwrap().permissions(),
    );
    assert_eq!(mode & 0o7, 0, "{mode:o}");
}

#[test]
fn a_boot_forgets_nothing() {
    let lab = Lab::new();
    let mut service = lab.start();
    let before = fill(&lab, &mut service);
    service.crash();
    wipe(&lab.victim);
    lab.assert_untouched();
    let mut service = start_after_a_boot(&lab, "the-next-boot", 60);
    assert_restored(&lab, &before);
    service.crash();
    wipe(&lab.victim);
    // And what was taken over is kept on the new boot's timeline.
    let mut service = start_after_a_boot(&lab, "another-boot", 2);
    assert_restored(&lab, &before);
    service.crash();
    let mut service = lab.start();
    assert_restored(&lab, &before);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// As netfilter-persistent or ipset.service do: what they once saved is there again at each boot.
#[test]
fn who_was_let_in_is_not_blocked_by_sets_saved_before() {
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
    let mut service = start_after_a_boot(&lab, "the-next-boot", 60);
    service.await_line("brought saved blocks back into the kernel; ended again: 1");
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
    assert_eq!(lab.bus.list(), []);
}

#[test]
fn offences_count_over_restarts() {
    let lab = Lab::new();
    lab.configure("[block]\ndurations = [\"2s\", \"1h\", \"forever\"]\n");
    for (offence, span) in [(1, "for 2s"), (2, "for 1h"), (3, "until unblocked")] {
        let mut service = lab.start();
        if offence == 3 {
            // Its time could be waited for, or be over while the service is down.
            lab.bus.call("eth0", &["Block", "sts", "10.77.0.1", "1", "to let it end"]).ok();
            service.await_line("unblocked 10.77.0.1: its time was up");
        }
        // No more than it takes: what came after the end of a short block would be the next offence.
        lab.attacker.nmap("-sS -p 1-4", VICTIM);
        service.await_line(&format!("WARN blocked 10.77.0.1 {span} (offence {offence})"));
        if offence == 1 {
            service.await_line("unblocked 10.77.0.1: its time was up");
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
fn unblocked_stays_unblocked() {
    let lab = Lab::new();
    let mut service = lab.start();
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line(&format!("WARN blocked {ATTACKER}"));
    lab.bus.call("eth0", &["Unblock", "s", "10.77.0.1"]).ok();
    // At the very moment somebody was told.
    service.crash();
    for ends_by_a_crash in [true, false] {
        let mut service = lab.start();
        assert_eq!(lab.bus.list(), []);
        lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
        lab.attacker.nmap("-sS -p 1-10", VICTIM);
        service.await_line("did not block 10.77.0.1: unblocked by hand");
        lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
        if ends_by_a_crash {
            service.crash();
        } else {
            assert_eq!(service.stop().code(), Some(0));
        }
    }
    lab.assert_untouched();
}

/// Nothing is freed, nothing is refused, and it is said.
#[test]
fn a_full_disk_frees_nobody() {
    let lab = Lab::new();
    let disk = Disk::for_state(&lab, 512);
    let mut service = lab.start();
    for address in ["10.77.0.1", "198.51.100.1"] {
        block(&lab, address, "0");
    }
    disk.fill();
    // What has room in what is there already is still kept.
    let mut more = 0;
    while lab.bus.property("State").1 == "enforcing" {
        more += 1;
        assert!(more < 200, "there is always room");
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
    service.await_line("enforcing: all is well again");
    assert_eq!(service.stop().code(), Some(0));
    let mut service = lab.start();
    assert_eq!(lab.bus.list().iter().map(|b| &b.0).collect::<Vec<_>>(), addresses(&before));
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn what_cannot_be_written_is_read() {
    let lab = Lab::new();
    let disk = Disk::for_state(&lab, 4096);
    let mut service = lab.start();
    let before = fill(&lab, &mut service);
    // With a log beside the file, and without.
    for ends_by_a_crash in [true, false] {
        if ends_by_a_crash {
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
        assert!(said.contains("is read-only, or another user's"), "{said}");
        // All goes on, but for what is new.
        block(&lab, "198.51.100.9", "0");
        lab.bus.call("eth0", &["Unblock", "s", "198.51.100.9"]).ok();
        assert_eq!(service.stop().code(), Some(0));
    }
    lab.assert_untouched();
}

#[test]
fn a_useless_file_is_kept_aside_and_nobody_is_freed() {
    let lab = Lab::new();
    let mut service = lab.start();
    fill(&lab, &mut service);
    // What is in the log would mend it: it is moved into the file by whoever closes that in order.
    let without_log = |file: &Path| {
        let file = rusqlite::Connection::open(file).unwrap();
        file.query_row("PRAGMA quick_check", (), |_| Ok(())).unwrap();
    };
    let damage: [Damage<'_>; 3] = [
        ("it is damaged", &|file| {
            without_log(file);
            std::fs::write(file, "not what it was").unwrap();
        }),
        ("it is damaged", &|file| {
            without_log(file);
            let whole = std::fs::read(file).unwrap();
            std::fs::write(file, &whole[..whole.len() / 2]).unwrap();
        }),
        ("it is of format 9", &|file| {
            let file = rusqlite::Connection::open(file).unwrap();
            file.execute_batch("PRAGMA user_version = 9").unwrap();
        }),
    ];
    for (number, (why, damage)) in damage.into_iter().enumerate() {
        service.crash();
        damage(&file(&lab));
        service = lab.start();
        let said = service.await_line("tcptracker.db is of no use: ");
        assert!(said.contains(why) && said.contains("tcptracker.db.aside-1"), "{said}");
        assert_eq!(lab.bus.list().len(), 3, "the kernel held them");
        assert_eq!(lab.bus.property("State").1, "enforcing");
        assert!(file(&lab).with_extension(format!("db.aside-{}", number + 1)).exists());
        lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    }
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// Somebody tidies up while the service runs, or the disk fails: what it knows is written anew, and if it
/// stops at once, before it stops.
#[test]
fn a_file_that_is_lost_while_in_use_is_made_again() {
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
        ("it has been removed", &remove_all),
        ("it has been removed", &remove_one),
        ("it is damaged", &damage),
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
            // Only who has to read it notices.
            block(&lab, "198.51.100.7", "0");
            lab.bus.call("eth0", &["Unblock", "s", "198.51.100.7"]).ok();
        }
        let said = service.await_line("degraded: ");
        assert!(said.contains(&format!("tcptracker.db: {why}")), "{said}");
        service.await_line("enforcing: all is well again");
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
