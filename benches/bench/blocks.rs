//! The cost of a block: for adding it, and for packets of other sources.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use ipnet::IpNet;
use tcptracker::internals::{Backend, IpsetBackend};

use crate::lab::Lab;
use crate::{load, median, row};

const HOUR: Duration = Duration::from_secs(3600);

/// Existing blocks.
const SIZES: [u32; 4] = [0, 1_000, 10_000, 100_000];

/// Blocks measured at each size.
const MEASURED: u32 = 1_000;

/// Rules of the reference chain.
const RULES: u32 = 10_000;

fn blocked(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x1400_0000 + number)
}

fn network(number: u32) -> IpNet {
    IpAddr::from(blocked(number)).into()
}

fn connect() -> IpsetBackend {
    let interface = "eth0".parse().unwrap();
    let mut sets = IpsetBackend::connect(&interface).unwrap();
    sets.install().unwrap();
    sets
}

fn fill(sets: &mut IpsetBackend, count: u32) {
    let all: Vec<_> = (0..count).map(|number| (network(number), HOUR)).collect();
    assert!(sets.block_all(&all).is_empty());
}

/// Runs in a namespace: prints the nanoseconds per block at each size, and those of `append_unique`
/// of the crate iptables at 1,000 rules.
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
    program.new_chain("filter", "reference").unwrap();
    restore("reference", 1_000);
    let appends = (0..9).map(|number| {
        let rule = format!("-s {} -j DROP", blocked(1_000 + number));
        let begun = Instant::now();
        program.append_unique("filter", "reference", &rule).unwrap();
        begun.elapsed().as_nanos() as f64
    });
    let append = median(appends.collect());
    let all: Vec<String> =
        costs.into_iter().map(median).chain([append]).map(|cost| cost.to_string()).collect();
    println!("{}", all.join(" "));
}

/// Appends a rule per address to a chain.
fn restore(chain: &str, count: u32) {
    let rule = |number| format!("-A {chain} -s {} -j DROP\n", blocked(number));
    let rules: String = (0..count).map(rule).collect();
    let mut restore = Command::new("iptables-restore");
    let mut child = restore.arg("--noflush").stdin(Stdio::piped()).spawn().unwrap();
    let script = format!("*filter\n{rules}COMMIT\n");
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

/// Runs in a namespace: creates sets with `count` elements, or a chain of `count` rules.
pub(crate) fn set_up(what: &str, count: &str) {
    let count = count.parse().unwrap();
    if what == "set" {
        fill(&mut connect(), count);
        let rule = "-p tcp -m tcp --tcp-flags RST,ACK NONE -m set --match-set tcptracker-eth0-v4 \
                    src -j DROP";
        iptables::new(false).unwrap().insert("filter", "INPUT", rule, 1).unwrap();
    } else {
        let program = iptables::new(false).unwrap();
        program.new_chain("filter", "reference").unwrap();
        restore("reference", count);
        program.insert("filter", "INPUT", "-j reference", 1).unwrap();
    }
}

/// Runs in a namespace: sends the same SYN repeatedly at full speed. Over a veth, the receiver
/// limits the speed. Prints the nanoseconds per SYN.
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

/// Measures the cost of adding a block.
pub(crate) fn add() {
    let lab = Lab::new();
    let output = lab.defend(&["block-costs"]);
    let costs: Vec<f64> = output.split_whitespace().map(|word| word.parse().unwrap()).collect();
    for (size, cost) in SIZES.iter().zip(&costs) {
        row(
            &format!("block: via netlink, at {size} elements; reference: at 0"),
            &format!("{:.1} us", cost / 1e3),
            &format!("{:.1} us", costs[0] / 1e3),
            Some(cost / costs[0]),
            "flat within 2",
        );
    }
    let (at_1k, append) = (costs[1], costs[4]);
    row(
        "block: at 1,000; reference: append_unique of crate iptables",
        &format!("{:.1} us", at_1k / 1e3),
        &format!("{:.1} ms", append / 1e6),
        Some(append / at_1k),
        "at least 100 times cheaper",
    );
}

/// Measures the cost of blocks for a bystander's packet.
pub(crate) fn bystander() {
    let setups: [(&str, u32, u32); 3] =
        [("set", 0, 100_000), ("set", 100_000, 100_000), ("rules", RULES, 2_000)];
    let mut costs = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..5 {
        for ((what, count, packets), costs) in setups.iter().zip(&mut costs) {
            let lab = Lab::new();
            lab.neighbour("10.78.9.9");
            lab.defend(&["set-up", what, &count.to_string()]);
            let output = lab.attack(&["pass", "ve0", &packets.to_string()]);
            let seen = lab.seen_by_input();
            assert!(seen >= u64::from(*packets), "only {seen} of {packets} packets reached INPUT");
            costs.push(output.trim().parse::<f64>().unwrap());
        }
    }
    let [none, many, rules] = costs.map(median);
    row(
        "bystander: a packet, 100,000 blocked; reference: none",
        &format!("{:.2} us", many / 1e3),
        &format!("{:.2} us", none / 1e3),
        Some(many / none),
        "the same within noise",
    );
    row(
        "bystander: a packet, 100,000 blocked; reference: 10,000 rules",
        &format!("{:.2} us", many / 1e3),
        &format!("{:.0} us", rules / 1e3),
        Some(rules / many),
        "-",
    );
}
