//! Enforcement of blocks: targets, existing connections, counters and capacity.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::json;
use tcptracker::internals::{Backend, IpsetBackend};

use crate::kernel::Rules;
use crate::lab::{ATTACKER, ATTACKER_V6, Lab, OPEN_PORT, VICTIM, VICTIM_V6};
use crate::namespace::{ANSWER_TIMEOUT, Namespace};
use crate::tools::{TIMEOUT, await_that, run};

fn block(lab: &Lab, address: &str, seconds: &str) {
    lab.bus.call("eth0", &["Block", "sts", address, seconds, "test"]).ok();
}

/// Returns the state of the open port as nmap reports it.
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
    let output = run(from.command("nmap").args(arguments)).ok();
    let ports = output.split("Ports: ").nth(1).unwrap_or_else(|| panic!("{output}"));
    ports.split('/').nth(1).unwrap().to_owned()
}

#[test]
fn reject_target_answers_like_a_closed_port() {
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
            // The client gets the refusal at once, without a timeout.
            let to = SocketAddr::new(victim, OPEN_PORT);
            let attempt = lab.attacker.inside(|| TcpStream::connect_timeout(&to, TIMEOUT));
            let refusal = attempt.unwrap_err().kind();
            // "cut" also drops the attacker's neighbour discovery, so its IPv6 connection attempt
            // fails earlier.
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

/// An open connection from the attacker to a host that tracks connections.
pub(super) struct Connection<'a> {
    pub tracker: &'a Namespace,
    pub client: TcpStream,
    pub server: TcpStream,
}

impl Connection<'_> {
    /// Enables connection tracking on the victim.
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

    /// Returns whether data from the client reaches the server.
    pub fn carries(&mut self) -> bool {
        let mut received = [0; 2];
        self.client.write_all(b"hi").unwrap();
        self.server.read_exact(&mut received).is_ok()
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
        await_that("conntrack no longer lists the connection", || !self.is_tracked());
        assert!(!self.carries());
    }
}

