//! Replay of captures recorded in the lab or generated, compared with the oracle.

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;

use crate::frames::{BROADCAST, ETHERNET_HEADER, syn, with_flags};
use crate::lab::{ATTACKER, ATTACKER_V6, BINARY, Lab, OPEN_PORT, VICTIM, VICTIM_V6};
use crate::oracle::{Rule, scans, scans_in};
use crate::recorder::{RecordedFrame, Recorder, as_pcap, as_pcapng, frames_in};
use crate::tools::{Outcome, Random, TIMEOUT, run};

const BYSTANDER: &str = "10.77.0.3";

/// Sizes of the header of a pcap file and of the header of each packet.
const FILE_HEADER: usize = 24;
const PACKET_HEADER: usize = 16;

fn record(lab: &Lab, name: &str, action: impl FnOnce()) -> PathBuf {
    let recorder = Recorder::start(lab, name);
    action();
    recorder.finish(lab)
}

/// Records the attacker scanning 30 ports while the bystander scans 7.
fn two_concurrent_scans(lab: &Lab) -> PathBuf {
    record(lab, "two.pcap", || {
        std::thread::scope(|scope| {
            scope.spawn(|| lab.attacker.nmap("-sS -p 1-30 --scan-delay 5ms", VICTIM));
            scope.spawn(|| lab.bystander.nmap("-sS -p 20-26 --scan-delay 20ms", VICTIM));
        });
    })
}

/// Counts the SYNs in a capture of [`two_concurrent_scans`]: all, and the attacker's. There may be
/// more SYNs than ports: after 1 s without a reply, nmap probes an answering port again.
#[track_caller]
fn probes_in(file: &Path) -> (usize, usize) {
    const SYN: u8 = 2;
    let IpAddr::V4(attacker) = ATTACKER else { panic!("the attacker has an IPv4 address") };
    let sources: Vec<[u8; 4]> = frames_in(file)
        .iter()
        .filter_map(|saved| {
            let packet = SlicedPacket::from_ethernet(&saved.frame).ok()?;
            let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Tcp(tcp))) =
                (packet.net, packet.transport)
            else {
                return None;
            };
            (tcp.slice()[13] == SYN).then(|| ip.header().source())
        })
        .collect();
    let of_attacker = sources.iter().filter(|source| **source == attacker.octets()).count();
    assert!(of_attacker >= 30 && sources.len() >= of_attacker + 7, "{sources:?}");
    (sources.len(), of_attacker)
}

