//! Reads arbitrary output of iptables-save.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tcptracker::internals::Ruleset;

fuzz_target!(|saved: &str| {
    let ruleset = Ruleset::parse(saved, "tcptracker@eth0");
    let _ = ruleset.removal();
    let _ = ruleset.counters().count();
});
