//! How long others' changes to rules and sets stand before they are mended, with many blocked.

use std::time::Instant;

use crate::lab::Lab;
use crate::restore::block_many;
use crate::row;

const BLOCKS: u32 = 10_000;

/// How often each is done: no more than are mended at once.
const TIMES: usize = 5;

/// What somebody does, of an address that is blocked.
const DAMAGES: [(&str, &str); 6] = [
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

/// From the end of the damage to the word that it is mended: the slowest of some.
pub(crate) fn run() {
    let lab = Lab::new();
    drop(lab.serve());
    block_many(&lab, BLOCKS);
    for (what, damage) in DAMAGES {
        let service = lab.serve();
        let mends = (0..TIMES).map(|_| {
            assert!(lab.on_victim("sh", &["-ec", damage]).status().unwrap().success());
            let done = Instant::now();
            service.await_line("mended: ");
            done.elapsed().as_secs_f64()
        });
        let slowest = mends.fold(0.0, f64::max);
        row(
            &format!("healing: {what}; {BLOCKS} blocked, slowest of {TIMES}"),
            &format!("{slowest:.2} s"),
            "-",
            None,
            "below 1 s",
        );
    }
}
