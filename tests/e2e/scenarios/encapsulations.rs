//! Scans in every encapsulation: fragments, unusual flags, tunnels, other interfaces, forwarded
//! packets.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::process::{Child, ChildStdin, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use pcap::Capture;

use super::scan::assert_blocked;
use crate::frames::{BROADCAST, ETHERNET_HEADER, Wire, syn};
use crate::kernel::{Rules, remaining};
use crate::lab::{ATTACKER, ATTACKER_V6, Lab, OPEN_PORT, VICTIM, VICTIM_V6};
use crate::service::Start;
use crate::tools::{Random, run};
use crate::wrapped::Wrapping;

/// nmap's own evasions: `-f` cuts the TCP header before the flags, `-ff` after them.
#[test]
fn fragments_options_and_unusual_flags_do_not_hide_a_scan() {
    let scans = [
        ("-sS -f", "stealth"),
        ("-sS -ff", "vertical"),
        ("-sS --scanflags SYNFIN", "vertical"),
        ("-sS --scanflags SYNECECWR", "vertical"),
        // Record route for 9 addresses: almost the longest IP header.
        ("-sS --ip-options R", "vertical"),
    ];
    // In parallel: each case mostly waits for a reply that must not come.
    std::thread::scope(|scope| {
        for (scan, kind) in scans {
            scope.spawn(move || {
                let lab = Lab::new();
                let service = lab.start();
                lab.attacker.nmap(&format!("{scan} -p 1-20"), VICTIM);
                assert_blocked(&lab, service, kind, [ATTACKER, VICTIM]);
            });
        }
    });
}

/// Encapsulates an Ethernet frame.
type Encapsulate = Box<dyn Fn(&[u8]) -> Vec<u8>>;

