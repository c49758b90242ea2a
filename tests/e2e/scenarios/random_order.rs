//! Instances that come, go, crash and come back in any order, and leave each other alone.
//!
//! A model of what every instance ought to have in the kernel is held against the kernel after each
//! step, and against real packets after some. `TCPTRACKER_SEED` repeats a run that failed.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::Signal;

use crate::kernel::Rules;
use crate::lab::{Lab, OPEN_PORT, VICTIM};
use crate::service::{Service, Start};
use crate::tools::{Random, await_that, install_script, run};

const STEPS: usize = 60;
const INTERFACES: [&str; 3] = ["eth0", "eth1", "eth2"];

/// Whether connections get through is looked at after every so many steps: each that does not takes a
/// second and a half to tell.
const PACKETS_EVERY: usize = 6;

/// An instance, and what it has in the kernel: also when it is dead, until its next start.
struct Instance {
    interface: &'static str,
    /// One of the attacker's addresses, which no other instance blocks.
    attacker: String,
    start: Start,
    running: Option<Service>,
    /// Its rule and its sets are there.
    is_installed: bool,
    blocked: BTreeSet<String>,
}

impl Instance {
    fn start(&mut self, lab: &Lab) -> bool {
        let is_new = self.running.is_none();
        if is_new {
            self.running = Some(self.start.begin(lab));
        }
        is_new
    }

    fn await_ready(&mut self) {
        self.running = self.running.take().map(Service::await_ready);
        self.is_installed = true;
    }

    /// Ends it, if it runs. What was blocked is blocked again by the next start.
    fn end_by(&mut self, signal: Signal) {
        if let Some(mut service) = self.running.take() {
            let status = service.end_by(signal);
            let in_order = signal == Signal::TERM;
            assert_eq!(status.code(), in_order.then_some(0), "{}", self.interface);
            self.is_installed = !in_order;
        }
    }

    /// Starts it, and kills it after so many calls of iptables.
    fn crash_while_starting(&mut self, lab: &Lab, calls: usize) {
        let shim = lab.path("shim");
        std::fs::create_dir_all(&shim).unwrap();
        // The last call is carried out as well, though nobody waits for it any more.
        let (count, over) = (shim.join("count"), shim.join("over"));
        let script = format!(
            "#!/bin/sh\necho >>{count}\nPATH=${{PATH#*:}}\n\
             [ $(wc -l <{count}) -gt {calls} ] || exec $(basename $0) \"$@\"\n\
             kill -KILL $PPID\n$(basename $0) \"$@\"\n>{over}\n",
            count = count.display(),
            over = over.display()
        );
        std::fs::write(&count, "").unwrap();
        let _ = std::fs::remove_file(&over);
        for family in ["iptables", "ip6tables"] {
            for program in ["", "-nft-save", "-nft-restore"] {
                install_script(&shim.join(format!("{family}{program}")), &script);
            }
        }
        let path = format!("{}:{}", shim.display(), std::env::var("PATH").unwrap());
        let mut service = self.start.clone().env("PATH", &path).begin(lab);
        assert_eq!(service.await_end().code(), None, "it did not crash");
        await_that("its last call of iptables is over", || over.exists());
    }
}

#[test]
fn instances_in_any_order_leave_each_other_alone() {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = std::env::var("TCPTRACKER_SEED").map_or_else(
        |_| u64::try_from(since_1970.as_nanos() & u128::from(u32::MAX)).unwrap(),
        |seed| seed.parse().unwrap(),
    );
    println!("TCPTRACKER_SEED={seed}");
    let mut random = Random::seeded(seed);
    let lab = Lab::new();
    lab.link(1);
    lab.link(2);
    let mut number = 0;
    let mut instances = INTERFACES.map(|interface| {
        number += 1;
        let attacker = format!("10.77.0.1{number}");
        lab.attacker.ip(&format!("addr add {attacker}/24 dev eth0"));
        let start = Start::on(interface).env("TCPTRACKER_METRICS__LISTEN", "off");
        let blocked = BTreeSet::new();
        Instance { interface, attacker, start, running: None, is_installed: false, blocked }
    });
    for step in 1..=STEPS {
        let one = &mut instances[random.below(INTERFACES.len())];
        let what = match random.below(11) {
            0..=2 => {
                if one.start(&lab) {
                    one.await_ready();
                }
                format!("start {}", one.interface)
            }
            3 => {
                one.end_by(Signal::TERM);
                format!("stop {}", one.interface)
            }
            4 | 5 => {
                one.end_by(Signal::KILL);
                format!("kill {}", one.interface)
            }
            6 => {
                one.end_by(Signal::TERM);
                one.start(&lab);
                one.await_ready();
                format!("restart {}", one.interface)
            }
            7 => {
                one.end_by(Signal::KILL);
                one.crash_while_starting(&lab, random.below(6));
                one.start(&lab);
                one.await_ready();
                format!("start {}, which crashes, and again", one.interface)
            }
            8 | 9 => {
                // The attacker, or somebody of whom only the kernel knows.
                let address = match random.below(3) {
                    0 => one.attacker.clone(),
                    1 => format!("198.51.100.{}", random.below(256)),
                    _ => format!("2001:db8::{}", 1 + random.below(9)),
                };
                change(&lab, one, &address);
                format!("{} blocks or lets in {address}", one.interface)
            }
            _ => {
                at_once(&lab, &mut instances, &mut random);
                "all at once".to_owned()
            }
        };
        println!("{step}: {what}");
        assert_as_expected(&lab, &mut instances);
        if step.is_multiple_of(PACKETS_EVERY) {
            assert_packets(&lab, &instances);
        }
    }
    // Also what the dead have left goes with the next stop in order.
    for instance in &mut instances {
        if instance.start(&lab) {
            instance.await_ready();
        }
    }
    assert_as_expected(&lab, &mut instances);
    assert_packets(&lab, &instances);
    for instance in &mut instances {
        instance.end_by(Signal::TERM);
    }
    lab.assert_untouched();
}

