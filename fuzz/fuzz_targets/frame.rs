//! Parses arbitrary frames: no content may cause a panic.
//!
//! The first byte selects the link layer; the rest is the frame.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tcptracker::internals::Moment;
use tcptracker::internals::{LinkLayer, probe_in, segment_in};

const LINKTYPES: [i32; 7] = [0, 1, 9, 12, 104, 113, 276];

fuzz_target!(|bytes: &[u8]| {
    let Some((&first, frame)) = bytes.split_first() else { return };
    let linktype = LINKTYPES[usize::from(first) % LINKTYPES.len()];
    let link = LinkLayer::of_linktype(linktype).expect("every link type listed is known");
    let probe = probe_in(link, frame, Moment::default());
    let segment = segment_in(link, frame, Moment::default());
    assert!(probe.is_none() || probe == segment, "both parsers must return the same probe");
});
