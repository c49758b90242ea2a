//! Attacks on the service itself, each of which has to be harmless.

use std::net::{IpAddr, Ipv4Addr};

use rustix::process::Signal;

use crate::flood::Flood;
use crate::frames::{BROADCAST, syn};
use crate::lab::{ATTACKER, Lab, OPEN_PORT, VICTIM, VICTIM_V6};
use crate::service::{Service, Start};
use crate::tools::{Random, await_that};

const MIB: u64 = 1 << 20;

const FORWARDED: &str = r#"tcptracker_connections_total{direction="forwarded",family="ipv4"}"#;
const SCANS: &str = r#"tcptracker_scans_total{kind="vertical"}"#;
const BLOCKS: &str = r#"tcptracker_blocks_total{cause="scan"}"#;
const EVICTED: &str = "tcptracker_sources_evicted_total";
const SOURCES: &str = "tcptracker_sources";

/// One of the sources somebody makes up.
fn forged(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0b00_0000 + number)
}

fn v4(address: IpAddr) -> Ipv4Addr {
    let IpAddr::V4(address) = address else { panic!("{address} is not IPv4") };
    address
}

#[track_caller]
fn assert_goes_on(lab: &Lab, mut service: Service) {
    lab.bystander.assert_reaches(VICTIM, OPEN_PORT);
    assert!(service.resident_bytes() < 64 * MIB, "{} bytes", service.resident_bytes());
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// A scanner who hides among sources that do not exist. In the second case so little is remembered
/// that nearly all of them are forgotten; the scanner, who comes again before its first probe's turn,
/// is not.
#[test]
fn a_flood_of_forged_sources_hides_no_scanner() {
    for (max_sources, forged_sources, pauses) in [
        (131_072, 200_000, [100_000, 50_000, 49_000]),
        // First contacts have three places a source: 6,144.
        (2_048, 40_000, [6_100, 10_000, 20_000]),
    ] {
        let lab = Lab::new();
        let start = Start::on("eth0")
            .env("TCPTRACKER_DETECTION__MAX_SOURCES", &max_sources.to_string())
            // However slow the machine is.
            .env("TCPTRACKER_DETECTION__WINDOW", "10m");
        let mut service = start.begin(&lab).await_ready();
        let mut flood = Flood::on(&lab);
        let mut numbers = 0..forged_sources;
        for (port, pause) in (1..).zip(pauses) {
            flood.syn(v4(ATTACKER), v4(VICTIM), port);
            flood.settle();
            for number in numbers.by_ref().take(pause) {
                flood.syn(forged(number), v4(VICTIM), 80);
            }
            flood.settle();
        }
        assert_eq!(lab.bus.list(), [], "after three ports");
        flood.syn(v4(ATTACKER), v4(VICTIM), 4);
        let blocked = format!("WARN blocked {ATTACKER} for 1h (offence 1): vertical scan: ");
        assert!(service.await_line(&blocked).ends_with("ports 1, 2, 3, 4"));
        lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
        for number in numbers {
            flood.syn(forged(number), v4(VICTIM), 80);
        }
        flood.settle();

        // Each source, the scanner among them, is remembered, or counted as forgotten.
        let all = u64::from(forged_sources) + 1;
        lab.assert_counted(&[SOURCES, EVICTED], all);
        assert!(lab.metric(SOURCES) <= 4 * max_sources);
        assert_eq!(lab.metric(EVICTED) > 0, 3 * max_sources < all);
        assert_eq!((lab.metric(SCANS), lab.bus.list().len()), (1, 1));
        assert_goes_on(&lab, service);
    }
}

/// Whoever is slow to listen would be thrown off the bus: what is too much is counted, not told.
#[test]
fn a_flood_of_scans_is_no_flood_of_signals() {
    const FORGED: u32 = 1_900;
    let lab = Lab::new();
    let start = Start::on("eth0").flag("--observe").env("TCPTRACKER_LOG__RATE", "100000");
    let mut service = start.begin(&lab).await_ready();
    let signals = lab.bus.listen();
    let mut flood = Flood::on(&lab);
    // They come all at once, however slow the sender is.
    service.signal(Signal::STOP);
    for number in 0..FORGED {
        (1..=4).for_each(|port| flood.syn(forged(number), v4(VICTIM), port));
    }
    service.signal(Signal::CONT);
    flood.settle();
    // The kernel does not hold them all.
    let scans = lab.metric(SCANS);
    let lost = || lab.metric(r#"tcptracker_events_lost_total{where="bus"}"#);
    let mut told = 0;
    await_that("each is told or counted", || {
        told += signals.take_count();
        told + lost() == scans
    });
    assert!(told >= 100 && lost() > 0, "{told} told of {scans}");
    assert_eq!(service.stop().code(), Some(0));
}

/// Four ports from each source would have the victim block whomever somebody likes.
#[test]
fn forged_scanners_buy_only_so_many_blocks() {
    const FORGED: u32 = 3_000;
    let lab = Lab::new();
    let start = Start::on("eth0").env("TCPTRACKER_BLOCK__MAX_PER_MINUTE", "50");
    let mut service = start.begin(&lab).await_ready();
    let signals = lab.bus.listen();
    let mut flood = Flood::on(&lab);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            for number in 0..FORGED {
                (1..=4).for_each(|port| flood.syn(forged(number), v4(VICTIM), port));
            }
            flood.settle();
        });
        // Whoever asks meanwhile gets an answer.
        while !sender.is_finished() {
            assert!(lab.bus.list().len() <= 50);
        }
    });
    let reason = "more than 50 new blocks in a minute (block.max_per_minute); \
                  the sources may be forged";
    service.await_line(&format!("degraded: {reason}"));
    let told = signals.next_named("StateChanged");
    assert_eq!(told, ("s".to_owned(), serde_json::json!(["degraded"])));
    assert_eq!(lab.bus.property("State"), ("s".to_owned(), "degraded".into()));
    let (code, health) = lab.victim.http_get(8081, "/health");
    assert!(code == 503 && health.contains(reason), "{code}: {health}");
    lab.assert_counted(&[SCANS], FORGED.into());
    assert_eq!((lab.metric(BLOCKS), lab.bus.list().len()), (50, 50));
    assert_eq!(service.lines_with("degraded").len(), 1, "told once");

    // A person's word counts, all the same.
    lab.bystander.assert_reaches(VICTIM, OPEN_PORT);
    lab.bus.call("eth0", &["Block", "sts", "10.77.0.1", "60", "by hand"]).ok();
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    assert_eq!(lab.bus.list().len(), 51);

    // All scans are in the log: at its rate, and the rest as numbers.
    let scans = lab.metric(SCANS);
    let told = service.await_until("all scans in the log", |service| {
        let listed = service.log().iter().filter(|line| line.contains("vertical port scan by"));
        let left_out = service.log().iter().filter_map(|line| {
            line.split_once(" more port scans in ")?.0.rsplit(' ').next()?.parse::<u64>().ok()
        });
        let told = u64::try_from(listed.count()).unwrap() + left_out.sum::<u64>();
        (told >= scans).then_some(told)
    });
    assert_eq!(told, scans, "scans are told of that never were");
    assert_goes_on(&lab, service);
}