/// Encapsulations that nmap cannot send. Each has its own source, and the fourth port is the
/// threshold.
#[test]
fn tunnels_and_extension_headers_do_not_hide_a_scan() {
    let lab = Lab::new();
    let mut service = lab.start();
    let mut wire = Wire::of(&lab.attacker);
    let ipv6_with = |next: u8, header: [u8; 8]| {
        move |frame: &[u8]| {
            let (before, after) = frame.split_at(ETHERNET_HEADER + 40);
            let mut frame = [before, &header, after].concat();
            // Payload length and next header.
            frame[ETHERNET_HEADER + 5] += 8;
            frame[ETHERNET_HEADER + 6] = next;
            frame
        }
    };
    // Replaces the EtherType by these headers.
    let after_mac = |header: &'static [u8]| {
        move |frame: &[u8]| [&frame[..12], header, &frame[ETHERNET_HEADER..]].concat()
    };
    let encapsulations: [(&str, bool, Encapsulate); 8] = [
        ("PPPoE", false, Box::new(after_mac(&[0x88, 0x64, 0x11, 0, 0, 1, 0, 42, 0, 0x21]))),
        ("PPPoE, IPv6", true, Box::new(after_mac(&[0x88, 0x64, 0x11, 0, 0, 1, 0, 62, 0, 0x57]))),
        ("MPLS", false, Box::new(after_mac(&[0x88, 0x47, 0, 1, 0x01, 64]))),
        ("two MPLS labels", true, Box::new(after_mac(&[0x88, 0x47, 0, 1, 0, 64, 0, 2, 0x01, 64]))),
        // An atomic fragment (RFC 6946).
        ("a fragment header", true, Box::new(ipv6_with(44, [6, 0, 0, 0, 0, 0, 0, 1]))),
        ("destination options", true, Box::new(ipv6_with(60, [6, 0, 1, 4, 0, 0, 0, 0]))),
        ("hop-by-hop options", true, Box::new(ipv6_with(0, [6, 0, 1, 4, 0, 0, 0, 0]))),
        ("a priority tag", false, Box::new(after_mac(&[0x81, 0, 0x60, 0, 0x08, 0x00]))),
    ];
    for (number, (name, ipv6, encapsulate)) in encapsulations.iter().enumerate() {
        let [source, shown, victim] = if *ipv6 {
            [format!("2001:db8:{number}::7"), format!("2001:db8:{number}::/64"), "fd77::2".into()]
        } else {
            let source = format!("198.51.100.{number}");
            [source.clone(), source, "10.77.0.2".into()]
        };
        let [from, to]: [IpAddr; 2] = [source, victim].map(|address| address.parse().unwrap());
        let mut send = |port| wire.send(&encapsulate(&syn(BROADCAST, from, to, port)));
        (1..=3).for_each(&mut send);
        let third = format!("{} -> ", std::net::SocketAddr::new(from, 40_000));
        service.await_lines(&third, 3);
        assert_eq!(lab.bus.list().len(), number, "blocked too early: {name}");
        send(4);
        service.await_line(&format!("WARN blocked {shown} for 1h"));
        // Other sources tried the same ports, so a note about decoys may follow.
        let reason = lab.bus.block_of(&shown).4;
        assert!(reason.starts_with("vertical scan: ports 1, 2, 3, 4"), "{name}: {reason}");
    }
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn any_detects_scans_on_every_interface() {
    let lab = Lab::new();
    lab.second_link();
    let mut service = Start::on("any").begin(&lab).await_ready();
    Rules::of(&lab.victim).assert_enforced_for(&["any"]);
    for (attacker, victim, blocked) in [
        (ATTACKER, VICTIM, 1),
        (ATTACKER_V6, VICTIM_V6, 2),
        (crate::lab::ATTACKER_ON_ETH1, crate::lab::VICTIM_ON_ETH1, 3),
    ] {
        lab.attacker.nmap("-sS -p 1-3", victim);
        service.await_line(&format!("-> {}", std::net::SocketAddr::new(victim, 3)));
        assert_eq!(lab.bus.list_on("any").len(), blocked - 1);
        lab.attacker.nmap("-sS -p 4", victim);
        service.await_line(&format!("WARN blocked {attacker} for 1h (offence 1): vertical scan: "));
        lab.attacker.assert_cannot_reach(victim, OPEN_PORT);
        assert_eq!(lab.bus.list_on("any").len(), blocked);
    }
    lab.bystander.assert_reaches(VICTIM, OPEN_PORT);
    // Connections of the host to itself are never a scan.
    lab.victim.nmap("-sT -p 1-20", IpAddr::from([127, 0, 0, 1]));
    service.await_line("-> 127.0.0.1:20");
    assert_eq!(lab.bus.list_on("any").len(), 3);
    assert_eq!(lab.metric(r#"tcptracker_scans_total{kind="vertical"}"#), 3);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// The far end of a tun device: IP packets without a link-layer header.
struct FarEnd {
    program: Child,
    packets: ChildStdin,
}

impl FarEnd {
    fn of(lab: &Lab, device: &str) -> Self {
        // Python, because the ioctl TUNSETIFF (with IFF_TUN and IFF_NO_PI) needs unsafe code in
        // Rust.
        let script = "import fcntl, struct, sys\n\
                      tun = open('/dev/net/tun', 'r+b', buffering=0)\n\
                      request = struct.pack('16sH22x', sys.argv[1].encode(), 0x1001)\n\
                      fcntl.ioctl(tun, 0x400454ca, request)\n\
                      print('ready', flush=True)\n\
                      for line in sys.stdin: tun.write(bytes.fromhex(line))\n";
        let mut program = lab
            .victim
            .command("python3")
            .args(["-c", script, device])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let ready = BufReader::new(program.stdout.take().unwrap()).lines().next();
        assert!(ready.is_some(), "python3 cannot take {device}");
        let packets = program.stdin.take().unwrap();
        Self { program, packets }
    }

    fn syn(&mut self, from: IpAddr, to: IpAddr, port: u16) {
        let mut packet = Vec::new();
        match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                PacketBuilder::ipv4(from.octets(), to.octets(), 9)
                    .tcp(40_000, port, 7, 64_240)
                    .syn()
                    .write(&mut packet, &[])
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                PacketBuilder::ipv6(from.octets(), to.octets(), 9)
                    .tcp(40_000, port, 7, 64_240)
                    .syn()
                    .write(&mut packet, &[])
            }
            _ => panic!("{from} and {to} are of different families"),
        }
        .unwrap();
        let line: String = packet.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(self.packets, "{line}").unwrap();
    }
}

impl Drop for FarEnd {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

#[test]
fn scan_on_a_tun_device_is_detected() {
    let lab = Lab::new();
    lab.victim.ip("tuntap add mode tun name tun0");
    lab.victim.ip("addr add 10.99.0.2/24 dev tun0");
    lab.victim.ip("link set tun0 up");
    lab.victim.ip("addr add fd99::2/64 dev tun0 nodad");
    let mut far_end = FarEnd::of(&lab, "tun0");
    let mut service = Start::on("tun0").begin(&lab).await_ready();
    for (from, to, set) in [
        ("10.99.0.7", "10.99.0.2", "tcptracker-tun0-v4"),
        ("fd99::7", "fd99::2", "tcptracker-tun0-v6"),
    ] {
        let [from, to]: [IpAddr; 2] = [from, to].map(|address| address.parse().unwrap());
        for port in 1..=3 {
            far_end.syn(from, to, port);
        }
        let to_port_3 = format!("-> {}", std::net::SocketAddr::new(to, 3));
        let told = service.await_line(&to_port_3);
        assert!(told.contains("new inbound connection"), "{told}");
        assert!(!lab.bus.list_on("tun0").iter().any(|block| block.0 == from.to_string()));
        far_end.syn(from, to, 4);
        service.await_line(&format!("WARN blocked {from} for 1h (offence 1): vertical scan: "));
        assert!(remaining(&lab.victim, set, &from.to_string()) > 3500);
    }
    assert_eq!(service.stop().code(), Some(0));
    drop(far_end);
    lab.assert_untouched();
}

/// The victim is a router or a container host.
#[test]
fn forwarded_scan_is_detected_and_dropped() {
    let mut lab = Lab::new();
    let behind = lab.add_forwarded_host();
    for program in ["iptables", "ip6tables"] {
        // The administrator allows forwarding.
        run(lab.victim.command(program).args(["-P", "FORWARD", "ACCEPT"])).ok();
    }
    lab.rules_before = Rules::of(&lab.victim);
    let _listener = behind.listen(OPEN_PORT);
    let mut service = lab.start();
    for (attacker, target, family, shown) in [
        (ATTACKER, "10.78.0.3", "ipv4", "10.78.0.3"),
        (ATTACKER_V6, "fd78::3", "ipv6", "[fd78::3]"),
    ] {
        let target: IpAddr = target.parse().unwrap();
        lab.attacker.assert_reaches(target, OPEN_PORT);
        lab.attacker.nmap("-sS -p 1-20", target);
        service.await_line(&format!("WARN blocked {attacker} for 1h (offence 1): vertical scan: "));
        service.await_line(&format!("vertical port scan by {attacker} on {target}: ports "));
        lab.attacker.assert_cannot_reach(target, OPEN_PORT);
        lab.bystander.assert_reaches(target, OPEN_PORT);
        let told = service.await_line(&format!("-> {shown}:{OPEN_PORT}"));
        assert!(told.contains("new forwarded connection"), "{told}");
        let of = |direction: &str| {
            lab.metric(&format!(
                "tcptracker_connections_total{{direction=\"{direction}\",family=\"{family}\"}}"
            ))
        };
        // 20 scan probes, 3 connections, and retransmissions.
        let forwarded = of("forwarded");
        assert!((23..=30).contains(&forwarded), "{forwarded}");
        assert_eq!((of("inbound"), of("outbound")), (0, 0));
    }
    assert_eq!(lab.bus.list().len(), 2);
    assert_eq!(service.stop().code(), Some(0));
    lab.attacker.assert_reaches("10.78.0.3".parse().unwrap(), OPEN_PORT);
    lab.assert_untouched();
}

/// Every mix of flags to which a closed port replies is a probe.
#[test]
fn unusual_flags_do_not_hide_a_scan_in_either_preset() {
    let flags = ["URG", "PSH", "URGPSH", "FINURG", "FINPSH", "ECEPSH", "CWRFINURG"];
    std::thread::scope(|scope| {
        for preset in ["classic", "balanced"] {
            scope.spawn(move || {
                for flags in flags {
                    let lab = Lab::new();
                    lab.configure(&format!("[detection]\npreset = \"{preset}\"\n"));
                    let mut service = lab.start();
                    lab.attacker.nmap(&format!("-sS --scanflags {flags} -p 1-20"), VICTIM);
                    let blocked =
                        format!("WARN blocked {ATTACKER} for 1h (offence 1): stealth scan: ");
                    service.await_line(&blocked);
                    assert_eq!(service.stop().code(), Some(0), "{preset} {flags}");
                }
            });
        }
    });
}

/// How long random wrappings are tried. `TCPTRACKER_PROBE_SECONDS` changes it.
fn seconds_of_probing() -> Duration {
    let seconds = std::env::var("TCPTRACKER_PROBE_SECONDS");
    Duration::from_secs(seconds.map_or(5, |seconds| seconds.parse().unwrap()))
}

/// The wrappings of reported faults: three priority tags, long and many extension headers, and a fragment that
/// ends within the extension headers.
fn reported_wrappings() -> Vec<Wrapping> {
    let ipv6 = |extensions: &[(u8, usize)]| Wrapping {
        ipv6: true,
        extensions: extensions.to_vec(),
        ..Wrapping::default()
    };
    let tags = |count| Wrapping { tags: vec![0x8100; count], ..Wrapping::default() };
    let mut all = vec![Wrapping::default(), tags(3), tags(4), tags(300), ipv6(&[])];
    all.extend([ipv6(&[(43, 30)]), ipv6(&[(60, 30)]), ipv6(&[(43, 128)]), ipv6(&[(60, 1); 17])]);
    all.extend([8, 16].map(|cut| Wrapping { cut: Some(cut), ..ipv6(&[(60, 2), (60, 2)]) }));
    all
}

/// Whatever the kernel replies to was seen. Each wrapping has its own source, and tries four ports.
fn assert_that_replies_mean_scans(interface: &str, seed: u64) {
    // Their frames fit into the small ring for whole frames, also if the service gets no processor for a while.
    const SOURCES: usize = 32;
    let source = |number: usize, ipv6: bool| -> IpAddr {
        if ipv6 { format!("fd77::7:{number}") } else { format!("10.77.0.{}", 100 + number) }
            .parse()
            .unwrap()
    };
    let mut random = Random::seeded(seed);
    let mut wrappings = reported_wrappings();
    let (mut tried, mut answered) = (0, 0);
    let begun = Instant::now();
    while tried < wrappings.len() || begun.elapsed() < seconds_of_probing() {
        let lab = Lab::new();
        let addresses: String = (0..SOURCES)
            .flat_map(|number| {
                [
                    format!("addr add {}/24 dev eth0\n", source(number, false)),
                    format!("addr add {}/64 dev eth0 nodad\n", source(number, true)),
                ]
            })
            .collect();
        let batch = lab.path("addresses");
        std::fs::write(&batch, addresses).unwrap();
        lab.attacker.ip(&format!("-batch {}", batch.display()));
        let mut service = Start::on(interface).flag("--observe").begin(&lab).await_ready();
        let hardware = lab.victim.hardware_address("eth0");
        let mut replies = lab.attacker.inside(|| {
            let inactive = Capture::from_device("eth0").unwrap().immediate_mode(true);
            let inactive = inactive.snaplen(128).buffer_size(8 << 20);
            let mut replies = inactive.open().unwrap();
            replies.filter("tcp[13]&20=20 or (ip6 and ip6[53]&20=20)", true).unwrap();
            replies
        });
        let mut wire = Wire::of(&lab.attacker);
        let offset = tried;
        for number in 0..SOURCES {
            if tried == wrappings.len() {
                wrappings.push(Wrapping::random(&mut random));
            }
            let wrapping = &wrappings[tried];
            let from = source(number, wrapping.ipv6);
            let to = if wrapping.ipv6 { VICTIM_V6 } else { VICTIM };
            for port in 1..=4 {
                for frame in wrapping.frames(hardware, from, to, port) {
                    wire.send(&frame);
                }
            }
            tried += 1;
        }
        // The reply to this one comes last.
        wire.send(&syn(hardware, ATTACKER, VICTIM, 999));
        let mut refused: HashMap<IpAddr, HashSet<u16>> = HashMap::new();
        loop {
            let packet = replies.next_packet().unwrap();
            let Ok(parsed) = SlicedPacket::from_ethernet(packet.data) else { continue };
            let to: IpAddr = match parsed.net {
                Some(NetSlice::Ipv4(ip)) => ip.header().destination_addr().into(),
                Some(NetSlice::Ipv6(ip)) => ip.header().destination_addr().into(),
                _ => continue,
            };
            let Some(TransportSlice::Tcp(tcp)) = parsed.transport else { continue };
            if tcp.rst() && tcp.ack() {
                refused.entry(to).or_default().insert(tcp.source_port());
                if tcp.source_port() == 999 {
                    break;
                }
            }
        }
        for number in 0..tried - offset {
            let wrapping = &wrappings[offset + number];
            let from = source(number, wrapping.ipv6);
            let ports = refused.get(&from).map_or(0, HashSet::len);
            if ports == 4 {
                answered += 1;
                println!("seed {seed}, {interface}: {from} {wrapping:?}");
                service.await_line(&format!(" port scan by {from} on "));
            }
        }
        assert_eq!(service.stop().code(), Some(0));
    }
    println!("{tried} wrappings on {interface}, {answered} of them were answered");
    // Those that were reported are all answered, and many of the random ones.
    assert!(answered >= tried / 4, "{answered} of {tried}");
}

#[test]
fn whatever_the_kernel_replies_to_was_seen() {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = std::env::var("TCPTRACKER_SEED").map_or_else(
        |_| u64::try_from(since_1970.as_nanos() & u128::from(u32::MAX)).unwrap(),
        |seed| seed.parse().unwrap(),
    );
    println!("TCPTRACKER_SEED={seed}");
    for interface in ["eth0", "any"] {
        assert_that_replies_mean_scans(interface, seed);
    }
}