#[test]
fn existing_connection_is_kept_or_cut_as_configured() {
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

/// The setting also applies to sources that are already blocked at a reload or at a start.
#[test]
fn existing_connections_are_cut_at_reload_and_start() {
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

#[test]
fn drop_counters_survive_unblock_expiry_and_repair() {
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
        // The service reads the kernel's counters periodically.
        let await_total = |expected: u64| {
            await_that(&format!("{expected} dropped by {backend}"), || total() == expected);
        };
        block(&lab, &ATTACKER.to_string(), "3600");
        probe(10);
        await_total(10);
        // Unblock and block again.
        lab.bus.call("eth0", &["Unblock", "s", &ATTACKER.to_string()]).ok();
        block(&lab, &ATTACKER.to_string(), "3600");
        probe(5);
        await_total(15);
        // Expire.
        block(&lab, &ATTACKER.to_string(), "2");
        service.await_line(&format!("unblocked {ATTACKER}: expired"));
        block(&lab, &ATTACKER.to_string(), "3600");
        probe(4);
        await_total(19);
        // Make the service repair the rule.
        run(lab.victim.command("iptables").args(["-F", "tcptracker"])).ok();
        service.await_line("repaired firewall: ");
        probe(3);
        await_total(22);
        assert_eq!(lab.metric(r#"tcptracker_dropped_packets_total{family="ipv6"}"#), 0);
        assert_eq!(service.stop().code(), Some(0));
        lab.assert_untouched();
    }
}

#[test]
fn iptables_backend_enforces_like_the_ipset_backend() {
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

    // Another program removes rules.
    run(lab.victim.command("iptables").args(["-D", "tcptracker", "1"])).ok();
    service.await_line("repaired firewall: 1 set member (ipv4) was missing");
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    run(lab.victim.command("iptables").args(["-D", "INPUT", "-j", "tcptracker"])).ok();
    service.await_lines("repaired firewall: ", 2);
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);

    // After a crash, the next instance adopts the rules with their saved end times.
    service.crash();
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    let mut service = lab.start();
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    assert_eq!(lab.bus.list().len(), 3);
    assert_eq!(Rules::of(&lab.victim).chain("tcptracker").map(|rules| rules.len()), [2, 1]);

    // The kernel does not expire rules, so the service must.
    lab.bus.call("eth0", &["Unblock", "s", &ATTACKER.to_string()]).ok();
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
    block(&lab, &ATTACKER.to_string(), "2");
    service.await_line(&format!("unblocked {ATTACKER}: expired"));
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
    assert_eq!(lab.bus.property("State").1, "enforcing");

    // Switching the backend in both directions keeps the blocks and leaves no rules of the old
    // backend.
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
fn rules_without_a_saved_block_get_an_expiry() {
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

#[test]
fn iptables_backend_limits_the_number_of_rules() {
    let lab = Lab::new();
    lab.configure("firewall.backend = \"iptables\"\n");
    // Rules as a killed instance leaves them.
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
    // When full, a manual block fails, and a new scan evicts an automatic block.
    let refused = lab.cli("block 203.0.113.1");
    assert_eq!(refused.code, Some(1));
    let limit = "block limit reached (1000 per address family); unblock something first";
    assert!(refused.err.contains(limit), "{refused:?}");
    assert_eq!(lab.bus.property("State").1, "degraded");
    lab.bystander.nmap("-sS -p 1-10", VICTIM);
    service.await_line(&format!("unblocked {ATTACKER}: evicted to make room for a newer block"));
    service.await_line("WARN blocked 10.77.0.3 for 1h");
    lab.bystander.assert_cannot_reach(VICTIM, OPEN_PORT);
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
    assert_eq!(lab.bus.list().len(), 1000);

    run(lab.victim.command("iptables").args(["-F", "tcptracker"])).ok();
    service.await_line("repaired firewall: 1000 set members (ipv4) were missing");
    lab.bystander.assert_cannot_reach(VICTIM, OPEN_PORT);
    lab.cli("unblock 198.18.0.0/15").ok();
    service.await_line("enforcing: no problems");
    assert_eq!(lab.bus.list().len(), 1);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// Fills a set to its capacity of 524,288 elements.
#[test]
fn full_set_is_reported_as_full() {
    let lab = Lab::new();
    lab.victim.inside(|| {
        let interface = "eth0".parse().unwrap();
        let mut sets = IpsetBackend::connect(&interface).unwrap();
        sets.install().unwrap();
        let network = |number: u32| IpNet::from(IpAddr::from(Ipv4Addr::from(0x0b00_0000 + number)));
        let hour = Duration::from_secs(3600);
        let all: Vec<_> = (0..sets.capacity()).map(|number| (network(number), hour)).collect();
        assert!(sets.block_all(&all).is_empty());

        // The kernel checks the total only when a part of its hash table is full, so the set may
        // accept up to 10% more.
        let further = (sets.capacity()..sets.capacity() / 10 * 11).map(network);
        let mut refusals =
            further.filter_map(|network| Some((network, sets.block(network, hour).err()?)));
        let (refused, refusal) =
            refusals.next().expect("the set refuses elements beyond 110% of its capacity");
        drop(refusals);
        assert!(refusal.is_full(), "{refusal}");
        assert_eq!(
            refusal.to_string(),
            "kernel set tcptracker-eth0-v4 is full: it holds 524288 elements; unblock something first"
        );
        sets.block(network(7), hour).expect("the timeout of an existing element can be extended");
        // Removing an element of the same part of the hash table makes room for the refused one.
        let replaced = (0..sets.capacity()).map(network).find(|other| {
            sets.unblock(*other).unwrap();
            sets.block(refused, hour).is_ok()
        });
        assert!(replaced.is_some());
        sets.remove().unwrap();
    });
    lab.assert_untouched();
}