/// Blocks an address, or lets it in if it is blocked.
fn change(lab: &Lab, instance: &mut Instance, address: &str) {
    if instance.running.is_none() {
        return;
    }
    if instance.blocked.remove(address) {
        lab.bus.call(instance.interface, &["Unblock", "s", address]).ok();
    } else {
        lab.bus.call(instance.interface, &["Block", "sts", address, "0", "by chance"]).ok();
        instance.blocked.insert(address.to_owned());
    }
}

/// Whoever runs stops or is killed, whoever does not starts: each with an even chance, and all of them
/// at the same moment.
fn at_once(lab: &Lab, instances: &mut [Instance], random: &mut Random) {
    let mut begun = Vec::new();
    let mut ending = Vec::new();
    for (at, instance) in instances.iter_mut().enumerate() {
        if random.below(2) == 0 {
            continue;
        }
        let Some(service) = &instance.running else {
            instance.start(lab);
            begun.push(at);
            continue;
        };
        let signal = if random.below(3) == 0 { Signal::KILL } else { Signal::TERM };
        service.signal(signal);
        ending.push((at, signal));
    }
    for (at, signal) in ending {
        let instance = &mut instances[at];
        let status = instance.running.take().unwrap().await_end();
        assert_eq!(status.code(), (signal == Signal::TERM).then_some(0), "{}", instance.interface);
        instance.is_installed = signal == Signal::KILL;
    }
    for at in begun {
        instances[at].await_ready();
    }
}

/// Hooks, chain, rules and sets are those of the instances that are there, and nothing else has changed.
#[track_caller]
fn assert_as_expected(lab: &Lab, instances: &mut [Instance]) {
    let rules = Rules::of(&lab.victim);
    let there: BTreeSet<&str> =
        instances.iter().filter(|i| i.is_installed).map(|i| i.interface).collect();
    if there.is_empty() {
        lab.assert_untouched();
        return;
    }
    // In whatever order they came.
    let order: Vec<&str> = rules.chain("tcptracker")[0]
        .iter()
        .filter_map(|rule| rule.split("tcptracker@").nth(1)?.split('"').next())
        .collect();
    assert_eq!(order.iter().copied().collect::<BTreeSet<_>>(), there, "{rules:#?}");
    for (family, version) in [(0, "v4"), (1, "v6")] {
        let rules = &rules.chain("tcptracker")[family];
        assert_eq!(rules.len(), there.len(), "{version}: {rules:#?}");
    }
    for interface in &there {
        rules.assert_has_rule_of(interface);
    }
    rules.assert_hooked();
    let others: Vec<&str> = rules.sets.lines().filter_map(|l| l.strip_prefix("Name: ")).collect();
    assert_eq!(others.len(), 2 * there.len(), "{others:?}");

    for instance in instances {
        let in_kernel = if instance.is_installed {
            let set =
                |version| elements(lab, &format!("tcptracker-{}-{version}", instance.interface));
            set("v4").into_iter().chain(set("v6")).collect()
        } else {
            BTreeSet::new()
        };
        let expected =
            if instance.is_installed { instance.blocked.clone() } else { BTreeSet::new() };
        assert_eq!(in_kernel, expected, "{}", instance.interface);
        if instance.running.is_some() {
            let listed = lab.bus.list_on(instance.interface).into_iter().map(|block| block.0);
            assert_eq!(listed.collect::<BTreeSet<_>>(), instance.blocked, "{}", instance.interface);
        }
    }
}

/// Each attacker gets through just as long as no instance that is there blocks it.
#[track_caller]
fn assert_packets(lab: &Lab, instances: &[Instance]) {
    for instance in instances {
        lab.attacker.ip(&format!("route replace {VICTIM} dev eth0 src {}", instance.attacker));
        if instance.is_installed && instance.blocked.contains(&instance.attacker) {
            lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
        } else {
            lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
        }
    }
}

fn elements(lab: &Lab, set: &str) -> Vec<String> {
    let listed = run(lab.victim.command("ipset").args(["list", set])).ok();
    let (_, members) = listed.split_once("Members:\n").unwrap();
    members.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}
