//! Attacks on the service itself. Each of them must be harmless.

use std::net::{IpAddr, Ipv4Addr, TcpStream};

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

/// Returns a forged source address.
fn forged(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0b00_0000 + number)
}

fn v4(address: IpAddr) -> Ipv4Addr {
    let IpAddr::V4(address) = address else { panic!("{address} is not IPv4") };
    address
}

#[track_caller]
fn assert_still_works(lab: &Lab, mut service: Service) {
    lab.bystander.assert_reaches(VICTIM, OPEN_PORT);
    assert!(service.resident_bytes() < 64 * MIB, "{} bytes", service.resident_bytes());
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// A scanner hides among forged sources. In the second case the detector tracks so few sources that
/// it evicts nearly all of them. It keeps the scanner, which sends its next probe before its
/// eviction.
#[test]
fn flood_of_forged_sources_does_not_hide_a_scanner() {
    for (max_sources, forged_sources, pauses) in [
        (131_072, 200_000, [100_000, 50_000, 49_000]),
        // The detector tracks 3 single-port sources per multi-port source: 6,144.
        (2_048, 40_000, [6_100, 10_000, 20_000]),
    ] {
        let lab = Lab::new();
        let start = Start::on("eth0")
            .env("TCPTRACKER_DETECTION__MAX_SOURCES", &max_sources.to_string())
            // A long window makes the machine's speed irrelevant.
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

        // Each source, including the scanner, is either tracked or counted as evicted.
        let all = u64::from(forged_sources) + 1;
        lab.assert_counted(&[SOURCES, EVICTED], all);
        assert!(lab.metric(SOURCES) <= 4 * max_sources);
        assert_eq!(lab.metric(EVICTED) > 0, 3 * max_sources < all);
        assert_eq!((lab.metric(SCANS), lab.bus.list().len()), (1, 1));
        assert_still_works(&lab, service);
    }
}

/// The bus disconnects a client whose signals pile up, so the service counts excess signals instead
/// of emitting them.
#[test]
fn flood_of_scans_does_not_flood_the_bus() {
    const FORGED: u32 = 1_900;
    let lab = Lab::new();
    let start = Start::on("eth0").flag("--observe").env("TCPTRACKER_LOG__RATE", "100000");
    let mut service = start.begin(&lab).await_ready();
    let signals = lab.bus.listen();
    let mut flood = Flood::on(&lab);
    // Stop the service meanwhile, so that all frames arrive at once even if the sender is slow.
    service.signal(Signal::STOP);
    for number in 0..FORGED {
        (1..=4).for_each(|port| flood.syn(forged(number), v4(VICTIM), port));
    }
    service.signal(Signal::CONT);
    flood.settle();
    // The capture buffer does not hold all frames, so expect only the detected scans.
    let scans = lab.metric(SCANS);
    let lost = || lab.metric(r#"tcptracker_events_lost_total{where="bus"}"#);
    let mut emitted = 0;
    await_that("each scan is emitted or counted as lost", || {
        emitted += signals.take_count();
        emitted + lost() == scans
    });
    assert!(emitted >= 100 && lost() > 0, "{emitted} emitted of {scans}");
    assert_eq!(service.stop().code(), Some(0));
}

/// Without a limit, forged scans would make the victim block arbitrary addresses.
#[test]
fn block_rate_limit_bounds_blocks_by_forged_scans() {
    const FORGED: u32 = 3_000;
    /// A quarter of the limit is for sources with four ports.
    const SHARE: usize = 13;
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
        // The service still answers calls during the flood.
        while !sender.is_finished() {
            assert!(lab.bus.list().len() <= SHARE);
        }
    });
    let reason = "many new blocks in a minute, perhaps of forged sources; scanners are blocked later or \
                  only reported (block.max_per_minute = 50)";
    service.await_line(&format!("degraded: {reason}"));
    let signal = signals.next_named("StateChanged");
    assert_eq!(signal, ("s".to_owned(), serde_json::json!(["degraded"])));
    assert_eq!(lab.bus.property("State"), ("s".to_owned(), "degraded".into()));
    let (code, health) = lab.victim.http_get(8081, "/health");
    assert!(code == 503 && health.contains(reason), "{code}: {health}");
    lab.assert_counted(&[SCANS], FORGED.into());
    assert_eq!((lab.metric(BLOCKS), lab.bus.list().len()), (SHARE as u64, SHARE));
    assert_eq!(service.lines_with("degraded").len(), 1, "degraded is logged once");

    // The limit does not apply to manual blocks.
    lab.bystander.assert_reaches(VICTIM, OPEN_PORT);
    lab.bus.call("eth0", &["Block", "sts", "10.77.0.1", "60", "by hand"]).ok();
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    assert_eq!(lab.bus.list().len(), SHARE + 1);

    // The log lists scans up to its rate limit, and the number of suppressed scans.
    let scans = lab.metric(SCANS);
    let logged = service.await_until("all scans in the log", |service| {
        let listed = service.log().iter().filter(|line| line.contains("vertical port scan by"));
        let suppressed = service.log().iter().filter_map(|line| {
            line.split_once(" port scans in ")?.0.rsplit(' ').next()?.parse::<u64>().ok()
        });
        let logged = u64::try_from(listed.count()).unwrap() + suppressed.sum::<u64>();
        (logged >= scans).then_some(logged)
    });
    assert_eq!(logged, scans, "the log counts more scans than were detected");
    assert_still_works(&lab, service);
}

