//! What a hostile network can do: send frames. The numbers are rows of the review of 2026-11-30.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream};
use std::time::{Duration, Instant};

use tcptracker::internals::{Effective, Preset, most_bytes};

use crate::arena::{Arena, Options};
use crate::frames::{BROADCAST, ETHERNET_HEADER, SynTemplate, Wire, syn, with_flags};
use crate::lab::{VICTIM, VICTIM_V6};
use crate::observer::{LIMIT, SetReader};
use crate::suite::Attack;
use crate::tools::Random;

/// How long a flood goes on.
const FLOOD: Duration = Duration::from_secs(3);

const RST: u8 = 0x04;
const SYN_ACK: u8 = 0x12;

/// A port on which nothing listens.
const CLOSED: u16 = 80;

/// The host behind the victim, see `Lab::add_forwarded_host`.
const BEHIND: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 3);

pub const ATTACKS: &[Attack] = &[
    Attack::new("syns_of_forged_sources", syns_of_forged_sources),
    Attack::new("syns_to_two_ports_each", syns_to_two_ports_each),
    Attack::new("first_fragments_of_8_bytes", first_fragments_of_8_bytes),
    Attack::new("hop_by_hop_and_udp", hop_by_hop_and_udp),
    Attack::new("fifteen_extension_headers", fifteen_extension_headers),
    Attack::new("one_blocked_source_to_all_ports", one_blocked_source_to_all_ports),
    Attack::new("forged_scanners", forged_scanners).spoiling(),
    Attack::new("forged_syn_acks", forged_syn_acks),
    Attack::new("forged_resets", forged_resets),
    Attack::new("forged_unreachables", forged_unreachables),
    Attack::new("scans_of_own_and_special_sources", scans_of_own_and_special_sources),
    Attack::new("scans_of_impossible_sources", scans_of_impossible_sources),
    Attack::new("idle_connection_to_port_22", idle_connection_to_port_22),
    Attack::new("answers_forged_before_a_scan", answers_forged_before_a_scan)
        .needing(|options| (options.balanced, options.forwarding) = (true, true)),
    Attack::new("answers_forged_during_a_scan", answers_forged_during_a_scan),
    Attack::new("mutated_frames", mutated_frames),
];

pub fn options(random: &mut Random) -> Options {
    Options { balanced: random.below(2) == 0, ..Options::default() }
}

/// Returns the most memory that the service may take. The start of the service counts on it.
pub fn most_memory(options: &Options) -> u64 {
    let mut config = Effective::default().into_config();
    config.detection.preset = if options.balanced { Preset::Balanced } else { Preset::Classic };
    most_bytes(&config, options.blocks.into())
}

/// 39, 40: one SYN per forged source.
fn syns_of_forged_sources(arena: &mut Arena, random: &mut Random) -> Result<(), String> {
    let mut template = SynTemplate::new(arena.lab.victim.hardware_address("eth0"));
    flood(arena, random, |number, wire| {
        wire.try_send(template.syn(forged(number), v4(VICTIM), CLOSED));
    });
    Ok(())
}

/// 39: two ports per source, so that each moves to the table of several ports.
fn syns_to_two_ports_each(arena: &mut Arena, random: &mut Random) -> Result<(), String> {
    let mut template = SynTemplate::new(arena.lab.victim.hardware_address("eth0"));
    flood(arena, random, |number, wire| {
        let port = CLOSED + u16::from(number % 2 == 1);
        wire.try_send(template.syn(forged(number / 2), v4(VICTIM), port));
    });
    Ok(())
}

/// 39: fragments that end before the TCP flags.
fn first_fragments_of_8_bytes(arena: &mut Arena, random: &mut Random) -> Result<(), String> {
    let mut template = SynTemplate::new(arena.lab.victim.hardware_address("eth0"));
    flood(arena, random, |number, wire| {
        let mut frame = template.syn(forged(number), v4(VICTIM), CLOSED).to_vec();
        frame.truncate(ETHERNET_HEADER + 28);
        let ip = &mut frame[ETHERNET_HEADER..];
        ip[2..4].copy_from_slice(&28_u16.to_be_bytes());
        // More fragments follow.
        ip[6..8].copy_from_slice(&0x2000_u16.to_be_bytes());
        set_check_sum(ip);
        wire.try_send(&frame);
    });
    Ok(())
}

