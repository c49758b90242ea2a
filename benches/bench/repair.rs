//! The time until the service repairs foreign changes to rules and sets, with many blocks.

use std::time::Instant;

use crate::lab::Lab;
use crate::restore::block_many;
use crate::row;

const BLOCKS: u32 = 10_000;

/// Repetitions of each change: few enough that the service repairs each immediately.
const TIMES: usize = 5;

/// Name and shell command of each change.
const CHANGES: [(&str, &str); 6] = [
    ("all rules flushed", "iptables -F; ip6tables -F"),
    ("the ruleset flushed", "nft flush ruleset"),
    ("an ACCEPT before the hook", "iptables -I INPUT -p tcp -j ACCEPT"),
    ("a set flushed", "ipset flush tcptracker-eth0-v4"),
    ("a member removed", "ipset del tcptracker-eth0-v4 11.0.7.7"),
    (
        "a member exchanged",
        "ipset del tcptracker-eth0-v4 11.0.7.7; ipset add tcptracker-eth0-v4 11.9.9.9",
    ),
];

/// Measures from the end of the change to the log line of the repair, and takes the slowest.
pub(crate) fn run() {
    let lab = Lab::new();
    drop(lab.serve());
    block_many(&lab, BLOCKS);
    for (what, change) in CHANGES {
        let service = lab.serve();
        let repairs = (0..TIMES).map(|_| {
            assert!(lab.on_victim("sh", &["-ec", change]).status().unwrap().success());
            let changed = Instant::now();
            service.await_line("repaired firewall: ");
            changed.elapsed().as_secs_f64()
        });
        let slowest = repairs.fold(0.0, f64::max);
        row(
            &format!("repair: {what}; {BLOCKS} blocked, slowest of {TIMES}"),
            &format!("{slowest:.2} s"),
            "-",
            None,
            "below 1 s",
        );
    }
}