/// The command line of a replay with this rule, independent of the machine's configuration.
fn replay(lab: &Lab, rule: &Rule) -> Command {
    let Rule { ports, window, ipv6_prefix, .. } = rule;
    let per = if rule.pair { "pair" } else { "source" };
    let mut command = lab.client(&format!(
        "replay --json --ports {ports} --window {window} --per {per} --ipv6-prefix {ipv6_prefix}"
    ));
    command.env("TCPTRACKER_DETECTION__STEALTH", rule.stealth.to_string());
    command.arg("--config").arg(lab.path("tcptracker.toml"));
    command
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn all_rules() -> impl Iterator<Item = Rule> {
    let both = [false, true];
    let rules = [1, 3, 10].into_iter().flat_map(|ports| ["1s", "60s"].map(|span| (ports, span)));
    let rules = rules.flat_map(move |rule| both.map(|pair| (rule, pair)));
    let rules = rules.flat_map(move |rule| both.map(|stealth| (rule, stealth)));
    rules.flat_map(|(((ports, window), pair), stealth)| {
        [64, 128].map(|ipv6_prefix| Rule { ports, window, pair, stealth, ipv6_prefix })
    })
}

/// Asserts that replay and oracle find the same scans, at the same nanosecond and probe, for every
/// rule.
#[track_caller]
fn assert_equal_to_oracle(lab: &Lab, files: &[PathBuf]) {
    let mut found = 0;
    for rule in all_rules() {
        let printed = lines(&run(replay(lab, &rule).args(files)).ok());
        let expected: Vec<Value> = files.iter().flat_map(|file| scans_in(file, &rule)).collect();
        for (line, scan) in printed.iter().zip(&expected) {
            assert_eq!(line, scan, "{rule:?}");
        }
        assert_eq!(printed.len(), expected.len(), "{rule:?}: {printed:#?}, not {expected:#?}");
        found += expected.len();
    }
    assert!(found > 0, "nothing was compared");
}

#[test]
fn recorded_scans_match_the_oracle() {
    let lab = Lab::new();
    let files = [
        record(&lab, "syn.pcap", || lab.attacker.nmap("-sS -p 1-30", VICTIM)),
        record(&lab, "connect.pcap", || lab.attacker.nmap("-sT -p 1-12", VICTIM)),
        record(&lab, "ipv6.pcap", || lab.attacker.nmap("-sS -p 1-20", VICTIM_V6)),
        record(&lab, "slow.pcap", || {
            lab.attacker.nmap("-sS -p 1-8 --scan-delay 300ms", VICTIM);
        }),
        record(&lab, "stealth.pcap", || {
            lab.attacker.nmap("-sF -p 1-5", VICTIM);
            lab.attacker.nmap("-sX -p 6-9", VICTIM);
            lab.bystander.nmap("-sN -p 1-5", VICTIM);
        }),
        two_concurrent_scans(&lab),
        // Repeated connections to 3 ports, 2 of which are closed.
        record(&lab, "ordinary.pcap", || {
            lab.bystander.inside(|| {
                for port in [OPEN_PORT, 80, 443].into_iter().cycle().take(12) {
                    let _ = TcpStream::connect_timeout(&SocketAddr::new(VICTIM, port), TIMEOUT);
                }
            });
        }),
    ];
    // Check that the recordings contain the scans before comparing them.
    let sources = |file: &Path| -> Vec<String> {
        let scans = scans_in(file, &Rule::CLASSIC).into_iter();
        scans
            .map(|scan| {
                // See `probes_in` for why there may be more.
                assert!(scan["probe"].as_u64().unwrap() >= 4, "{scan}");
                scan["source"].as_str().unwrap().to_owned()
            })
            .collect()
    };
    let attacker = || ATTACKER.to_string();
    let [syn, connect, ipv6, slow, stealth, two, ordinary] = &files;
    for file in [syn, connect, slow] {
        assert_eq!(sources(file), [attacker()], "{}", file.display());
    }
    assert_eq!(sources(ipv6), ["fd77::/64"]);
    for file in [stealth, two] {
        let mut found = sources(file);
        found.sort();
        assert_eq!(found, [attacker(), BYSTANDER.to_owned()], "{}", file.display());
    }
    assert_eq!(sources(ordinary), Vec::<String>::new());
    assert!(frames_in(ordinary).len() > 30, "the capture lacks the packets after the SYNs");

    assert_equal_to_oracle(&lab, &files);
}

/// Generates every kind of probe between hosts of both families: in bursts, with pauses, at the
/// exact edge of a window, and with a clock that sometimes runs backwards.
#[test]
fn generated_captures_match_the_oracle() {
    const PAUSES: [i64; 8] = [0, 1, 400, 100_000_000, 333_333_334, 999_999_999, 1_000_000_000, -50];
    let lab = Lab::new();
    let mut random = Random::seeded(77);
    // From one host that tries many ports to many hosts that each try a few.
    let populations =
        [1, 3, 10, 40].into_iter().flat_map(|hosts| [2, 6, 14].map(|ports| (hosts, ports)));
    let files: Vec<PathBuf> = populations
        .map(|(hosts, ports)| {
            let mut unix_nanos = 1_700_000_000_000_000_000_u64;
            let frames: Vec<RecordedFrame> = (0..400)
                .map(|_| {
                    let pause = PAUSES[random.below(PAUSES.len())];
                    unix_nanos = unix_nanos.checked_add_signed(pause).unwrap();
                    let port = u16::try_from(1 + random.below(ports)).unwrap();
                    let [host, victim] = [random.below(hosts), random.below(2)];
                    let [from, to] = if random.below(3) == 0 {
                        [format!("fd77::{host}"), format!("fd77::1:{victim}")]
                    } else {
                        [format!("192.0.2.{host}"), format!("198.51.100.{victim}")]
                    };
                    let [from, to] = [from, to].map(|address| address.parse().unwrap());
                    let mut frame = syn(BROADCAST, from, to, port);
                    // 4 kinds of SYN (with and without ECN and FIN), stealth probes, and
                    // non-probes.
                    let flags = [2, 2, 0xc2, 3, 1, 0, 0x29, 0xc0, 0x10, 0x12, 0x14, 0x18, 0x21];
                    with_flags(&mut frame, flags[random.below(flags.len())]);
                    RecordedFrame { unix_nanos, frame }
                })
                .collect();
            let file = lab.path(&format!("random-{hosts}-{ports}.pcap"));
            std::fs::write(&file, as_pcap(&frames)).unwrap();
            file
        })
        .collect();
    assert_equal_to_oracle(&lab, &files);
}

#[test]
fn compare_prints_one_column_per_threshold() {
    let lab = Lab::new();
    let file = two_concurrent_scans(&lab);
    let thresholds = [3, 5, 10];
    let found = thresholds.map(|ports| scans_in(&file, &Rule { ports, ..Rule::CLASSIC }));
    assert_eq!(found.each_ref().map(Vec::len), [2, 2, 1]);

    let compare = |more: &[&str]| {
        let mut command = lab.client("replay --compare 3,5,10 --config");
        let outcome = run(command.arg(lab.path("tcptracker.toml")).args(more).arg(&file));
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        outcome
    };
    let mut expected = String::new();
    for source in [ATTACKER.to_string(), BYSTANDER.to_owned()] {
        let cells = found.each_ref().map(|scans| {
            let scan = scans.iter().find(|scan| scan["source"] == *source);
            scan.map_or("-".to_owned(), |scan| format!("at probe {}", scan["probe"]))
        });
        expected.push_str(&format!("{source}\t{}\n", cells.join("\t")));
    }
    expected.push_str("blocked\t2\t2\t1\n");
    let Outcome { out, err: summary, .. } = compare(&[]);
    let probes = format!("{} probes", probes_in(&file).0);
    assert!(summary.contains(&probes) && summary.contains("3 thresholds"), "{summary}");
    assert_eq!(out, expected);
    // With several files, each row names its file.
    let of_file = |row: &str| format!("{}\t{row}\n", file.display());
    let twice: String = expected.lines().chain(expected.lines()).map(of_file).collect();
    assert_eq!(compare(&[file.to_str().unwrap()]).out, twice);

    let labelled = thresholds.into_iter().zip(found).flat_map(|(threshold, scans)| {
        scans.into_iter().map(move |mut scan| {
            scan["threshold"] = threshold.into();
            scan
        })
    });
    assert_eq!(lines(&compare(&["--json"]).out), labelled.collect::<Vec<_>>());
}

#[test]
fn all_formats_and_stdin_give_the_same_result() {
    let lab = Lab::new();
    let plain = two_concurrent_scans(&lab);
    let frames = frames_in(&plain);
    let packed = |bytes: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let [pcap, pcapng] = [std::fs::read(&plain).unwrap(), as_pcapng(&frames)];
    for (name, bytes) in [
        ("one.pcap.gz", packed(&pcap)),
        // Several gzip members, as `cat one.gz two.gz` produces.
        ("in-parts.pcap.gz", [packed(&pcap[..1000]), packed(&pcap[1000..])].concat()),
        ("one.pcapng", pcapng.clone()),
        ("one.pcapng.gz", packed(&pcapng)),
    ] {
        let file = lab.path(name);
        std::fs::write(&file, bytes).unwrap();
        let expected = |name: &str| scans(&frames, &Rule::CLASSIC, name);
        let mut command = replay(&lab, &Rule::CLASSIC);
        assert_eq!(
            lines(&run(command.arg(&file)).ok()),
            expected(file.to_str().unwrap()),
            "{name}"
        );
        let mut command = replay(&lab, &Rule::CLASSIC);
        let output = command.arg("-").stdin(File::open(&file).unwrap()).output().unwrap();
        assert!(output.status.success(), "{name}: {output:?}");
        let printed = String::from_utf8(output.stdout).unwrap();
        assert_eq!(lines(&printed), expected("-"), "{name} from standard input");
    }
    // Replay needs no privileges beyond reading the file.
    let mut command = lab.client_as_nobody("replay --json --config");
    let printed = run(command.arg(lab.path("tcptracker.toml")).arg(&plain)).ok();
    assert_eq!(lines(&printed), scans_in(&plain, &Rule::CLASSIC));
}

#[test]
fn local_option_makes_probes_outbound() {
    let lab = Lab::new();
    let two = two_concurrent_scans(&lab);
    let ipv6 = record(&lab, "ipv6.pcap", || lab.attacker.nmap("-sS -p 1-20", VICTIM_V6));
    let all: Vec<Value> =
        [&two, &ipv6].into_iter().flat_map(|file| scans_in(file, &Rule::CLASSIC)).collect();
    assert_eq!(all.len(), 3);
    for (local, others) in [
        (format!("--local {ATTACKER}"), &[BYSTANDER, "fd77::/64"][..]),
        (format!("--local {ATTACKER} --local {BYSTANDER}/32"), &["fd77::/64"]),
        ("--local 10.77.0.0/24".to_owned(), &["fd77::/64"]),
        (format!("--local {ATTACKER_V6}"), &[&ATTACKER.to_string(), BYSTANDER]),
        // IPv6 hosts on a local network are counted by address, not by prefix.
        (format!("--local {VICTIM_V6}"), &[&ATTACKER.to_string(), BYSTANDER, "fd77::1"]),
        ("--local 192.0.2.0/24".to_owned(), &[&ATTACKER.to_string(), BYSTANDER, "fd77::/64"]),
    ] {
        let mut command = replay(&lab, &Rule::CLASSIC);
        command.args(local.split(' ')).args([&two, &ipv6]);
        let mut sources: Vec<String> = lines(&run(&mut command).ok())
            .iter()
            .map(|scan| scan["source"].as_str().unwrap().to_owned())
            .collect();
        sources.sort();
        let mut others = others.to_vec();
        others.sort_unstable();
        assert_eq!(sources, others, "{local}");
    }
    let mut command = lab.client(&format!("replay --local {ATTACKER} --config"));
    let told = run(command.arg(lab.path("tcptracker.toml")).arg(&two)).err;
    let (all, own) = probes_in(&two);
    assert!(told.contains(&format!("{all} probes, {own} of them outbound in ")), "{told}");
}

#[test]
fn damaged_file_is_read_up_to_the_damage_and_reported() {
    let lab = Lab::new();
    let whole = two_concurrent_scans(&lab);
    let bytes = std::fs::read(&whole).unwrap();
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(&bytes).unwrap();
    let packed = encoder.finish().unwrap();
    let written = |name: &str, bytes: &[u8]| {
        let file = lab.path(name);
        std::fs::write(&file, bytes).unwrap();
        file
    };
    let replayed = |file: &Path| run(replay(&lab, &Rule::CLASSIC).arg(file));
    let assert_damaged = |outcome: &Outcome, file: &Path| {
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        let sentence = format!(
            "tcptracker: {} is damaged, and only what comes before that was read: ",
            file.display()
        );
        assert!(outcome.err.starts_with(&sentence), "{outcome:?}");
        assert_eq!(outcome.err.lines().count(), 1, "{outcome:?}");
    };

    // Cut within the last packet, within a packet header in the middle, and within that packet.
    let frames = frames_in(&whole);
    let before = |saved: &RecordedFrame| PACKET_HEADER + saved.frame.len();
    let middle = FILE_HEADER + frames[..frames.len() / 2].iter().map(before).sum::<usize>();
    for length in [bytes.len() - 5, middle + 1, middle + PACKET_HEADER + 1] {
        let file = written("cut.pcap", &bytes[..length]);
        let outcome = replayed(&file);
        assert_damaged(&outcome, &file);
        let expected = scans_in(&file, &Rule::CLASSIC);
        assert!(!expected.is_empty());
        assert_eq!(lines(&outcome.out), expected, "cut to {length}");
    }
    // The last bytes of a gzip file hold only the checksum, so all packets can be read.
    let file = written("cut.pcap.gz", &packed[..packed.len() - 5]);
    let outcome = replayed(&file);
    assert_damaged(&outcome, &file);
    let name = file.display().to_string();
    assert_eq!(lines(&outcome.out), scans(&frames_in(&whole), &Rule::CLASSIC, &name));

    let absent = lab.path("absent.pcap");
    for (file, sentence) in [
        (
            written("notes.txt", b"It was a dark and stormy night; the rain fell in torrents.\n"),
            " is not a capture file (pcap or pcapng, plain or gzip): ",
        ),
        (written("empty.pcap", b""), " is not a capture file (pcap or pcapng, plain or gzip): "),
        (absent, ": No such file or directory"),
    ] {
        let outcome = replayed(&file);
        assert_eq!((outcome.code, outcome.out.as_str()), (Some(1), ""), "{outcome:?}");
        assert_eq!(outcome.err.lines().count(), 1, "{outcome:?}");
        let told = format!("{}{sentence}", file.display());
        assert!(
            outcome.err.starts_with("tcptracker: ") && outcome.err.contains(&told),
            "{outcome:?}"
        );
        // An unreadable file does not prevent the replay of another one.
        let outcome = run(replay(&lab, &Rule::CLASSIC).args([&file, &whole]));
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        assert_eq!(lines(&outcome.out), scans_in(&whole, &Rule::CLASSIC));
    }
}

/// Replays a capture of `tests/e2e/captures`, or another one, with a preset and no configuration.
fn replayed(file: &Path, preset: &str) -> Outcome {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/captures").join(file);
    let options = ["replay", "--config", "/dev/null", "--preset", preset];
    let outcome = run(Command::new(BINARY).args(options).arg(file));
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    outcome
}

/// Every SYN is seen, whatever surrounds it, and whatever else the file contains.
#[test]
fn odd_captures_show_their_scans() {
    for (file, source) in [
        ("three-priority-tags.pcap", "198.51.100.7"),
        ("routing-header-240.pcap", "2001:db8:7::/64"),
        ("seventeen-headers.pcap", "2001:db8:7::/64"),
        ("two-linktypes.pcapng", "203.0.113.66"),
    ] {
        for preset in ["classic", "balanced"] {
            let Outcome { out, err, .. } = replayed(Path::new(file), preset);
            assert!(err.contains(": 6 packets, 6 probes in "), "{file}: {err}");
            assert_eq!(out.lines().count(), 1, "{file}: {out}");
            assert!(out.contains(&format!("\t{source}\tvertical\t")), "{file}: {out}");
        }
    }
}

#[test]
fn a_file_that_runs_backwards_is_judged_by_its_times() {
    let outcome = replayed(Path::new("out-of-order.pcap"), "classic");
    assert_eq!(outcome.out, "", "ports tried 300 s apart are no scan within 60 s");
    let warning = "out-of-order.pcap runs backwards: 3 packets are older than one before, the first is \
                   packet 2 and the largest step 5m; packets were judged in the order of their times\n";
    assert!(outcome.err.contains(warning), "{outcome:?}");
}

#[test]
fn a_frame_without_a_possible_time_is_named_once_and_not_judged() {
    let lab = Lab::new();
    let mut frames: Vec<RecordedFrame> = (1..=8)
        .map(|port| RecordedFrame {
            unix_nanos: 1_700_000_000_000_000_000,
            frame: syn(BROADCAST, ATTACKER, VICTIM, port),
        })
        .collect();
    // In nanoseconds, these times are after 2262.
    for impossible in [2, 3, 5, 6, 7] {
        frames[impossible].unix_nanos = u64::MAX - 7;
    }
    let file = lab.path("times.pcapng");
    std::fs::write(&file, as_pcapng(&frames)).unwrap();
    let Outcome { out, err, .. } = replayed(&file, "classic");
    assert_eq!(out, "", "three ports with a time are no scan");
    let warning =
        "times.pcapng: packet 3 and 4 more have no time between 1970 and 2262 and did not count\n";
    assert_eq!(err.matches(" no time between ").count(), 1, "{err}");
    assert!(err.contains(warning), "{err}");
    assert!(
        err.contains(": 8 packets, 3 probes") && err.contains("5 without a usable time"),
        "{err}"
    );
}

/// People must learn why a capture shows nothing.
#[test]
fn replay_says_why_packets_gave_no_probe() {
    let Outcome { out, err, .. } = replayed(Path::new("snap40.pcap"), "classic");
    assert_eq!(out, "");
    assert!(err.contains("; no probe in 6 packets: 6 cut before the TCP flags\n"), "{err}");

    let lab = Lab::new();
    let inner = syn(BROADCAST, ATTACKER, VICTIM, 1);
    let outer = |protocol: u8, header: &[u8]| {
        let length = u16::try_from(20 + header.len() + inner.len()).unwrap().to_be_bytes();
        let mut frame = inner[..ETHERNET_HEADER].to_vec();
        frame.extend([0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, protocol, 0, 0]);
        frame.extend([192, 0, 2, 1, 192, 0, 2, 2]);
        [&frame, header, &inner].concat()
    };
    let vxlan = [0xc0, 0, 0x12, 0xb5, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 7, 0];
    let over_mpls = [&inner[..12], &[0x88, 0x47, 0, 1, 1, 64, 0, 0, 0, 0], &inner].concat();
    let mut answer = inner.clone();
    with_flags(&mut answer, 0x12);
    let arp = [&inner[..12], &[8, 6], &[0; 28]].concat();
    let frames = [
        outer(17, &vxlan),
        outer(17, &vxlan),
        outer(47, &[0, 0, 0x65, 0x58]),
        over_mpls,
        answer,
        arp,
        inner.clone(),
    ];
    let recorded: Vec<RecordedFrame> =
        frames.map(|frame| RecordedFrame { unix_nanos: 1_700_000_000_000_000_000, frame }).into();
    let file = lab.path("tunnels.pcap");
    std::fs::write(&file, as_pcap(&recorded)).unwrap();
    for preset in ["classic", "balanced"] {
        let err = replayed(&file, preset).err;
        let expected = "; no probe in 6 packets: 1 inside a tunnel (EoMPLS), 1 inside a tunnel (GRE), \
                        2 inside a tunnel (VXLAN), 1 other TCP segment, 1 not TCP";
        assert!(err.contains(": 7 packets, 1 probe in ") && err.contains(expected), "{err}");
    }
}
