//! The abuse suite: attacks in random order, while the service must keep its promises.
//!
//! Three tests, one per attacker: an unprivileged user, a hostile network, failing helper programs.
//! Each runs attacks from a table for `TCPTRACKER_ABUSE_SECONDS`. Meanwhile an observer checks that
//! each real scan is blocked within a second, that root's calls are answered within a second, that
//! the service neither ends nor starves its watchdog, and that its memory stays bounded.
//!
//! `TCPTRACKER_SEED` repeats a run. `TCPTRACKER_ATTACK` chooses attacks by name (`a,b`).
//!
//! The limits are times, so the three tests never run at the same time.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test panics on unexpected errors, starts processes and threads, and bounds every wait"
)]
#![expect(clippy::unnecessary_wraps, reason = "all attacks have the same type")]
#![expect(dead_code, reason = "the helpers of the end-to-end tests offer more than is used here")]

#[path = "../e2e/bus.rs"]
mod bus;
#[path = "../e2e/disk.rs"]
mod disk;
#[path = "../e2e/fake_service.rs"]
mod fake_service;
#[path = "../e2e/frames.rs"]
mod frames;
#[path = "../e2e/kernel.rs"]
mod kernel;
#[path = "../e2e/lab.rs"]
mod lab;
#[path = "../e2e/namespace.rs"]
mod namespace;
#[path = "../e2e/saved_blocks.rs"]
mod saved_blocks;
#[path = "../e2e/service.rs"]
mod service;
#[path = "../e2e/tools.rs"]
mod tools;
#[path = "../e2e/unresponsive_polkit.rs"]
mod unresponsive_polkit;
#[path = "../e2e/users.rs"]
mod users;

mod arena;
mod failing_helpers;
mod hostile_network;
mod observer;
mod process;
mod raw_bus;
mod suite;
mod unprivileged_user;

const MIB: u64 = 1 << 20;

#[test]
#[ignore = "its limits are times of the released program, with which make test and make test-abuse run it"]
fn unprivileged_user() {
    suite::run(&suite::Suite {
        name: "unprivileged_user",
        attacks: unprivileged_user::ATTACKS,
        options: unprivileged_user::options,
        growth: Some(16 * MIB),
        most: None,
        remains: Some(4 * MIB),
    });
}

#[test]
#[ignore = "its limits are times of the released program, with which make test and make test-abuse run it"]
fn hostile_network() {
    suite::run(&suite::Suite {
        name: "hostile_network",
        attacks: hostile_network::ATTACKS,
        options: hostile_network::options,
        growth: None,
        most: Some(hostile_network::most_memory),
        remains: None,
    });
}

#[test]
#[ignore = "its limits are times of the released program, with which make test and make test-abuse run it"]
fn failing_helpers() {
    suite::run(&suite::Suite {
        name: "failing_helpers",
        attacks: failing_helpers::ATTACKS,
        options: failing_helpers::options,
        growth: Some(32 * MIB),
        most: None,
        remains: None,
    });
}
