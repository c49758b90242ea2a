//! Checks arbitrary arguments of D-Bus calls: a network, a duration, a reason.
//!
//! The first eight bytes are the duration. A newline separates network and reason.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tcptracker::internals::{checked_duration, checked_reason, parse_network, show_network};

fuzz_target!(|bytes: &[u8]| {
    let Some((seconds, texts)) = bytes.split_first_chunk() else { return };
    let _ = checked_duration(u64::from_le_bytes(*seconds));
    let Ok(texts) = std::str::from_utf8(texts) else { return };
    let (address, reason) = texts.split_once('\n').unwrap_or((texts, texts));
    match parse_network(address) {
        Ok(network) => {
            let shown = show_network(&network);
            assert_eq!(parse_network(&shown).ok(), Some(network), "{shown} means another network");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Ok(accepted) = checked_reason(reason) {
        assert_eq!(accepted, reason, "a reason is accepted as it is, or refused");
    }
});
