//! Parses arbitrary frames: no content may cause a panic, and the filters let through what the parser finds.
//!
//! The first byte selects the link layer; the rest is the frame.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pcap::{BpfProgram, Capture, Linktype};
use tcptracker::internals::{Filters, LinkLayer, MAIN_SNAPSHOT, Moment, probe_in, segment_in};

const LINKTYPES: [i32; 7] = [0, 1, 9, 12, 104, 113, 276];

/// The main and the deep filter for probes, and both for outcomes.
type Programs = [[BpfProgram; 2]; 2];

thread_local! {
    static PROGRAMS: Vec<(LinkLayer, Programs)> = LINKTYPES.map(compile).into();
}

fn compile(linktype: i32) -> (LinkLayer, Programs) {
    let link = LinkLayer::of_linktype(linktype).expect("every link type listed is known");
    let capture = Capture::dead(Linktype(linktype)).expect("memory");
    let programs = [false, true].map(|outcomes| {
        let Filters { main, deep } = Filters::new(link, outcomes);
        [main, deep].map(|filter| capture.compile(&filter, true).expect("a valid filter"))
    });
    (link, programs)
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&first, frame)) = bytes.split_first() else { return };
    PROGRAMS.with(|programs| {
        let (link, programs) = &programs[usize::from(first) % LINKTYPES.len()];
        let parse = [probe_in, segment_in];
        let [probe, segment] = parse.map(|parse| parse(*link, frame, Moment::default()));
        assert!(probe.is_none() || probe == segment, "both parsers must return the same probe");
        for ((parse, found), programs) in parse.into_iter().zip([probe, segment]).zip(programs) {
            let passed = programs.each_ref().map(|program| program.filter(frame));
            assert_ne!(passed, [true, true], "a frame passes one filter");
            assert!(found.is_none() || passed != [false, false], "a filter hides {found:?}");
            if passed[0] {
                let snapshot = &frame[..frame.len().min(MAIN_SNAPSHOT as usize)];
                assert_eq!(parse(*link, snapshot, Moment::default()), found, "cut off");
            }
        }
    });
});