/// 39: IPv6 packets with a hop-by-hop header and UDP.
fn hop_by_hop_and_udp(arena: &mut Arena, random: &mut Random) -> Result<(), String> {
    const UDP: u8 = 17;
    let hardware = arena.lab.victim.hardware_address("eth0");
    let udp = [0x9c, 0x40, 0, 9, 0, 8, 0, 0];
    flood(arena, random, |number, wire| {
        let headers = [&extension(UDP)[..], &udp].concat();
        wire.try_send(&ipv6(hardware, forged_v6(number), 0, &headers));
    });
    Ok(())
}

/// 39: the longest way to a TCP header.
fn fifteen_extension_headers(arena: &mut Arena, random: &mut Random) -> Result<(), String> {
    const DESTINATION_OPTIONS: u8 = 60;
    const TCP: u8 = 6;
    let hardware = arena.lab.victim.hardware_address("eth0");
    let mut headers: Vec<u8> = (0..14).flat_map(|_| extension(DESTINATION_OPTIONS)).collect();
    headers.extend(extension(TCP));
    let tcp =
        syn(hardware, forged_v6(1).into(), VICTIM_V6, CLOSED)[ETHERNET_HEADER + 40..].to_vec();
    headers.extend(tcp);
    flood(arena, random, |number, wire| {
        wire.try_send(&ipv6(hardware, forged_v6(number), DESTINATION_OPTIONS, &headers));
    });
    Ok(())
}

/// 39: a source that is blocked goes on with all ports.
fn one_blocked_source_to_all_ports(arena: &mut Arena, random: &mut Random) -> Result<(), String> {
    let mut template = SynTemplate::new(arena.lab.victim.hardware_address("eth0"));
    let source = forged(0xff_0000 + u32::try_from(random.below(60_000)).unwrap());
    flood(arena, random, |number, wire| {
        let [.., high, low] = number.to_be_bytes();
        wire.try_send(template.syn(source, v4(VICTIM), u16::from_be_bytes([high, low])));
    });
    Ok(())
}

/// 41: scanners of 4 ports each at 1,000 packets per second use up the limit on blocks.
fn forged_scanners(arena: &mut Arena, random: &mut Random) -> Result<(), String> {
    let mut template = SynTemplate::new(arena.lab.victim.hardware_address("eth0"));
    let mut wire = arena.attacker_wire();
    let first = u32::try_from(random.below(1 << 20)).unwrap() << 2;
    paced(Duration::from_secs(8), Some(1000), |number| {
        let port = 1000 + u16::try_from(number % 4).unwrap();
        wire.try_send(template.syn(forged(first + number / 4), v4(VICTIM), port));
    });
    Ok(())
}

/// 40, 46: SYN-ACKs to connections that do not exist.
fn forged_syn_acks(arena: &mut Arena, random: &mut Random) -> Result<(), String> {
    flood_with_flags(arena, random, SYN_ACK);
    Ok(())
}

/// 40: resets to connections that do not exist.
fn forged_resets(arena: &mut Arena, random: &mut Random) -> Result<(), String> {
    flood_with_flags(arena, random, RST);
    Ok(())
}

fn flood_with_flags(arena: &Arena, random: &mut Random, flags: u8) {
    let mut template = SynTemplate::new(arena.lab.victim.hardware_address("eth0"));
    flood(arena, random, |number, wire| {
        let port = u16::try_from(number % 60_000).unwrap() + 1;
        let mut frame = template.syn(forged(number), v4(VICTIM), port).to_vec();
        with_flags(&mut frame, flags);
        wire.try_send(&frame);
    });
}

/// 40: ICMP errors that quote connections that do not exist.
fn forged_unreachables(arena: &mut Arena, random: &mut Random) -> Result<(), String> {
    let mut template = SynTemplate::new(arena.lab.victim.hardware_address("eth0"));
    flood(arena, random, |number, wire| {
        let port = u16::try_from(number % 60_000).unwrap() + 1;
        let quoted =
            template.syn(v4(VICTIM), forged(number), port)[ETHERNET_HEADER..][..28].to_vec();
        let mut frame =
            template.syn(forged(number), v4(VICTIM), port)[..ETHERNET_HEADER + 20].to_vec();
        // "Destination unreachable", code "port unreachable".
        frame.extend([3, 3, 0, 0, 0, 0, 0, 0]);
        frame.extend(quoted);
        let ip = &mut frame[ETHERNET_HEADER..];
        ip[2..4].copy_from_slice(&56_u16.to_be_bytes());
        ip[9] = 1;
        set_check_sum(ip);
        wire.try_send(&frame);
    });
    Ok(())
}

/// 44: scans that seem to come from the victim, its gateway, loopback or link-local addresses.
fn scans_of_own_and_special_sources(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    must_not_block(arena, &["10.77.0.2", "10.77.0.3", "127.0.0.1", "169.254.3.3", "fd77::2", "::1"])
}

