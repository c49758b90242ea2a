//! Crashes, the start after them, and the expiry of blocks.

use std::time::{Duration, Instant};

use crate::kernel::{Rules, remaining};
use crate::lab::{ATTACKER, Lab, OPEN_PORT, VICTIM, VICTIM_V6};

#[test]
fn blocks_survive_a_crash_with_their_remaining_time() {
    let lab = Lab::new();
    let mut service = lab.start();
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line(&format!("WARN blocked {ATTACKER}"));
    let scanner = lab.bus.block_of(&ATTACKER);
    lab.bus.call("eth0", &["Block", "sts", "198.51.100.0/24", "0", "for good"]).ok();
    lab.bus.call("eth0", &["Block", "sts", "2001:db8::/32", "7200", "for two hours"]).ok();
    let left_behind = Rules::of(&lab.victim);

    service.crash();
    // The kernel keeps enforcing.
    assert_eq!(Rules::of(&lab.victim).chain("INPUT"), left_behind.chain("INPUT"));
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);

    for database_is_lost in [false, true, true] {
        if database_is_lost {
            std::fs::remove_dir_all(lab.state_directory("eth0")).unwrap();
        }
        let mut service = lab.start();
        lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
        lab.bystander.assert_reaches(VICTIM, OPEN_PORT);
        Rules::of(&lab.victim).assert_enforced_for(&["eth0"]);
        let again = lab.bus.block_of(&ATTACKER);
        assert!(again.2.abs_diff(scanner.2) <= 2, "{scanner:?} became {again:?}");
        if !database_is_lost {
            assert_eq!(again, scanner);
        }
        let left = remaining(&lab.victim, "tcptracker-eth0-v4", "10.77.0.1");
        assert!((3000..3600).contains(&left), "{left}");
        assert_eq!(lab.bus.block_of(&"198.51.100.0/24").2, 0);
        assert_eq!(lab.bus.list().len(), 3);
        let found = if database_is_lost { 3 } else { 0 };
        assert_eq!(lab.metric(r#"tcptracker_blocks_total{cause="found"}"#), found);
        service.crash();
    }

    let mut service = lab.start();
    // Adopted blocks can be unblocked.
    lab.bus.call("eth0", &["Unblock", "s", &ATTACKER.to_string()]).ok();
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// The kernel expires blocks, so that a dead service leaves none forever.
#[test]
fn block_expires_on_time() {
    let lab = Lab::new();
    let mut service = lab.start();
    let begun = Instant::now();
    for address in ["10.77.0.1", "fd77::1"] {
        lab.bus.call("eth0", &["Block", "sts", address, "3", "for a moment"]).ok();
    }
    // Retries until the connection succeeds.
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
    // Tolerance for the kernel's timer ticks.
    let held = begun.elapsed() + Duration::from_millis(50);
    assert!(held >= Duration::from_secs(3), "accepted after {held:?}");
    service.await_line("unblocked 10.77.0.1: expired");
    service.await_line("unblocked fd77::1: expired");
    lab.attacker.assert_reaches(VICTIM_V6, OPEN_PORT);
    assert_eq!(lab.bus.list(), []);
    assert_eq!(lab.metric(r#"tcptracker_unblocks_total{cause="expired"}"#), 2);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}
