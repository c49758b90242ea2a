//! How packets of the blocked are stopped: targets, live connections, counters, room.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::json;
use tcptracker::config::{Established, FirewallConfig};
use tcptracker::firewall::{Backend, KernelSets};

use crate::kernel::Rules;
use crate::lab::{ATTACKER, ATTACKER_V6, Lab, OPEN_PORT, VICTIM, VICTIM_V6};
use crate::namespace::{ANSWER_TIMEOUT, Namespace};
use crate::tools::{TIMEOUT, await_that, run};

fn block(lab: &Lab, address: &str, seconds: &str) {
    lab.bus.call("eth0", &["Block", "sts", address, seconds, "test"]).ok();
}

/// What nmap says of the open port.
fn state_seen(from: &Namespace, victim: IpAddr) -> String {
    let family = if victim.is_ipv6() { "-6" } else { "-n" };
    let port = OPEN_PORT.to_string();
    let target = victim.to_string();
    let arguments = [
        "-n",
        family,
        "-Pn",
        "--disable-arp-ping",
        "-sS",
        "--max-retries",
        "1",
        "-p",
        &port,
        "-oG",
        "-",
        &target,
    ];
    let said = run(from.command("nmap").args(arguments)).ok();
    let ports = said.split("Ports: ").nth(1).unwrap_or_else(|| panic!("{said}"));
    ports.split('/').nth(1).unwrap().to_owned()
}

#[test]
fn reject_answers_as_a_closed_port_does() {
    for (established, seen, backend) in
        [("keep", "closed", "ipset"), ("cut", "filtered", "ipset"), ("keep", "closed", "iptables")]
    {
        let lab = Lab::new();
        lab.configure(&format!(
            "firewall.target = \"REJECT\"\nfirewall.backend = \"{backend}\"\n\
             block.established = \"{established}\"\n"
        ));
        let mut service = lab.start();
        assert_eq!(state_seen(&lab.attacker, VICTIM), "open");
        for address in [ATTACKER, ATTACKER_V6] {
            block(&lab, &address.to_string(), "3600");
        }
        for victim in [VICTIM, VICTIM_V6] {
            assert_eq!(state_seen(&lab.attacker, victim), seen, "{established} {victim}");
            // Nobody waits for nothing: the refusal comes at once.
            let to = SocketAddr::new(victim, OPEN_PORT);
            let attempt = lab.attacker.inside(|| TcpStream::connect_timeout(&to, TIMEOUT));
            let refusal = attempt.unwrap_err().kind();
            // To drop all of a neighbour's IPv6 is to drop his neighbour discovery as well.
            let expected = match (established, victim.is_ipv6()) {
                ("cut", true) => ErrorKind::HostUnreachable,
                _ => ErrorKind::ConnectionRefused,
            };
            assert_eq!(refusal, expected, "{established} {victim}");
            assert_eq!(state_seen(&lab.bystander, victim), "open");
        }
        assert_eq!(service.stop().code(), Some(0));
        lab.assert_untouched();
    }
}

/// A connection of the attacker's that is open, to a host that tracks it.
pub(super) struct Connection<'a> {
    pub tracker: &'a Namespace,
    pub client: TcpStream,
    pub server: TcpStream,
}