#[test]
fn all_ports_by_one_source_are_one_scan_and_one_block() {
    let lab = Lab::new();
    let mut service = lab.start();
    let mut flood = Flood::on(&lab);
    for port in 1..=u16::MAX {
        flood.syn(v4(ATTACKER), v4(VICTIM), port);
    }
    flood.settle();
    service.await_line(&format!("WARN blocked {ATTACKER} for 1h (offence 1): vertical scan: "));
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    // It is over when nothing has come for ten seconds.
    let told = service.await_line(&format!("the port scan by {ATTACKER} "));
    let sum = format!("the port scan by {ATTACKER} is over: ");
    let (_, sum) = told.split_once(&sum).unwrap_or_else(|| panic!("{told}"));
    // "65535 ports, 65536 probes in 2.1s"
    let numbers: Vec<u64> = sum.split(' ').filter_map(|word| word.parse().ok()).collect();
    let [ports, probes] = numbers[..] else { panic!("{told}") };
    assert!(ports <= 65_535 && ports + lab.lost() >= 65_535, "{told}");
    // Who was shut out has tried a port once more, and again after a second and after three.
    assert!((1..=3).contains(&(probes - ports)), "{told}");

    assert_eq!((lab.metric(SCANS), lab.metric(BLOCKS)), (1, 1));
    assert_eq!(lab.bus.list().len(), 1);
    assert_eq!(service.lines_with("port scan by").len(), 2, "when it began and when it was over");
    assert_goes_on(&lab, service);
}

