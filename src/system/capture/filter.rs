//! The BPF filters that the kernel applies: they let through what may be a probe.
//!
//! Owns the filter texts. Together they may let through too much, which [`super::frame`] then rejects, but
//! never too little.
//!
//! A live capture has two handles, because a ring with fast delivery has slots of one size:
//!
//! - The **main** handle has many slots of [`MAIN_SNAPSHOT`] bytes.
//! - The **deep** handle has few slots of [`DEEP_SNAPSHOT`] bytes: whole frames.
//!
//! Each frame passes at most one of the two filters. There are two kinds of frames:
//!
//! - In a frame of a *fixed* layout, the TCP flags, or the quote of an ICMP message, are at an offset that BPF
//!   can compute, and surely inside the main snapshot: IPv4 with any options, or IPv6 without extension headers,
//!   after at most [`VLAN_TAGS`] tags, [`MPLS_LABELS`] labels or a PPPoE header. The main filter tests the flags.
//!   The deep filter rejects the frame.
//! - In a frame of an *odd* layout, BPF cannot find the TCP header, because it cannot loop: IPv6 with extension
//!   headers, more tags or labels, LLC/SNAP, compressed PPP. All such frames pass: those that are whole in the
//!   main snapshot the main filter ([`LONGEST_WHOLE`]), and longer ones the deep filter. So a flood of short
//!   odd frames meets the large ring, and the deep ring sees only what needs it.
//!
//! All offsets are relative to the start of the frame (`link[…]`). The kernel strips the first VLAN tag before
//! the filter runs, and libpcap inserts it again, so in a live capture each frame has one tag more than the
//! filter sees. The keywords of pcap-filter(7) for VLAN, MPLS and PPPoE are not used: they move the offsets of
//! everything after them. Nor is arithmetic in an offset: libpcap cannot translate it for the device `any`.

use crate::system::capture::frame::LinkLayer;

/// Bytes captured of each frame by the main handle.
pub const MAIN_SNAPSHOT: i32 = 256;

/// Bytes captured of each frame by the deep handle: the largest IP packet and what precedes it.
pub const DEEP_SNAPSHOT: i32 = 65_535 + BEFORE_PAYLOAD;

/// What libpcap may put in front of the bytes whose length the filter sees: a VLAN tag, and the header of a
/// cooked capture.
const BEFORE_PAYLOAD: i32 = 4 + 20;

/// The longest frame, as the filter sees it, that is surely whole in the main snapshot.
const LONGEST_WHOLE: i32 = MAIN_SNAPSHOT - BEFORE_PAYLOAD;

/// How many VLAN tags a frame of a fixed layout may have: two in a capture file, three on an interface.
const VLAN_TAGS: usize = 2;

/// How many MPLS labels a frame of a fixed layout may have: one for the path, one for the service.
const MPLS_LABELS: usize = 2;

/// SYN without ACK, or a stealth probe: any flags without SYN, ACK and RST. `{}` stands for the byte of the
/// flags.
const FLAGS: &str = "({}&0x12=2 or {}&0x16=0)";

/// Also what tells the outcome of a probe: every segment with SYN, RST or FIN. That is one or two for each
/// direction of a connection.
const FLAGS_WITH_OUTCOMES: &str = "({}&7!=0 or {}&0x16=0)";

/// A condition that no frame meets.
const NEVER: &str = "0=1";

/// The filters of the two handles, in the language of pcap-filter(7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filters {
    pub main: String,
    pub deep: String,
}