/// 45: scans of sources that no host can have.
fn scans_of_impossible_sources(arena: &mut Arena, _: &mut Random) -> Result<(), String> {
    must_not_block(
        arena,
        &[
            "0.0.0.0",
            "0.1.2.3",
            "255.255.255.255",
            "240.1.2.3",
            "224.0.0.5",
            "10.77.0.255",
            "::",
            "ff02::5",
        ],
    )
}

fn must_not_block(arena: &Arena, sources: &[&str]) -> Result<(), String> {
    let hardware = arena.lab.victim.hardware_address("eth0");
    let mut wire = arena.attacker_wire();
    let mut set = SetReader::of(&arena.lab);
    for source in sources {
        let source: IpAddr = source.parse().unwrap();
        let to = if source.is_ipv6() { VICTIM_V6 } else { VICTIM };
        for port in 3000..3010 {
            wire.try_send(&syn(hardware, source, to, port));
        }
    }
    std::thread::sleep(LIMIT);
    let blocked: Vec<_> =
        sources.iter().filter(|source| set.contains(source.parse().unwrap())).collect();
    if blocked.is_empty() { Ok(()) } else { Err(format!("blocked {blocked:?}")) }
}

/// 43: a client that keeps a connection to port 22 open, sends nothing, and scans.
fn idle_connection_to_port_22(arena: &mut Arena, random: &mut Random) -> Result<(), String> {
    let sshd = arena.lab.victim.listen(22);
    let number = 10 + random.below(200);
    let source: IpAddr = format!("10.77.0.{number}").parse().unwrap();
    arena.lab.attacker.ip(&format!("addr replace {source}/24 dev eth0"));
    // The kernel chooses the source address by the route.
    arena.lab.attacker.ip(&format!("route replace 10.77.0.2/32 dev eth0 src {source}"));
    let client = arena.lab.attacker.inside(|| TcpStream::connect((VICTIM, 22)).unwrap());
    let (_server, peer) = sshd.accept().unwrap();
    assert_eq!(peer.ip().to_canonical(), source);
    // The service looks for sessions from time to time.
    std::thread::sleep(Duration::from_secs(2));
    let result = must_block(arena, source, VICTIM);
    drop(client);
    arena.lab.attacker.ip("route del 10.77.0.2/32 dev eth0");
    arena.lab.attacker.ip(&format!("addr del {source}/24 dev eth0"));
    result
}

/// 46: SYN-ACKs that seem to come from a host behind the victim make its ports look open.
fn answers_forged_before_a_scan(arena: &mut Arena, random: &mut Random) -> Result<(), String> {
    let hardware = arena.lab.victim.hardware_address("eth0");
    let mut wire = arena.attacker_wire();
    for port in SCANNED {
        let mut frame = syn(hardware, BEHIND.into(), Ipv4Addr::new(10, 78, 0, 6).into(), 40_000);
        // Their source port is the scanned port.
        frame[ETHERNET_HEADER + 20..ETHERNET_HEADER + 22].copy_from_slice(&port.to_be_bytes());
        with_flags(&mut frame, SYN_ACK);
        wire.try_send(&frame);
    }
    std::thread::sleep(Duration::from_millis(500));
    let source = forged(0xfe_0000 + u32::try_from(random.below(60_000)).unwrap());
    must_block(arena, source.into(), BEHIND.into())
}

/// 47: a forged answer follows each SYN of a scan.
fn answers_forged_during_a_scan(arena: &mut Arena, random: &mut Random) -> Result<(), String> {
    let hardware = arena.lab.victim.hardware_address("eth0");
    let mut wire = arena.attacker_wire();
    let mut set = SetReader::of(&arena.lab);
    let source = forged(0xfd_0000 + u32::try_from(random.below(60_000)).unwrap());
    for port in SCANNED {
        wire.try_send(&syn(hardware, source.into(), VICTIM, port));
        let mut answer = syn(BROADCAST, VICTIM, source.into(), 40_000);
        answer[ETHERNET_HEADER + 20..ETHERNET_HEADER + 22].copy_from_slice(&port.to_be_bytes());
        with_flags(&mut answer, SYN_ACK);
        wire.try_send(&answer);
    }
    await_block(&mut set, source.into())
}

