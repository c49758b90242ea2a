//! Instances that start, stop and crash in random order without affecting each other.
//!
//! After each step the test compares a model of the expected kernel state with the kernel, and
//! after some steps with real packets. `TCPTRACKER_SEED` repeats a failed run.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::Signal;

use crate::kernel::Rules;
use crate::lab::{Lab, OPEN_PORT, VICTIM};
use crate::service::{Service, Start};
use crate::tools::{Random, await_that, install_script, run};

const STEPS: usize = 60;
const INTERFACES: [&str; 3] = ["eth0", "eth1", "eth2"];

/// Steps between two checks with real packets: each blocked connection costs 1.5 s.
const PACKETS_EVERY: usize = 6;

/// An instance and its kernel state, which remains after a crash until the next start.
struct Instance {
    interface: &'static str,
    /// One of the attacker's addresses; no other instance blocks it.
    attacker: String,
    start: Start,
    running: Option<Service>,
    /// Its rule and its sets are in the kernel.
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

    /// Ends the instance if it runs. The next start restores its blocks.
    fn end_by(&mut self, signal: Signal) {
        if let Some(mut service) = self.running.take() {
            let status = service.end_by(signal);
            let is_orderly = signal == Signal::TERM;
            assert_eq!(status.code(), is_orderly.then_some(0), "{}", self.interface);
            self.is_installed = !is_orderly;
        }
    }

    /// Starts the instance and kills it after `calls` calls of iptables.
    fn crash_while_starting(&mut self, lab: &Lab, calls: usize) {
        let shim = lab.path("shim");
        std::fs::create_dir_all(&shim).unwrap();
        // The last call still runs, although its caller is dead.
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
        assert_eq!(service.await_end().code(), None, "the instance did not crash");
        await_that("the last call of iptables has finished", || over.exists());
    }
}

#[test]
fn random_starts_stops_and_crashes_keep_the_rules_consistent() {
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
                format!("start {}, crash it, and start it again", one.interface)
            }
            8 | 9 => {
                // The attacker, or an address that sends no packets.
                let address = match random.below(3) {
                    0 => one.attacker.clone(),
                    1 => format!("198.51.100.{}", random.below(256)),
                    _ => format!("2001:db8::{}", 1 + random.below(9)),
                };
                toggle_block(&lab, one, &address);
                format!("{} blocks or unblocks {address}", one.interface)
            }
            _ => {
                change_all_at_once(&lab, &mut instances, &mut random);
                "all at once".to_owned()
            }
        };
        println!("{step}: {what}");
        assert_model(&lab, &mut instances);
        if step.is_multiple_of(PACKETS_EVERY) {
            assert_packets(&lab, &instances);
        }
    }
    // A start and an orderly stop also remove the remains of crashed instances.
    for instance in &mut instances {
        if instance.start(&lab) {
            instance.await_ready();
        }
    }
    assert_model(&lab, &mut instances);
    assert_packets(&lab, &instances);
    for instance in &mut instances {
        instance.end_by(Signal::TERM);
    }
    lab.assert_untouched();
}

/// Blocks an address, or unblocks it if it is blocked.
fn toggle_block(lab: &Lab, instance: &mut Instance, address: &str) {
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

/// Stops, kills or starts each instance with a probability of one half, all at the same moment.
fn change_all_at_once(lab: &Lab, instances: &mut [Instance], random: &mut Random) {
    let mut starting = Vec::new();
    let mut stopping = Vec::new();
    for (at, instance) in instances.iter_mut().enumerate() {
        if random.below(2) == 0 {
            continue;
        }
        let Some(service) = &instance.running else {
            instance.start(lab);
            starting.push(at);
            continue;
        };
        let signal = if random.below(3) == 0 { Signal::KILL } else { Signal::TERM };
        service.signal(signal);
        stopping.push((at, signal));
    }
    for (at, signal) in stopping {
        let instance = &mut instances[at];
        let status = instance.running.take().unwrap().await_end();
        assert_eq!(status.code(), (signal == Signal::TERM).then_some(0), "{}", instance.interface);
        instance.is_installed = signal == Signal::KILL;
    }
    for at in starting {
        instances[at].await_ready();
    }
}

/// Asserts that hooks, chain, rules and sets match the installed instances, and that nothing else
/// changed.
#[track_caller]
fn assert_model(lab: &Lab, instances: &mut [Instance]) {
    let rules = Rules::of(&lab.victim);
    let installed: BTreeSet<&str> =
        instances.iter().filter(|i| i.is_installed).map(|i| i.interface).collect();
    if installed.is_empty() {
        lab.assert_untouched();
        return;
    }
    // The order of the rules depends on the order of the starts.
    let order: Vec<&str> = rules.chain("tcptracker")[0]
        .iter()
        .filter_map(|rule| rule.split("tcptracker@").nth(1)?.split('"').next())
        .collect();
    assert_eq!(order.iter().copied().collect::<BTreeSet<_>>(), installed, "{rules:#?}");
    for (family, version) in [(0, "v4"), (1, "v6")] {
        let rules = &rules.chain("tcptracker")[family];
        assert_eq!(rules.len(), installed.len(), "{version}: {rules:#?}");
    }
    for interface in &installed {
        rules.assert_has_rule_of(interface);
    }
    rules.assert_hooked();
    let others: Vec<&str> = rules.sets.lines().filter_map(|l| l.strip_prefix("Name: ")).collect();
    assert_eq!(others.len(), 2 * installed.len(), "{others:?}");

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

/// Asserts that each attacker is dropped exactly if an installed instance blocks it.
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