/// A forger has to send many packets for each scanner, and cannot forge a handshake.
#[test]
fn forged_scanners_do_not_use_up_the_limit_on_blocks() {
    let lab = Lab::new();
    let start = Start::on("eth0").env("TCPTRACKER_BLOCK__MAX_PER_MINUTE", "16");
    let mut service = start.begin(&lab).await_ready();
    let mut flood = Flood::on(&lab);
    let mut forge = |first: u32, ports: u16| {
        for number in first..first + 20 {
            (1..=ports).for_each(|port| flood.syn(forged(number), v4(VICTIM), port));
        }
        flood.settle();
    };
    let await_blocks = |count| await_that("they are blocked", || lab.metric(BLOCKS) == count);
    forge(0, 15);
    await_blocks(4);
    lab.bystander.nmap("-sS -p 1-20", VICTIM);
    service.await_line("WARN blocked 10.77.0.3 for 1h");
    forge(100, 31);
    await_blocks(8);
    forge(200, 63);
    await_blocks(14);

    lab.attacker.nmap("-sS -p 1-63", VICTIM);
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
    let connection = lab.attacker.inside(|| TcpStream::connect((VICTIM, OPEN_PORT)).unwrap());
    lab.attacker.nmap("-sS -p 64-1000", VICTIM);
    service.await_line(&format!("WARN blocked {ATTACKER} for 1h"));
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    drop(connection);
    assert_eq!(lab.metric(BLOCKS), 15);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// The back end with a rule per address has 1,000 places, which forged scanners fill. They evict each other.
#[test]
fn forged_scanners_do_not_evict_the_block_of_a_real_one() {
    const FORGED: u32 = 1_020;
    let lab = Lab::new();
    lab.configure("[firewall]\nbackend = \"iptables\"\n[block]\nmax_per_minute = 100000\n");
    let mut service = lab.start();
    lab.bus.call("eth0", &["Block", "sts", "203.0.113.1", "60", "by hand"]).ok();
    lab.attacker.nmap("-sS -p 1-100", VICTIM);
    service.await_line(&format!("WARN blocked {ATTACKER} for 1h"));
    let mut flood = Flood::on(&lab);
    for number in 0..FORGED {
        (1..=4).for_each(|port| flood.syn(forged(number), v4(VICTIM), port));
        if number % 200 == 199 || number + 1 == FORGED {
            // Otherwise the queue of the firewall thread overflows.
            flood.settle();
            let blocked = 1 + u64::from(number) + 1;
            await_that("they are blocked", || lab.metric(BLOCKS) == blocked);
        }
    }
    let listed = lab.bus.list();
    assert_eq!(listed.len(), 1_000);
    for real in [ATTACKER.to_string(), "203.0.113.1".to_owned()] {
        assert!(listed.iter().any(|block| block.0 == real), "{real} was evicted");
    }
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn scan_of_all_ports_is_one_scan_and_one_block() {
    let lab = Lab::new();
    let mut service = lab.start();
    let mut flood = Flood::on(&lab);
    for port in 1..=u16::MAX {
        flood.syn(v4(ATTACKER), v4(VICTIM), port);
    }
    flood.settle();
    service.await_line(&format!("WARN blocked {ATTACKER} for 1h (offence 1): vertical scan: "));
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    // A scan is over when no probe has arrived for 10 s.
    let line = service.await_line(&format!("INFO port scan by {ATTACKER} "));
    let sum = format!("port scan by {ATTACKER} ended: ");
    let (_, sum) = line.split_once(&sum).unwrap_or_else(|| panic!("{line}"));
    // "65535 ports, 65536 probes in 2.1s"
    let numbers: Vec<u64> = sum.split(' ').filter_map(|word| word.parse().ok()).collect();
    let [ports, probes] = numbers[..] else { panic!("{line}") };
    assert!(ports <= 65_535 && ports + lab.lost() >= 65_535, "{line}");
    // `assert_cannot_reach` sent 1 to 3 probes: the kernel repeats its SYN after 1 s and 3 s.
    assert!((1..=3).contains(&(probes - ports)), "{line}");

    assert_eq!((lab.metric(SCANS), lab.metric(BLOCKS)), (1, 1));
    assert_eq!(lab.bus.list().len(), 1);
    assert_eq!(
        service.lines_with("port scan by").len(),
        2,
        "one line at the start and one at the end"
    );
    assert_still_works(&lab, service);
}

/// The classic preset does not count a sweep as a scan.
#[test]
fn sweep_of_one_port_does_not_block() {
    const HOSTS: u32 = 65_000;
    for (per, tracked) in [("source", 1), ("pair", HOSTS)] {
        let lab = Lab::new();
        let start = Start::on("eth0").env("TCPTRACKER_DETECTION__PER", per);
        let service = start.begin(&lab).await_ready();
        let mut flood = Flood::on(&lab);
        for number in 0..HOSTS {
            flood.syn(v4(ATTACKER), forged(number), 443);
        }
        flood.settle();
        lab.assert_counted(&[FORWARDED], HOSTS.into());
        lab.assert_counted(&[SOURCES], tracked.into());
        assert_eq!((lab.metric(SCANS), lab.bus.list()), (0, vec![]));
        lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
        assert_still_works(&lab, service);
    }
}

/// Sends random frames, and probes with some random bytes, truncated at random positions.
#[test]
fn malformed_frames_are_harmless() {
    const FRAMES: u32 = 100_000;
    /// EtherTypes of IPv4, IPv6, VLAN, QinQ, MPLS and PPPoE, and an 802.3 length.
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
                // Keep the Ethernet addresses.
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
    assert!(taken > FRAMES * 9 / 10, "the kernel accepted only {taken} frames");
    assert!(
        lab.metric("tcptracker_new_connections") > 1000,
        "too few frames were parsed as probes"
    );

    // The service still detects a scan.
    lab.attacker.nmap("-sS -p 1-20", VICTIM);
    service.await_line(&format!("WARN blocked {ATTACKER} for 1h (offence 1): vertical scan: "));
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    assert_still_works(&lab, service);
}