/// 37: frames with random bytes of all kinds.
fn mutated_frames(arena: &mut Arena, random: &mut Random) -> Result<(), String> {
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
    let mut wire = arena.attacker_wire();
    let probes = [
        syn(BROADCAST, forged(1).into(), VICTIM, CLOSED),
        syn(BROADCAST, forged_v6(1).into(), VICTIM_V6, CLOSED),
        ipv6(BROADCAST, forged_v6(1), 0, &[extension(60), extension(43), extension(44)].concat()),
    ];
    let begun = Instant::now();
    while begun.elapsed() < FLOOD {
        let mut frame = probes[random.below(probes.len())].clone();
        if random.below(4) == 0 {
            frame[12..14].copy_from_slice(&TYPES[random.below(TYPES.len())]);
        }
        for _ in 0..=random.below(6) {
            // The bytes of the source stay: a thousand scanners would use up the limit on blocks.
            let at = 12 + random.below(frame.len() - 12);
            let is_source = if frame[14] >> 4 == 4 { 26..30 } else { 22..38 };
            if is_source.contains(&at) {
                continue;
            }
            frame[at] = random.next().to_le_bytes()[0];
        }
        if random.below(3) == 0 {
            frame.truncate(14 + random.below(frame.len() - 13));
        }
        wire.try_send(&frame);
    }
    Ok(())
}

/// The ports of a scan that an attack sends itself.
const SCANNED: std::ops::Range<u16> = 4000..4020;

/// Scans from this source and waits for its block.
fn must_block(arena: &Arena, source: IpAddr, to: IpAddr) -> Result<(), String> {
    let hardware = arena.lab.victim.hardware_address("eth0");
    let mut wire = arena.attacker_wire();
    let mut set = SetReader::of(&arena.lab);
    for port in SCANNED {
        wire.try_send(&syn(hardware, source, to, port));
        // The host's answer must not come after all SYNs.
        std::thread::sleep(Duration::from_millis(2));
    }
    await_block(&mut set, source)
}

fn await_block(set: &mut SetReader, source: IpAddr) -> Result<(), String> {
    let begun = Instant::now();
    while begun.elapsed() < LIMIT {
        if set.contains(source) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err(format!("the scan from {source} was not blocked within {LIMIT:?}"))
}

/// Sends frames, either as fast as possible or 50,000 per second.
fn flood(arena: &Arena, random: &mut Random, mut send: impl FnMut(u32, &mut Wire)) {
    let mut wire = arena.attacker_wire();
    let rate = [None, Some(50_000)][random.below(2)];
    // Another range of forged sources each time.
    let first = u32::try_from(random.below(1 << 22)).unwrap() << 2;
    paced(FLOOD, rate, |number| send(first + number, &mut wire));
}

/// Calls `send` with increasing numbers, at most so many times per second.
fn paced(span: Duration, rate: Option<u32>, mut send: impl FnMut(u32)) {
    let begun = Instant::now();
    let mut number = 0;
    while begun.elapsed() < span {
        let due = rate.map_or(u32::MAX, |rate| {
            u32::try_from(begun.elapsed().as_micros() * u128::from(rate) / 1_000_000).unwrap()
        });
        if number >= due {
            std::thread::sleep(Duration::from_micros(500));
            continue;
        }
        for _ in 0..(due - number).min(100) {
            send(number);
            number += 1;
        }
        // The sender's processor also delivers the frames.
        std::thread::yield_now();
    }
}

/// Returns a forged source address, in 11.0.0.0/8.
fn forged(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0b00_0000 + (number & 0xff_ffff))
}

/// Returns a forged source address, each in a network of its own.
fn forged_v6(number: u32) -> Ipv6Addr {
    Ipv6Addr::from(0x2001_0db8_u128 << 96 | u128::from(number) << 64 | 1)
}

fn v4(address: IpAddr) -> Ipv4Addr {
    let IpAddr::V4(address) = address else { panic!("{address} is not IPv4") };
    address
}

/// Builds an Ethernet frame with an IPv6 packet to the victim.
fn ipv6(hardware: [u8; 6], from: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let IpAddr::V6(to) = VICTIM_V6 else { panic!("the victim has an IPv6 address") };
    let mut frame = [&hardware[..], &[2, 0, 0, 0, 0, 1, 0x86, 0xdd]].concat();
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    frame.extend([next, 64]);
    frame.extend(from.octets());
    frame.extend(to.octets());
    frame.extend(payload);
    frame
}

/// An extension header of eight bytes, filled with `PadN`.
fn extension(next: u8) -> Vec<u8> {
    vec![next, 0, 1, 4, 0, 0, 0, 0]
}

/// Sets the checksum of an IPv4 header without options.
fn set_check_sum(ip: &mut [u8]) {
    ip[10..12].fill(0);
    let mut sum: u32 =
        ip[..20].chunks_exact(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [.., high, low] = (!sum).to_be_bytes();
    ip[10..12].copy_from_slice(&[high, low]);
}