/// A sweep is no port scan, however counted.
#[test]
fn one_port_on_many_hosts_blocks_nobody() {
    const HOSTS: u32 = 65_000;
    for (per, remembered) in [("source", 1), ("pair", HOSTS)] {
        let lab = Lab::new();
        let start = Start::on("eth0").env("TCPTRACKER_DETECTION__PER", per);
        let service = start.begin(&lab).await_ready();
        let mut flood = Flood::on(&lab);
        for number in 0..HOSTS {
            flood.syn(v4(ATTACKER), forged(number), 443);
        }
        flood.settle();
        lab.assert_counted(&[FORWARDED], HOSTS.into());
        lab.assert_counted(&[SOURCES], remembered.into());
        assert_eq!((lab.metric(SCANS), lab.bus.list()), (0, vec![]));
        lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
        assert_goes_on(&lab, service);
    }
}

/// Noise, and probes with a few bytes of noise in them, cut anywhere.
#[test]
fn garbage_is_endured() {
    const FRAMES: u32 = 100_000;
    /// IPv4, IPv6, VLAN, QinQ, MPLS, PPPoE, and a length.
    const TYPES: [[u8; 2]; 7] = [
        [0x08, 0x00],
        [0x86, 0xdd],
        [0x81, 0x00],
        [0x88, 0xa8],
        [0x88, 0x47],
        [0x88, 0x64],
        [0x00, 0x20],
    ];
    let lab = Lab::new();
    let mut service = lab.start();
    let mut flood = Flood::on(&lab);
    let mut random = Random::seeded(2026);
    let probes = [
        ("11.0.0.1", VICTIM),
        ("11.0.0.1", "11.0.0.2".parse().unwrap()),
        ("2001:db8::1", VICTIM_V6),
    ]
    .map(|(from, to)| syn(BROADCAST, from.parse().unwrap(), to, 80));
    let mut taken = 0;
    for _ in 0..FRAMES {
        let mut frame = if random.below(4) == 0 {
            let header = [&BROADCAST[..], &[2, 0, 0, 0, 0, 1], &TYPES[random.below(TYPES.len())]];
            let mut frame = header.concat();
            for _ in 0..random.below(190) {
                frame.extend(random.next().to_le_bytes());
            }
            frame
        } else {
            let mut frame = probes[random.below(probes.len())].clone();
            for _ in 0..=random.below(4) {
                // Whose it is stays as it is: the addresses of Ethernet.
                let at = 12 + random.below(frame.len() - 12);
                frame[at] = random.next().to_le_bytes()[0];
            }
            frame
        };
        if random.below(3) == 0 {
            frame.truncate(random.below(frame.len() + 1));
        }
        taken += u32::from(flood.frame(&frame));
    }
    flood.settle();
    assert!(taken > FRAMES * 9 / 10, "the kernel has taken {taken} only");
    assert!(lab.metric("tcptracker_new_connections") > 1000, "nothing looked like a probe");

    // Not even distracted.
    lab.attacker.nmap("-sS -p 1-20", VICTIM);
    service.await_line(&format!("WARN blocked {ATTACKER} for 1h (offence 1): vertical scan: "));
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    assert_goes_on(&lab, service);
}