impl Filters {
    /// Returns the filters for probes, or also for what tells their outcomes.
    pub fn new(link: LinkLayer, outcomes: bool) -> Self {
        let of = |handle| Builder { handle, outcomes }.filter(link);
        Self { main: of(Handle::Main), deep: of(Handle::Deep) }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Handle {
    Main,
    Deep,
}

/// Builds the filter of one handle.
struct Builder {
    handle: Handle,
    outcomes: bool,
}

impl Builder {
    fn filter(&self, link: LinkLayer) -> String {
        match link {
            LinkLayer::Ethernet => any([
                self.ether_payload(12, 14, VLAN_TAGS),
                // The field is a length below 0x600. Linux does not answer IP in LLC/SNAP.
                all([
                    "link[12:2]<0x600",
                    "link[14:2]=0xaaaa",
                    "link[17:2]=0",
                    "link[19]=0",
                    self.odd(),
                ]),
            ]),
            LinkLayer::LinuxSll => {
                any([self.hidden_tags(14, 16, VLAN_TAGS), self.ether_payload(14, 16, VLAN_TAGS)])
            }
            LinkLayer::LinuxSll2 => {
                any([self.hidden_tags(0, 20, VLAN_TAGS), self.ether_payload(0, 20, VLAN_TAGS)])
            }
            LinkLayer::CiscoHdlc => self.ether_payload(2, 4, VLAN_TAGS),
            LinkLayer::RawIp => self.ip(0),
            LinkLayer::Loopback => self.ip(4),
            LinkLayer::Ppp => any([
                all(["link[0:2]=0xff03", &self.ppp(2)]),
                all(["link[0:2]!=0xff03", &self.ppp(0)]),
            ]),
        }
    }

    /// The condition of a frame of a fixed layout.
    fn fixed(&self, condition: impl Into<String>) -> String {
        match self.handle {
            Handle::Main => condition.into(),
            Handle::Deep => NEVER.to_owned(),
        }
    }

    /// The condition of a frame of an odd layout.
    fn odd(&self) -> &'static str {
        const { assert!(LONGEST_WHOLE == 232, "the texts below contain the number") };
        match self.handle {
            Handle::Main => "len<=232",
            Handle::Deep => "len>232",
        }
    }

    /// A payload at `at` whose `EtherType` is at `ether_type`.
    fn ether_payload(&self, ether_type: usize, at: usize, tags: usize) -> String {
        let is = |number: &str| format!("link[{ether_type}:2]={number}");
        let inner = match tags {
            0 => self.odd().to_owned(),
            _ => self.ether_payload(at + 2, at + 4, tags - 1),
        };
        any([
            all([&any([is("0x800"), is("0x86dd")]), &self.ip(at)]),
            all([&any(["0x8100", "0x88a8", "0x9100", "0x9200", "0x9300"].map(is)), &inner]),
            all([&is("0x8864"), &self.ppp(at + 6)]),
            all([&any(["0x8847", "0x8848"].map(is)), &self.mpls(at, MPLS_LABELS)]),
        ])
    }

    /// Priority tags (VLAN 0) that a cooked capture does not announce. In the kernel the filter sees the protocol
    /// of the first tag, so this is only for files. Must come first: as an IP packet such a frame may be too short.
    fn hidden_tags(&self, ether_type: usize, at: usize, tags: usize) -> String {
        let is = |at: usize, number: &str| format!("link[{at}:2]={number}");
        let vlans = ["0x8100", "0x88a8", "0x9100", "0x9200", "0x9300"];
        let ip = ["0x800", "0x86dd"];
        let tag = all([
            any(ip.iter().chain(&["0"]).map(|number| is(ether_type, number))),
            format!("link[{at}]&15=0"),
            format!("link[{}]=0", at + 1),
            any(vlans.iter().chain(&ip).map(|number| is(at + 2, number))),
            self.odd().to_owned(),
        ]);
        if tags == 0 {
            return tag;
        }
        let vlan = any(vlans.map(|number| is(ether_type, number)));
        any([tag, all([vlan, self.hidden_tags(at + 2, at + 4, tags - 1)])])
    }

    fn ppp(&self, at: usize) -> String {
        any([
            all([&format!("(link[{at}:2]=0x21 or link[{at}:2]=0x57)"), &self.ip(at + 2)]),
            // A compressed protocol field.
            all([&format!("(link[{at}]=0x21 or link[{at}]=0x57)"), self.odd()]),
        ])
    }

    fn mpls(&self, at: usize, labels: usize) -> String {
        if labels == 0 {
            return self.odd().to_owned();
        }
        let bottom_of_stack = format!("link[{}]&1=1", at + 2);
        any([
            all([&bottom_of_stack, &self.ip(at + 4)]),
            all([&format!("not {bottom_of_stack}"), &self.mpls(at + 4, labels - 1)]),
        ])
    }

    fn ip(&self, at: usize) -> String {
        any([
            all([&format!("link[{at}]&0xf0=0x40"), &self.fixed(self.ipv4(at))]),
            all([&format!("link[{at}]&0xf0=0x60"), &self.ipv6(at)]),
        ])
    }

    fn ipv4(&self, at: usize) -> String {
        let (fragment, protocol) = (format!("link[{}:2]", at + 6), format!("link[{}]", at + 9));
        // For each length of the header, a condition of what follows it.
        let payload = |condition: &dyn Fn(usize) -> String| {
            any((5..=15).map(|words| {
                let header = format!("link[{at}]={}", 0x40 + words);
                all([header, condition(at + words * 4)])
            }))
        };
        let tcp = all([
            format!("{protocol}=6"),
            // First fragments come first: a load after the end of a frame rejects it, whatever follows.
            any([
                format!("{fragment}&0x3fff=0x2000"),
                all([format!("{fragment}&0x3fff=0"), payload(&|tcp| self.flags(tcp))]),
            ]),
        ]);
        if !self.outcomes {
            return tcp;
        }
        let unreachable = |icmp: usize| format!("(link[{icmp}]=3 and link[{}]=6)", icmp + 17);
        let icmp =
            all([format!("{protocol}=1"), format!("{fragment}&0x1fff=0"), payload(&unreachable)]);
        any([tcp, icmp])
    }

    fn ipv6(&self, at: usize) -> String {
        let payload = at + 40;
        let next = format!("link[{}]", at + 6);
        let next_is_known = any([
            is_extension(&format!("link[{payload}]")),
            format!("link[{payload}]=6"),
            if self.outcomes { format!("link[{payload}]=58") } else { NEVER.to_owned() },
        ]);
        let first_fragment = format!("({next}!=44 or link[{}:2]&0xfff8=0)", payload + 2);
        let behind_extensions =
            all([&is_extension(&next), self.odd(), &next_is_known, &first_fragment]);
        let tcp = all([format!("{next}=6"), self.fixed(self.flags(payload))]);
        if !self.outcomes {
            return any([tcp, behind_extensions]);
        }
        let quoted = format!("link[{}]", payload + 14);
        let icmp = all([
            format!("{next}=58"),
            format!("link[{payload}]=1"),
            any([self.fixed(format!("{quoted}=6")), all([&is_extension(&quoted), self.odd()])]),
        ]);
        any([tcp, icmp, behind_extensions])
    }

    /// A wanted TCP segment at this offset.
    fn flags(&self, tcp: usize) -> String {
        let wanted = if self.outcomes { FLAGS_WITH_OUTCOMES } else { FLAGS };
        wanted.replace("{}", &format!("link[{}]", tcp + 13))
    }
}

/// The number of an extension header after which a TCP header may follow.
fn is_extension(number: &str) -> String {
    any([0, 43, 44, 51, 60, 135, 139, 140].map(|extension| format!("{number}={extension}")))
}

fn any<T: AsRef<str>>(conditions: impl IntoIterator<Item = T>) -> String {
    joined(conditions, " or ")
}

fn all<T: AsRef<str>>(conditions: impl IntoIterator<Item = T>) -> String {
    joined(conditions, " and ")
}

fn joined<T: AsRef<str>>(conditions: impl IntoIterator<Item = T>, operator: &str) -> String {
    let conditions: Vec<T> = conditions.into_iter().collect();
    let conditions: Vec<&str> = conditions.iter().map(AsRef::as_ref).collect();
    format!("({})", conditions.join(operator))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::system::capture::frame::{generated, probe_in, segment_in, tests as frames};
    use crate::types::{Moment, Segment};
    use pcap::{BpfProgram, Capture, Linktype};
    use proptest::num::u8::ANY;
    use proptest::test_runner::{Config, TestRunner};

    /// The compiled filters of a link type.
    struct Programs {
        link: LinkLayer,
        outcomes: bool,
        main: BpfProgram,
        deep: BpfProgram,
    }

    impl Programs {
        fn new(linktype: i32, outcomes: bool) -> Self {
            let link = LinkLayer::of_linktype(linktype).unwrap();
            let capture = Capture::dead(Linktype(linktype)).unwrap();
            let compile = |filter: &str| {
                capture
                    .compile(filter, true)
                    .unwrap_or_else(|error| panic!("{link:?}: {error}: {filter}"))
            };
            let Filters { main, deep } = Filters::new(link, outcomes);
            Self { link, outcomes, main: compile(&main), deep: compile(&deep) }
        }

        fn all() -> Vec<Self> {
            let of = |linktype| [false, true].map(|outcomes| Self::new(linktype, outcomes));
            [0, 1, 9, 12, 104, 113, 276].into_iter().flat_map(of).collect()
        }

        /// Returns whether a frame passes, and checks that it passes at most one filter.
        fn pass(&self, frame: &[u8]) -> bool {
            let passed = [&self.main, &self.deep].map(|program| program.filter(frame));
            assert_ne!(passed, [true, true], "both filters: {frame:02x?}");
            passed != [false, false]
        }

        fn parse(&self, frame: &[u8]) -> Option<Segment> {
            let parse = if self.outcomes { segment_in } else { probe_in };
            parse(self.link, frame, Moment::default())
        }

        /// Checks that what the parser finds passes one filter, and that it is inside that snapshot.
        fn check(&self, frame: &[u8]) {
            let found = self.parse(frame);
            let passed = self.pass(frame);
            assert!(passed || found.is_none(), "{:?}: {found:?}: {frame:02x?}", self.link);
            if self.main.filter(frame) {
                let cut = &frame[..frame.len().min(MAIN_SNAPSHOT as usize)];
                assert_eq!(self.parse(cut), found, "{:?}: cut: {frame:02x?}", self.link);
            }
        }
    }

    /// How many random frames a test makes. `TCPTRACKER_FRAMES` changes it.
    fn frames_per_test() -> u32 {
        std::env::var("TCPTRACKER_FRAMES").map_or(20_000, |count| count.parse().unwrap())
    }

    #[test]
    fn every_generated_segment_passes_one_filter_and_is_in_its_snapshot() {
        let programs = Programs::all();
        let [rejected, main, deep] = [const { Cell::new(0) }; 3];
        let mut runner = TestRunner::new(Config {
            failure_persistence: None,
            ..Config::with_cases(frames_per_test())
        });
        let numbers = proptest::collection::vec(ANY, 0..400);
        runner
            .run(&(numbers, 0..programs.len()), |(numbers, which)| {
                let programs = &programs[which];
                let frame = generated::frame(programs.link, &mut generated::Choices(&numbers));
                programs.check(&frame);
                let is_found = programs.parse(&frame).is_some();
                let counter = match (is_found, programs.deep.filter(&frame)) {
                    (true, false) => &main,
                    (true, true) => &deep,
                    (false, _) if programs.pass(&frame) => return Ok(()),
                    (false, _) => &rejected,
                };
                counter.set(counter.get() + 1);
                Ok(())
            })
            .unwrap();
        // The frames show something only if there are enough of each kind.
        let counts =
            [&rejected, &main, &deep].map(|counter| counter.get() * 100 / frames_per_test());
        assert!(counts[0] >= 15 && counts[1] >= 10 && counts[2] >= 5, "{counts:?} %");
    }

    #[test]
    fn every_frame_with_a_probe_passes() {
        for (linktype, name, frame) in frames::probes() {
            let programs = Programs::new(linktype, false);
            assert!(programs.parse(&frame).is_some(), "{name}");
            assert!(programs.pass(&frame), "{name} does not pass the filter");
        }
    }

    #[test]
    fn any_flags_without_syn_ack_and_rst_pass() {
        let programs = [false, true].map(|outcomes| Programs::new(1, outcomes));
        for (linktype, name, mut frame) in frames::probes() {
            let Some(at) = frames::flags_in(&frame).filter(|_| linktype == 1) else { continue };
            for flags in (0..=255).filter(|flags| flags & 0x16 == 0) {
                frame[at] = flags;
                for programs in &programs {
                    assert!(programs.pass(&frame), "{name}: {flags:#04x}");
                    assert!(programs.parse(&frame).is_some(), "{name}: {flags:#04x}");
                }
            }
        }
    }

    #[test]
    fn ordinary_traffic_does_not_pass() {
        for (linktype, name, mut frame) in frames::probes() {
            let Some(flags) = frames::flags_in(&frame) else { continue };
            frame[flags] = 0x10;
            if !name.contains("extension") && !name.contains("fragment") {
                for outcomes in [false, true] {
                    let programs = Programs::new(linktype, outcomes);
                    assert!(!programs.pass(&frame), "an ACK passes: {name}");
                }
            }
        }
    }

    /// A flood of short frames must not reach the small ring, whatever headers the frames have.
    #[test]
    fn the_deep_handle_gets_only_long_frames() {
        let programs = Programs::new(1, true);
        for (linktype, name, mut frame) in frames::probes() {
            if linktype == 1 {
                assert!(programs.main.filter(&frame), "{name}");
                frame.resize(300, 0);
                let is_odd = ["one extension", "every extension"].contains(&name);
                assert_eq!(programs.deep.filter(&frame), is_odd, "{name}");
            }
        }
    }

    #[test]
    fn icmp_about_segments_passes_only_the_wider_filter() {
        let (v4, v6) = (frames::refusal(3, 3, &tcp(4)), frames::refusal_v6(1, &tcp(6)));
        for (linktype, before) in [(1, vec![0; 12]), (113, vec![0; 14])] {
            let [narrow, wide] = [false, true].map(|outcomes| Programs::new(linktype, outcomes));
            for (packet, ether_type) in [(&v4, [8, 0]), (&v6, [0x86, 0xdd])] {
                for tags in [0, 1, 2, 7] {
                    let tags = [0x81, 0, 0, 5].repeat(tags);
                    let frame = [&before[..], &tags, &ether_type, packet].concat();
                    assert!(wide.pass(&frame), "{linktype}: {ether_type:?}");
                    assert!(wide.parse(&frame).is_some(), "{linktype}: {ether_type:?}");
                    let is_odd = tags.len() > VLAN_TAGS * 4;
                    assert_eq!(narrow.pass(&frame), is_odd, "{linktype}: {ether_type:?}");
                }
            }
        }
    }

    /// Returns a segment that was not delivered.
    fn tcp(version: u8) -> Vec<u8> {
        let of_version = |(_, _, packet): &(i32, &str, Vec<u8>)| packet[0] >> 4 == version;
        let plain = frames::probes().into_iter().filter(|(linktype, ..)| *linktype == 12);
        plain.filter(of_version).map(|(_, _, packet)| packet).next().unwrap()
    }

    #[test]
    fn every_frame_with_an_outcome_passes_only_the_wider_filter() {
        for (linktype, name, mut frame) in frames::probes() {
            let Some(flags) = frames::flags_in(&frame) else { continue };
            let [narrow, wide] = [false, true].map(|outcomes| Programs::new(linktype, outcomes));
            assert!(wide.pass(&frame), "{name}: a probe");
            for outcome in [0x12, 0x04, 0x14, 0x11] {
                frame[flags] = outcome;
                assert!(wide.pass(&frame), "{name}: {outcome:#04x}");
                assert!(wide.parse(&frame).is_some(), "{name}");
                assert_eq!(narrow.parse(&frame), None, "{name}");
            }
            frame[flags] = 0x10;
            assert_eq!(wide.parse(&frame), None, "{name}");
        }
    }
}