impl Connection<'_> {
    /// Makes the victim track connections.
    pub fn track(victim: &Namespace) {
        let rule = ["-A", "INPUT", "-m", "conntrack", "--ctstate", "ESTABLISHED", "-j", "ACCEPT"];
        for program in ["iptables", "ip6tables"] {
            run(victim.command(program).args(rule)).ok();
        }
    }

    pub fn open<'a>(lab: &'a Lab, to: SocketAddr, listener: &TcpListener) -> Connection<'a> {
        let client = lab.attacker.inside(|| TcpStream::connect_timeout(&to, TIMEOUT)).unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_read_timeout(Some(ANSWER_TIMEOUT)).unwrap();
        let mut connection = Connection { tracker: &lab.victim, client, server };
        assert!(connection.carries(), "to {to}");
        assert!(connection.is_tracked(), "to {to}");
        connection
    }

    /// Whether what the client says is heard.
    pub fn carries(&mut self) -> bool {
        let mut heard = [0; 2];
        self.client.write_all(b"hi").unwrap();
        self.server.read_exact(&mut heard).is_ok()
    }

    pub fn is_tracked(&self) -> bool {
        let (from, to) = (self.client.local_addr().unwrap(), self.client.peer_addr().unwrap());
        let family = if to.is_ipv6() { "ipv6" } else { "ipv4" };
        let (source, port) = (from.ip().to_string(), from.port().to_string());
        let words = ["-L", "-f", family, "-p", "tcp", "-s", &source, "--sport", &port];
        !run(self.tracker.command("conntrack").args(words)).ok().is_empty()
    }

    #[track_caller]
    pub fn assert_cut(&mut self) {
        await_that("the connection is gone from the table", || !self.is_tracked());
        assert!(!self.carries());
    }
}

#[test]
fn a_live_connection_goes_on_or_is_cut_as_configured() {
    for (established, backend) in [("keep", "ipset"), ("cut", "ipset"), ("cut", "iptables")] {
        let lab = Lab::new();
        Connection::track(&lab.victim);
        lab.configure(&format!(
            "block.established = \"{established}\"\nfirewall.backend = \"{backend}\"\n"
        ));
        let mut service = lab.start();
        let listener = lab.victim.listen(7100);
        for (attacker, victim) in [(ATTACKER, VICTIM), (ATTACKER_V6, VICTIM_V6)] {
            let mut connection = Connection::open(&lab, (victim, 7100).into(), &listener);
            block(&lab, &attacker.to_string(), "3600");
            if established == "cut" {
                connection.assert_cut();
            }
            lab.attacker.assert_cannot_reach(victim, OPEN_PORT);
            if established == "keep" {
                assert!(connection.carries() && connection.is_tracked());
            }
        }
        assert_eq!(lab.bus.property("State").1, "enforcing");
        assert_eq!(service.stop().code(), Some(0));
    }
}

/// Also of those who are blocked already when it is configured, or when the service starts.
#[test]
fn live_connections_are_cut_by_a_reload_and_a_start() {
    let lab = Lab::new();
    Connection::track(&lab.victim);
    let mut service = lab.start();
    let listener = lab.victim.listen(7100);
    let mut connection = Connection::open(&lab, (VICTIM, 7100).into(), &listener);
    block(&lab, &ATTACKER.to_string(), "3600");
    assert!(connection.carries());
    lab.configure("block.established = \"cut\"\n");
    lab.cli("reload").ok();
    connection.assert_cut();

    assert_eq!(service.stop().code(), Some(0));
    let mut connection = Connection::open(&lab, (VICTIM, 7100).into(), &listener);
    let mut service = lab.start();
    connection.assert_cut();
    assert_eq!(service.stop().code(), Some(0));
}

