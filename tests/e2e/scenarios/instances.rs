//! Several instances on one host.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use rustix::process::Signal;

use crate::kernel::Rules;
use crate::lab::{ATTACKER, ATTACKER_ON_ETH1, Lab, OPEN_PORT, VICTIM, VICTIM_ON_ETH1};
use crate::service::{Service, Start};

#[test]
fn instances_share_the_chain_and_change_only_their_own_rules() {
    let lab = Lab::new();
    let [mut first, mut second] = lab.start_on_two_links();
    Rules::of(&lab.victim).assert_enforced_for(&["eth0", "eth1"]);

    lab.attacker.nmap("-sS -p 1-10", VICTIM_ON_ETH1);
    second.await_line(&format!("WARN blocked {ATTACKER_ON_ETH1}"));
    assert_eq!(lab.bus.list_on("eth0"), [], "the scan was on the other interface");
    assert_eq!(lab.bus.list_on("eth1").len(), 1);
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    first.await_line(&format!("WARN blocked {ATTACKER}"));
    assert_eq!(lab.bus.list_on("eth1").len(), 1);

    assert_eq!(first.stop().code(), Some(0));
    let rules = Rules::of(&lab.victim);
    rules.assert_enforced_for(&["eth1"]);
    assert!(!rules.sets.contains("tcptracker-eth0"), "{}", rules.sets);
    lab.attacker.assert_cannot_reach(VICTIM_ON_ETH1, OPEN_PORT);
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);

    // The last instance to stop cleans up, whether it started first or second.
    let mut first = lab.start();
    Rules::of(&lab.victim).assert_enforced_for(&["eth1", "eth0"]);
    assert_eq!(second.stop().code(), Some(0));
    Rules::of(&lab.victim).assert_enforced_for(&["eth0"]);
    assert_eq!(first.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn second_instance_on_an_interface_refuses_to_start() {
    let lab = Lab::new();
    let mut first = lab.start();
    lab.bus.call("eth0", &["Block", "sts", "10.77.0.1", "0", "stays"]).ok();
    let rules = Rules::of(&lab.victim);
    let owner = lab.bus.list();

    let second = lab.run_service(&Start::on("eth0"));
    assert_eq!(second.code, Some(1), "{second:?}");
    assert_eq!(
        second.err,
        "tcptracker: another tcptracker is running on eth0; stop it first: \
         systemctl stop tcptracker@eth0\n"
    );

    assert_eq!(lab.bus.list(), owner);
    let now = Rules::of(&lab.victim);
    assert_eq!((now.ipv4, now.ipv6), (rules.ipv4, rules.ipv6));
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    assert_eq!(first.stop().code(), Some(0));
    lab.assert_untouched();
}

/// As on a host that boots or shuts down with several enabled instances.
#[test]
fn concurrent_starts_and_stops_keep_all_rules_consistent() {
    let lab = Lab::new();
    lab.second_link();
    let starts =
        [Start::on("eth0"), Start::on("eth1").env("TCPTRACKER_METRICS__LISTEN", "127.0.0.1:8082")];
    for round in 1..=4 {
        let mut services =
            starts.each_ref().map(|start| start.begin(&lab)).map(Service::await_ready);
        let rules = Rules::of(&lab.victim);
        for chain in rules.chain("tcptracker") {
            assert_eq!(chain.len(), 2, "round {round}: {rules:#?}");
        }
        for service in &services {
            service.signal(Signal::TERM);
        }
        for service in &mut services {
            assert_eq!(service.await_end().code(), Some(0), "round {round}");
        }
        lab.assert_untouched();
    }
}

#[test]
fn instance_without_bus_refuses_to_start_beside_one_with_bus() {
    let lab = Lab::new();
    let mut first = lab.start();
    lab.bus.call("eth0", &["Block", "sts", "10.77.0.1", "0", "stays"]).ok();
    let second = Start::on("eth0").env("TCPTRACKER_BUS__ENABLED", "false");
    // A limit, in case it starts after all.
    let second = lab.run_service(&second.through(["timeout", "--foreground", "60"]));
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(second.err.contains("another tcptracker is running on eth0"), "{second:?}");
    Rules::of(&lab.victim).assert_enforced_for(&["eth0"]);
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    assert_eq!(first.stop().code(), Some(0));
    lab.assert_untouched();
}

/// Any local user can bind the abstract sockets that instances use as locks.
#[test]
fn foreign_lock_holder_does_not_prevent_start() {
    let lab = Lab::new();
    for listening in ["s", "s.listen()", "s.listen(0), fill(n)"] {
        let script = format!(
            "import itertools, socket, sys\n\
             def fill(name):\n\
             \x20   for kept in itertools.count():\n\
             \x20       c = socket.socket(socket.AF_UNIX); c.setblocking(False); all.append(c)\n\
             \x20       try: c.connect(name)\n\
             \x20       except BlockingIOError: return\n\
             all = []\n\
             for n in ['\\0tcptracker@eth0', '\\0tcptracker-rules']:\n\
             \x20   s = socket.socket(socket.AF_UNIX); s.bind(n); all.append(s)\n\
             \x20   {listening}\n\
             print('held', flush=True)\n\
             sys.stdin.read()\n"
        );
        let mut holder = lab.victim.command("setpriv");
        holder.args(["--reuid=65534", "--clear-groups", "/usr/bin/python3", "-c", &script]);
        let mut holder = holder.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut first_line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut first_line).unwrap();
        assert_eq!(first_line, "held\n");

        let mut service = lab.start();
        service.await_line(
            "another process of nobody (uid 65534) owns the lock socket @tcptracker@eth0",
        );
        let attacker = ATTACKER.to_string();
        lab.bus.call("eth0", &["Block", "sts", &attacker, "0", "lock held"]).ok();
        lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
        drop(holder.stdin.take());
        holder.wait().unwrap();
        // The name is free now, but the instance still has its lock.
        let second = Start::on("eth0").env("TCPTRACKER_BUS__ENABLED", "false");
        let second = lab.run_service(&second.through(["timeout", "--foreground", "60"]));
        assert_eq!(second.code, Some(1), "{second:?}");
        assert!(second.err.contains("another tcptracker is running on eth0"), "{second:?}");
        assert_eq!(service.stop().code(), Some(0));
        lab.assert_untouched();
    }
}
