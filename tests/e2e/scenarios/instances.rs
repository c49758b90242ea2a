//! Several instances on one host.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use rustix::process::Signal;

use crate::kernel::Rules;
use crate::lab::{ATTACKER, ATTACKER_ON_ETH1, Lab, OPEN_PORT, VICTIM, VICTIM_ON_ETH1};
use crate::service::{Service, Start};

#[test]
fn two_interfaces_share_the_chain_and_leave_each_other_alone() {
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

    // The other way round: who stops last cleans up, whoever came first.
    let mut first = lab.start();
    Rules::of(&lab.victim).assert_enforced_for(&["eth1", "eth0"]);
    assert_eq!(second.stop().code(), Some(0));
    Rules::of(&lab.victim).assert_enforced_for(&["eth0"]);
    assert_eq!(first.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn a_second_instance_on_the_same_interface_gives_way() {
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

/// A host that boots, or shuts down, with several of them.
#[test]
fn instances_that_come_and_go_at_once_leave_each_other_and_others_alone() {
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
fn an_instance_without_bus_gives_way_to_one_with_it() {
    let lab = Lab::new();
    let mut first = lab.start();
    lab.bus.call("eth0", &["Block", "sts", "10.77.0.1", "0", "stays"]).ok();
    let second = Start::on("eth0").env("TCPTRACKER_BUS__ENABLED", "false");
    // Should it start after all, it must not run for ever.
    let second = lab.run_service(&second.through(["timeout", "--foreground", "60"]));
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(second.err.contains("another tcptracker is running on eth0"), "{second:?}");
    Rules::of(&lab.victim).assert_enforced_for(&["eth0"]);
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    assert_eq!(first.stop().code(), Some(0));
    lab.assert_untouched();
}

/// Any local user can take the names by which instances make room for each other.
#[test]
fn who_is_no_instance_keeps_none_from_starting() {
    let lab = Lab::new();
    for manner in ["s", "s.listen()", "s.listen(0), fill(n)"] {
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
             \x20   {manner}\n\
             print('held', flush=True)\n\
             sys.stdin.read()\n"
        );
        let mut stranger = lab.victim.command("setpriv");
        stranger.args(["--reuid=65534", "--clear-groups", "/usr/bin/python3", "-c", &script]);
        let mut stranger = stranger.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut told = String::new();
        BufReader::new(stranger.stdout.take().unwrap()).read_line(&mut told).unwrap();
        assert_eq!(told, "held\n");

        let mut service = lab.start();
        let who = if manner == "s.listen()" { "uid 65534" } else { "somebody" };
        let sentence = format!("{who} holds the socket @tcptracker@eth0 and is no tcptracker");
        service.await_line(&sentence);
        let attacker = ATTACKER.to_string();
        lab.bus.call("eth0", &["Block", "sts", &attacker, "0", "all the same"]).ok();
        lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
        assert_eq!(service.stop().code(), Some(0));
        lab.assert_untouched();
        drop(stranger.stdin.take());
        stranger.wait().unwrap();
    }
}
