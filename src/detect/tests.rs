//! What holds for both presets.

use std::net::Ipv4Addr;

use super::*;
use crate::config::Config;
use crate::types::{Port, ScanKind, SegmentKind};

const SECOND: u64 = 1_000_000_000;
const SERVER: [u8; 4] = [10, 0, 0, 2];
const PRESETS: [Preset; 2] = [Preset::Classic, Preset::Balanced];

/// Keeps what the detector finds.
#[derive(Default)]
struct Found(Vec<Arc<Scan>>);

impl Observer for Found {
    fn segments(&mut self, _: &[Segment]) {}

    fn scan(&mut self, scan: Arc<Scan>) -> bool {
        self.0.push(scan);
        true
    }
}

fn detector(preset: Preset, trap_ports: &[u16]) -> Box<dyn Detector> {
    let trap_ports = trap_ports.iter().copied().map(Port).collect();
    new(DetectionConfig { preset, trap_ports, ..Config::default().detection })
}

fn host() -> Host {
    Host::with_addresses(["10.0.0.2/24".parse().unwrap(), "fd00::2/64".parse().unwrap()])
}

fn probe(source: IpAddr, port: u16, nanos: u64) -> Segment {
    let own = if source.is_ipv4() { SERVER.into() } else { "fd00::2".parse().unwrap() };
    Segment {
        moment: Moment::from_nanos(1000 * SECOND + nanos),
        source,
        destination: own,
        source_port: Port(40_000),
        port: Port(port),
        kind: SegmentKind::Syn,
        sequence: 7,
        acknowledged: 0,
        crafted: true,
        sender: 0,
    }
}

/// The service listens on the flooded ports, or it is not known where, so that each probe waits for a second.
#[test]
fn slow_scan_of_filtered_ports_is_found_beside_a_flood() {
    const A_SECOND: u64 = 300_000;
    let scanner = IpAddr::from([192, 0, 2, 1]);
    for preset in PRESETS {
        let (mut detector, mut found) = (detector(preset, &[]), Found::default());
        let mut seconds = 0;
        while found.0.is_empty() && seconds < 10 {
            detector.observe(
                &[probe(scanner, 100 + u16::try_from(seconds).unwrap(), seconds * SECOND)],
                &host(),
                &mut found,
            );
            let flood = (0..A_SECOND).map(|number| {
                let source = 0x0b00_0000 + u32::try_from(seconds * A_SECOND + number).unwrap();
                let nanos = seconds * SECOND + number * SECOND / A_SECOND;
                probe(Ipv4Addr::from(source).into(), 443, nanos)
            });
            detector.observe(&flood.collect::<Vec<_>>(), &host(), &mut found);
            seconds += 1;
        }
        let sources: Vec<IpAddr> = found.0.iter().map(|scan| scan.source.addr()).collect();
        assert_eq!(sources, [scanner], "{preset:?} after {seconds} s");
    }
}

#[test]
fn single_probe_of_a_trap_port_is_a_scan() {
    let source = IpAddr::from([192, 0, 2, 1]);
    for preset in PRESETS {
        let (mut detector, mut found) = (detector(preset, &[23, 2323]), Found::default());
        let own = probe(SERVER.into(), 23, 0);
        let reply = Segment { kind: SegmentKind::SynAck, ..probe(source, 23, 0) };
        detector.observe(&[own, reply, probe(source, 22, 0)], &host(), &mut found);
        assert!(found.0.is_empty(), "{preset:?}: {:?}", found.0);
        // Once a minute.
        let tries = (0..150).map(|second| probe(source, 2323, second * SECOND));
        detector.observe(&tries.collect::<Vec<_>>(), &host(), &mut found);
        let scans: Vec<_> = found.0.iter().map(|s| (s.kind, s.ports(), s.continued)).collect();
        let scan = |continued| (ScanKind::Trap, vec![Port(2323)], continued);
        assert_eq!(scans, [scan(false), scan(true), scan(true)], "{preset:?}");
        detector.not_delivered(&found.0[2]);
        detector.observe(&[probe(source, 23, 151 * SECOND)], &host(), &mut found);
        assert_eq!(found.0.len(), 4, "{preset:?}: a lost scan is repeated");
        detector.forget(IpNet::from(source));
        detector.observe(&[probe(source, 23, 152 * SECOND)], &host(), &mut found);
        assert_eq!(found.0.len(), 5, "{preset:?}: a forgotten source starts over");
        detector.reconfigure(DetectionConfig { preset, ..Config::default().detection });
        detector.observe(&[probe(source, 23, 300 * SECOND)], &host(), &mut found);
        assert_eq!(found.0.len(), 5, "{preset:?}: no port is a trap any more");
    }
}

#[test]
fn sources_that_no_host_can_have_are_not_judged() {
    for preset in PRESETS {
        let (mut detector, mut found) = (detector(preset, &[1]), Found::default());
        for source in ["0.1.2.3", "127.0.0.9", "224.0.0.5", "255.255.255.255", "::", "ff02::5"] {
            for port in 1..=20 {
                let probe = probe(source.parse().unwrap(), port, 0);
                let stealth = Segment { kind: SegmentKind::Fin, ..probe };
                detector.observe(&[probe, stealth], &host(), &mut found);
            }
        }
        detector.pass_time(Moment::from_nanos(2000 * SECOND), &host(), &mut found);
        assert!(found.0.is_empty(), "{preset:?}: {:?}", found.0);
    }
}

/// `nmap --scanflags` with any flags but SYN, ACK and RST.
#[test]
fn every_mix_of_flags_that_no_client_sends_is_a_stealth_scan() {
    let source = IpAddr::from([192, 0, 2, 1]);
    for preset in PRESETS {
        for flags in (0..=u8::MAX).filter(|flags| flags & 0x16 == 0) {
            let (mut detector, mut found) = (detector(preset, &[]), Found::default());
            let kind = SegmentKind::of_flags(flags).unwrap();
            let probes = (1..=4).map(|port| Segment { kind, ..probe(source, port, 0) });
            detector.observe(&probes.collect::<Vec<_>>(), &host(), &mut found);
            assert_eq!(
                found.0.first().map(|scan| scan.kind),
                Some(ScanKind::Stealth),
                "{flags:#x}"
            );
        }
    }
}
