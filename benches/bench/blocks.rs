//! What a block costs: to make, and for those who are not blocked.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use ipnet::IpNet;
use tcptracker::internals::{Backend, IpsetBackend};
use tcptracker::internals::{Established, FirewallConfig};

use crate::lab::Lab;
use crate::{load, median, row};

const HOUR: Duration = Duration::from_secs(3600);

/// How many are blocked already.
const SIZES: [u32; 4] = [0, 1_000, 10_000, 100_000];

/// Blocks measured at each size.
const MEASURED: u32 = 1_000;

/// Rules of the chain that stands beside.
const RULES: u32 = 10_000;

fn blocked(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x1400_0000 + number)
}

fn network(number: u32) -> IpNet {
    IpAddr::from(blocked(number)).into()
}

fn connect() -> IpsetBackend {
    let interface = "eth0".parse().unwrap();
    let mut sets =
        IpsetBackend::connect(&interface, &FirewallConfig::default(), Established::Keep).unwrap();
    sets.install().unwrap();
    sets
}

fn fill(sets: &mut IpsetBackend, count: u32) {
    let all: Vec<_> = (0..count).map(|number| (network(number), HOUR)).collect();
    assert!(sets.block_all(&all).is_empty());
}

/// In a namespace of its own: prints the nanoseconds a block takes at each size, and `append_unique` of
/// the crate iptables at 1,000 rules.
pub(crate) fn costs() {
    let mut sets = connect();
    let mut costs = SIZES.map(|_| Vec::new());
    for _ in 0..5 {
        for (size, costs) in SIZES.into_iter().zip(&mut costs) {
            fill(&mut sets, size);
            let begun = Instant::now();
            for number in 0..MEASURED {
                sets.block(network(size + number), HOUR).unwrap();
            }
            costs.push(begun.elapsed().as_nanos() as f64 / f64::from(MEASURED));
            for number in 0..size + MEASURED {
                sets.unblock(network(number)).unwrap();
            }
        }
    }
    sets.remove().unwrap();
    let program = iptables::new(false).unwrap();
    program.new_chain("filter", "beside").unwrap();
    restore("beside", 1_000);
    let appends = (0..9).map(|number| {
        let rule = format!("-s {} -j DROP", blocked(1_000 + number));
        let begun = Instant::now();
        program.append_unique("filter", "beside", &rule).unwrap();
        begun.elapsed().as_nanos() as f64
    });
    let append = median(appends.collect());
    let all: Vec<String> =
        costs.into_iter().map(median).chain([append]).map(|cost| cost.to_string()).collect();
    println!("{}", all.join(" "));
}

/// A rule per address, appended to a chain.
fn restore(chain: &str, count: u32) {
    let rule = |number| format!("-A {chain} -s {} -j DROP\n", blocked(number));
    let rules: String = (0..count).map(rule).collect();
    let mut restore = Command::new("iptables-restore");
    let mut child = restore.arg("--noflush").stdin(Stdio::piped()).spawn().unwrap();
    let script = format!("*filter\n{rules}COMMIT\n");
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

/// In a namespace of its own: puts up sets with so many elements, or a chain of so many rules.
pub(crate) fn put_up(what: &str, count: &str) {
    let count = count.parse().unwrap();
    if what == "set" {
        fill(&mut connect(), count);
    } else {
        let program = iptables::new(false).unwrap();
        program.new_chain("filter", "beside").unwrap();
        restore("beside", count);
        program.insert("filter", "INPUT", "-j beside", 1).unwrap();
    }
}

/// In a namespace of its own: sends the same SYN over and over, as fast as it goes, which over a veth is
/// as fast as the other end takes them. Prints the nanoseconds each took.
pub(crate) fn pass(interface: &str, count: &str) {
    let count: u32 = count.parse().unwrap();
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4([10, 78, 9, 9], [10, 78, 0, 2], 64)
        .tcp(40_000, 80, 1, 64_240)
        .syn();
    let mut frame = Vec::new();
    builder.write(&mut frame, &[]).unwrap();
    let mut socket = load::open(interface);
    let begun = Instant::now();
    for _ in 0..count {
        socket.sendpacket(&frame[..]).unwrap();
    }
    println!("{}", begun.elapsed().as_nanos() as f64 / f64::from(count));
}

/// What a block costs to make.
pub(crate) fn make() {
    let lab = Lab::new();
    let said = lab.defend(&["block-costs"]);
    let costs: Vec<f64> = said.split_whitespace().map(|word| word.parse().unwrap()).collect();
    for (size, cost) in SIZES.iter().zip(&costs) {
        row(
            &format!("block: by netlink, at {size} elements; beside at 0"),
            &format!("{:.1} us", cost / 1e3),
            &format!("{:.1} us", costs[0] / 1e3),
            Some(cost / costs[0]),
            "flat within 2",
        );
    }
    let (at_1k, append) = (costs[1], costs[4]);
    row(
        "block: at 1,000; beside append_unique of the crate iptables",
        &format!("{:.1} us", at_1k / 1e3),
        &format!("{:.1} ms", append / 1e6),
        Some(append / at_1k),
        "at least 100 times cheaper",
    );
}

/// What blocks cost a bystander's packet.
pub(crate) fn bystander() {
    let setups: [(&str, u32, u32); 3] =
        [("set", 0, 100_000), ("set", 100_000, 100_000), ("rules", RULES, 2_000)];
    let mut costs = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..5 {
        for ((what, count, packets), costs) in setups.iter().zip(&mut costs) {
            let lab = Lab::new();
            lab.neighbour("10.78.9.9");
            lab.defend(&["put-up", what, &count.to_string()]);
            let said = lab.attack(&["pass", "ve0", &packets.to_string()]);
            let seen = lab.seen_by_input();
            assert!(seen >= u64::from(*packets), "only {seen} of {packets} came to INPUT");
            costs.push(said.trim().parse::<f64>().unwrap());
        }
    }
    let [none, many, rules] = costs.map(median);
    row(
        "bystander: a packet, 100,000 blocked; beside none blocked",
        &format!("{:.2} us", many / 1e3),
        &format!("{:.2} us", none / 1e3),
        Some(many / none),
        "as without, within noise",
    );
    row(
        "bystander: a packet, 100,000 blocked; beside 10,000 rules",
        &format!("{:.2} us", many / 1e3),
        &format!("{:.0} us", rules / 1e3),
        Some(rules / many),
        "-",
    );
}
