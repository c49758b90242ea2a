//! Checks arbitrary D-Bus messages, and arbitrary arguments of calls: a network, a duration, a reason.
//!
//! The bytes are a message. Its first eight bytes are also the duration, and a newline separates network and
//! reason in the rest.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tcptracker::internals::{
    checked_duration, checked_reason, lengths, parse_network, show_network, text_field,
};

fuzz_target!(|bytes: &[u8]| {
    if let Some(lengths) = bytes.first_chunk().and_then(lengths) {
        assert!(lengths.total >= lengths.head, "{lengths:?}");
    }
    for code in 0..10 {
        assert!(text_field(bytes, code).is_none_or(|text| text.len() < bytes.len()));
    }
    let Some((seconds, texts)) = bytes.split_first_chunk() else { return };
    let _ = checked_duration(u64::from_le_bytes(*seconds));
    let Ok(texts) = std::str::from_utf8(texts) else { return };
    let (address, reason) = texts.split_once('\n').unwrap_or((texts, texts));
    match parse_network(address) {
        Ok(network) => {
            let shown = show_network(&network);
            assert_eq!(parse_network(&shown).ok(), Some(network), "{shown} means another network");
        }
        Err(error) => assert!((1..=1024).contains(&error.to_string().len()), "{error}"),
    }
    if let Ok(accepted) = checked_reason(reason) {
        assert_eq!(accepted, reason, "a reason is accepted as it is, or refused");
    }
});
