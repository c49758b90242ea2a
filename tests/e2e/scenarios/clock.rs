//! Steps of the wall clock, while the service runs and between two runs, must not change any block.
//!
//! libfaketime gives the service its own wall clock, which a test can set at any time. The
//! machine's clock does not change, and packets keep the kernel's timestamps, as packets do that
//! arrive before a step.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::kernel::remaining;
use crate::lab::{ATTACKER, Lab, OPEN_PORT, VICTIM};
use crate::namespace::ANSWER_TIMEOUT;
use crate::service::Start;
use crate::tools::unix_now;

const DAY: i64 = 86_400;
const STEPS: [i64; 3] = [DAY, -365 * DAY, 30 * DAY];

/// Allowed deviation: the service compares the clocks for each reply, and the kernel counts whole
/// seconds.
const SLACK: u64 = 3;

/// Duration of a block that expires during the test.
const SHORT: Duration = Duration::from_secs(4);

/// The wall clock of the service.
struct Clock(PathBuf);

impl Clock {
    fn new(lab: &Lab) -> Self {
        let clock = Self(lab.path("clock"));
        clock.set(0);
        clock
    }

    /// Sets the clock `ahead` seconds ahead of the machine's clock. Replaces the file atomically,
    /// because the service may read it at any time.
    fn set(&self, ahead: i64) {
        let new = self.0.with_extension("new");
        std::fs::write(&new, format!("{ahead:+}\n")).unwrap();
        std::fs::rename(&new, &self.0).unwrap();
    }

    fn starts(&self) -> Start {
        let library = glob::glob("/usr/lib/*/faketime/libfaketime.so.1").unwrap().next();
        let library = library.expect("no libfaketime; run: make test-deps").unwrap();
        Start::on("eth0")
            .env("LD_PRELOAD", library.to_str().unwrap())
            .env("FAKETIME_TIMESTAMP_FILE", self.0.to_str().unwrap())
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1")
    }
}

fn block(lab: &Lab, address: &str, seconds: &str) {
    lab.bus.call("eth0", &["Block", "sts", address, seconds, "clock test"]).ok();
}

/// Asserts that the attacker is blocked for 1 h from about now, by the service's clock.
#[track_caller]
fn assert_blocked(lab: &Lab, ahead: i64) {
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    let (_, since, until, ..) = lab.bus.block_of(&ATTACKER);
    assert_eq!(until - since, 3600);
    let shown = || unix_now().checked_add_signed(ahead).unwrap();
    let before = shown();
    let left = remaining(&lab.victim, "tcptracker-eth0-v4", "10.77.0.1");
    let expected = before + left - SLACK..=shown() + left + SLACK;
    assert!(expected.contains(&until), "{left} s left: {until} is not in {expected:?}");
    assert!((3400..=3600).contains(&left), "{left}");
}

#[test]
fn wall_clock_steps_do_not_change_blocks() {
    let lab = Lab::new();
    let clock = Clock::new(&lab);
    let mut service = clock.starts().begin(&lab).await_ready();
    block(&lab, "198.51.100.9", "0");
    lab.bus.call("eth0", &["Unblock", "s", "198.51.100.9"]).ok();
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line(&format!("WARN blocked {ATTACKER} for 1h"));
    for (number, ahead) in (1..).zip(STEPS) {
        let begun = Instant::now();
        block(&lab, "10.77.0.3", &SHORT.as_secs().to_string());
        clock.set(ahead);
        // The short block must expire on time, not earlier.
        let to = SocketAddr::new(VICTIM, OPEN_PORT);
        let is_answered = lab.bystander.is_answered(to, ANSWER_TIMEOUT);
        assert!(!is_answered || begun.elapsed() >= SHORT, "answered after {:?}", begun.elapsed());
        assert_blocked(&lab, ahead);
        service.await_lines("unblocked 10.77.0.3: expired", number);
        assert!(begun.elapsed() >= SHORT, "expired after {:?}", begun.elapsed());
        lab.bystander.assert_reaches(VICTIM, OPEN_PORT);
        assert_eq!(lab.bus.property("State").1, "enforcing");
    }
    // Detection still works, and a manually unblocked address stays unblocked.
    lab.bystander.nmap("-sS -p 1-10", VICTIM);
    service.await_line("WARN blocked 10.77.0.3 for 1h (offence 1)");
    assert_eq!(lab.bus.why("198.51.100.9")["blocked"]["data"], false);

    // Step the clock between two runs of the service within one boot.
    for (ahead, ends_by_a_crash) in [(-10 * DAY, true), (20 * DAY, false), (0, true)] {
        if ends_by_a_crash {
            service.crash();
        } else {
            assert_eq!(service.stop().code(), Some(0));
        }
        clock.set(ahead);
        service = clock.starts().begin(&lab).await_ready();
        assert_blocked(&lab, ahead);
        assert_eq!(lab.bus.list().len(), 2);
        assert_eq!(lab.bus.why("198.51.100.9")["blocked"]["data"], false);
    }
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}