/// Every dropped packet is counted, though elements and rules come and go.
#[test]
fn dropped_packets_are_counted_over_expiry_blocking_again_and_mending() {
    for backend in ["ipset", "iptables"] {
        let lab = Lab::new();
        lab.configure(&format!("firewall.backend = \"{backend}\"\n"));
        let mut service = lab.start();
        let probe = |count: usize| {
            let ports = format!("-sS --min-rate 100 -p 1-{count}");
            lab.attacker.nmap(&ports, VICTIM);
            lab.bystander.nmap("-sS -p 1", VICTIM);
        };
        let total = || lab.metric(r#"tcptracker_dropped_packets_total{family="ipv4"}"#);
        // Read with the next look.
        let await_total = |expected: u64| {
            await_that(&format!("{expected} dropped by {backend}"), || total() == expected);
        };
        block(&lab, &ATTACKER.to_string(), "3600");
        probe(10);
        await_total(10);
        // Ended, and blocked again.
        lab.bus.call("eth0", &["Unblock", "s", &ATTACKER.to_string()]).ok();
        block(&lab, &ATTACKER.to_string(), "3600");
        probe(5);
        await_total(15);
        // Expired.
        block(&lab, &ATTACKER.to_string(), "2");
        service.await_line(&format!("unblocked {ATTACKER}: its time was up"));
        block(&lab, &ATTACKER.to_string(), "3600");
        probe(4);
        await_total(19);
        // The rule made anew.
        run(lab.victim.command("iptables").args(["-F", "tcptracker"])).ok();
        service.await_line("mended: ");
        probe(3);
        await_total(22);
        assert_eq!(lab.metric(r#"tcptracker_dropped_packets_total{family="ipv6"}"#), 0);
        assert_eq!(service.stop().code(), Some(0));
        lab.assert_untouched();
    }
}

#[test]
fn a_rule_per_address_does_what_a_set_does() {
    let lab = Lab::new();
    lab.configure("firewall.backend = \"iptables\"\n");
    let mut service = lab.start();
    assert_eq!(lab.bus.property("Backend").1, json!("iptables"));
    assert!(!Rules::of(&lab.victim).sets.contains("tcptracker"));

    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line(&format!("WARN blocked {ATTACKER} for 1h"));
    block(&lab, "198.51.100.0/24", "0");
    block(&lab, "fd77::/127", "7200");
    let own = |rule: &str| rule.ends_with("-m comment --comment \"tcptracker@eth0\" -j DROP");
    let rules = Rules::of(&lab.victim);
    let [ipv4, ipv6] = rules.chain("tcptracker");
    assert!(ipv4.len() == 2 && ipv4.iter().all(|rule| own(rule)), "{ipv4:?}");
    assert!(ipv4[0].starts_with("-s 10.77.0.1/32 -p tcp"), "{ipv4:?}");
    assert!(ipv6.len() == 1 && ipv6[0].starts_with("-s fd77::/127"), "{ipv6:?}");
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    lab.attacker.assert_cannot_reach(VICTIM_V6, OPEN_PORT);
    lab.bystander.assert_reaches(VICTIM, OPEN_PORT);
    assert_eq!(lab.metric(r#"tcptracker_enforced{family="ipv4"}"#), 2);

    // Others interfere.
    run(lab.victim.command("iptables").args(["-D", "tcptracker", "1"])).ok();
    service.await_line("mended: 1 blocked (ipv4) missing");
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    run(lab.victim.command("iptables").args(["-D", "INPUT", "-j", "tcptracker"])).ok();
    service.await_lines("mended: ", 2);
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);

    // It dies, and the next takes its rules over, with their times as remembered.
    service.crash();
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    let mut service = lab.start();
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    assert_eq!(lab.bus.list().len(), 3);
    assert_eq!(Rules::of(&lab.victim).chain("tcptracker").map(|rules| rules.len()), [2, 1]);

    // Its end is the service's business.
    lab.bus.call("eth0", &["Unblock", "s", &ATTACKER.to_string()]).ok();
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
    block(&lab, &ATTACKER.to_string(), "2");
    service.await_line(&format!("unblocked {ATTACKER}: its time was up"));
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
    assert_eq!(lab.bus.property("State").1, "enforcing");

    // The other backend takes over in turn, and nothing of this one stays.
    service.crash();
    lab.configure("");
    let mut service = lab.start();
    lab.attacker.assert_cannot_reach(VICTIM_V6, OPEN_PORT);
    Rules::of(&lab.victim).assert_enforced_for(&["eth0"]);
    service.crash();
    lab.configure("firewall.backend = \"iptables\"\n");
    let mut service = lab.start();
    lab.attacker.assert_cannot_reach(VICTIM_V6, OPEN_PORT);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn rules_left_by_a_dead_instance_nobody_remembers_end_all_the_same() {
    let lab = Lab::new();
    lab.configure("firewall.backend = \"iptables\"\n");
    let mut service = lab.start();
    block(&lab, &ATTACKER.to_string(), "0");
    service.crash();
    std::fs::remove_dir_all(lab.path("state")).unwrap();
    let service = lab.start();
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    let (_, since, until, ..) = lab.bus.block_of(&ATTACKER);
    assert_eq!(until - since, 3600);
    drop(service);
}

/// Thousands of rules are a matter of one process, and there is a limit to them.
#[test]
fn a_chain_of_rules_has_a_limit() {
    let lab = Lab::new();
    lab.configure("firewall.backend = \"iptables\"\n");
    // As a dead instance would have left them.
    let rules = (0..999).map(|number| {
        format!(
            "-A tcptracker -s 198.18.{}.{}/32 -p tcp -m tcp --tcp-flags RST,ACK NONE \
             -m comment --comment tcptracker@eth0 -j DROP\n",
            number / 256,
            number % 256
        )
    });
    let script = format!("*filter\n:tcptracker - [0:0]\n{}COMMIT\n", rules.collect::<String>());
    let mut restore =
        lab.victim.command("iptables-restore").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
    restore.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(restore.wait().unwrap().success());

    let mut service = lab.start();
    assert_eq!(lab.bus.list().len(), 999);
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line(&format!("WARN blocked {ATTACKER} for 1h"));
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    // Full: by hand it is refused, and said why; a scanner takes a scanner's place.
    let refused = lab.cli("block 203.0.113.1");
    assert_eq!(refused.code, Some(1));
    assert!(
        refused.err.contains(
            "there is room for 1000 blocks of a family and no more; unblock others first"
        ),
        "{refused:?}"
    );
    assert_eq!(lab.bus.property("State").1, "degraded");
    lab.bystander.nmap("-sS -p 1-10", VICTIM);
    service.await_line(&format!("unblocked {ATTACKER}: it had to make way for a new block"));
    service.await_line("WARN blocked 10.77.0.3 for 1h");
    lab.bystander.assert_cannot_reach(VICTIM, OPEN_PORT);
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
    assert_eq!(lab.bus.list().len(), 1000);

    run(lab.victim.command("iptables").args(["-F", "tcptracker"])).ok();
    service.await_line("mended: 1000 blocked (ipv4) missing");
    lab.bystander.assert_cannot_reach(VICTIM, OPEN_PORT);
    lab.cli("unblock 198.18.0.0/15").ok();
    service.await_line("enforcing: all is well again");
    assert_eq!(lab.bus.list().len(), 1);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// A set that is full in fact: half a million.
#[test]
fn the_kernel_says_when_a_set_is_full() {
    let lab = Lab::new();
    lab.victim.inside(|| {
        let interface = "eth0".parse().unwrap();
        let mut sets =
            KernelSets::connect(&interface, &FirewallConfig::default(), Established::Keep).unwrap();
        sets.install().unwrap();
        let network = |number: u32| IpNet::from(IpAddr::from(Ipv4Addr::from(0x0b00_0000 + number)));
        let hour = Duration::from_secs(3600);
        let all: Vec<_> = (0..sets.capacity()).map(|number| (network(number), hour)).collect();
        assert!(sets.block_all(&all).is_empty());

        // The kernel looks at the sum only where a part of its table has had its share: a little more
        // may find room.
        let further = (sets.capacity()..sets.capacity() / 10 * 11).map(network);
        let mut refusals =
            further.filter_map(|network| Some((network, sets.block(network, hour).err()?)));
        let (one_more, refusal) =
            refusals.next().expect("no more than a tenth more than its capacity");
        drop(refusals);
        assert!(refusal.is_full(), "{refusal}");
        assert_eq!(
            refusal.to_string(),
            "the set tcptracker-eth0-v4 is full (524288 elements); unblock others first"
        );
        sets.block(network(7), hour).expect("what is there can be prolonged");
        // The place of one that goes is another's.
        let of_its_part = (0..sets.capacity()).map(network).find(|other| {
            sets.unblock(*other).unwrap();
            sets.block(one_more, hour).is_ok()
        });
        assert!(of_its_part.is_some());
        sets.remove().unwrap();
    });
    lab.assert_untouched();
}
