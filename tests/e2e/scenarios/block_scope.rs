//! The scope of a block: containers behind a bridge, networks, both address families, other links.

use std::net::IpAddr;

use crate::kernel::Rules;
use crate::lab::{ATTACKER, ATTACKER_V6, Lab, OPEN_PORT, VICTIM, VICTIM_V6};
use crate::namespace::Namespace;
use crate::scenarios::enforcement::Connection;
use crate::service::Start;
use crate::tools::run;

/// Published ports of the container.
const PUBLISHED: std::ops::RangeInclusive<u16> = 8080..=8089;

impl Lab {
    /// Creates a container on the victim as Docker does: behind a bridge, with published ports.
    fn container(&mut self) -> Namespace {
        let victim = &self.victim;
        let container = Namespace::new(victim.name().replace("victim", "container"));
        let name = container.name();
        victim.ip("link add docker0 type bridge");
        victim.ip(&format!("link add veth7 type veth peer name eth0 netns {name}"));
        victim.ip("link set veth7 master docker0 up");
        victim.ip("addr add 172.17.0.1/16 dev docker0");
        victim.ip("addr add fd17::1/64 dev docker0 nodad");
        victim.ip("link set docker0 up");
        container.ip("link set eth0 up");
        container.ip("addr add 172.17.0.2/16 dev eth0");
        container.ip("addr add fd17::2/64 dev eth0 nodad");
        container.ip("route add default via 172.17.0.1");
        container.ip("route add default via fd17::1");
        self.enable_forwarding();
        let ports = format!("{}:{}", PUBLISHED.start(), PUBLISHED.end());
        for (program, address, net) in
            [("iptables", "172.17.0.2", "172.17.0.0/16"), ("ip6tables", "fd17::2", "fd17::/64")]
        {
            for rule in [
                format!(
                    "-t nat -A PREROUTING ! -i docker0 -p tcp --dport {ports} \
                     -j DNAT --to-destination {address}"
                ),
                format!("-t nat -A POSTROUTING -s {net} ! -o docker0 -j MASQUERADE"),
                "-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
                    .to_owned(),
                format!("-A FORWARD -d {address} -o docker0 -p tcp --dport {ports} -j ACCEPT"),
                "-A FORWARD -i docker0 -j ACCEPT".to_owned(),
            ] {
                run(self.victim.command(program).args(rule.split_whitespace())).ok();
            }
        }
        self.rules_before = Rules::of(&self.victim);
        container
    }
}

/// A scanner of the published ports is blocked for container and host, whether the instance watches
/// the host's interface or the container's bridge.
#[test]
fn scan_of_published_ports_is_blocked_for_container_and_host() {
    for (watched, direction) in [("eth0", "inbound"), ("docker0", "forwarded")] {
        let mut lab = Lab::new();
        let container = lab.container();
        let _listener = container.listen(8080);
        let mut service = Start::on(watched).begin(&lab).await_ready();
        for (attacker, victim, inner) in
            [(ATTACKER, VICTIM, "172.17.0.2"), (ATTACKER_V6, VICTIM_V6, "fd17::2")]
        {
            for port in [OPEN_PORT, 8080] {
                lab.attacker.assert_reaches(victim, port);
            }
            lab.attacker.nmap("-sS -p 8080-8089", victim);
            let seen = if watched == "eth0" { victim } else { inner.parse().unwrap() };
            service.await_line(&format!("vertical port scan by {attacker} on {seen}: ports "));
            service.await_line(&format!("WARN blocked {attacker} for 1h (offence 1)"));
            for port in [8080, OPEN_PORT] {
                lab.attacker.assert_cannot_reach(victim, port);
                lab.bystander.assert_reaches(victim, port);
            }
            let family = if victim.is_ipv4() { "ipv4" } else { "ipv6" };
            let metric = "tcptracker_connections_total";
            let seen = format!("{metric}{{direction=\"{direction}\",family=\"{family}\"}}");
            assert!(lab.metric(&seen) >= 4);
        }
        // Outgoing connections of the container are not affected, even to a blocked address.
        let _attackers_listener = lab.attacker.listen(80);
        container.assert_reaches(ATTACKER, 80);
        container.assert_reaches(ATTACKER_V6, 80);

        lab.bus.call(watched, &["Unblock", "s", &ATTACKER.to_string()]).ok();
        lab.attacker.assert_reaches(VICTIM, 8080);
        assert_eq!(service.stop().code(), Some(0));
        lab.attacker.assert_reaches(VICTIM_V6, 8080);
        lab.assert_untouched();
    }
}

/// Includes the connections that NAT has translated.
#[test]
fn live_connection_to_a_container_is_cut() {
    let mut lab = Lab::new();
    let container = lab.container();
    let (listener, _other) = (container.listen(8080), container.listen(8081));
    lab.configure("block.established = \"cut\"\n");
    let mut service = lab.start();
    for (attacker, victim) in [(ATTACKER, VICTIM), (ATTACKER_V6, VICTIM_V6)] {
        let mut connection = Connection::open(&lab, (victim, 8080).into(), &listener);
        let mut another = Connection::open(&lab, (victim, 8080).into(), &listener);
        lab.bus.call("eth0", &["Block", "sts", &attacker.to_string(), "0", "cut"]).ok();
        connection.assert_cut();
        another.assert_cut();
        lab.bystander.assert_reaches(victim, 8081);
    }
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// A network, addresses at its edges, and neighbouring addresses.
const NETWORKS: [(IpAddr, &str, [&str; 4], [&str; 2]); 2] = [
    (
        VICTIM,
        "198.51.100.0/24",
        ["198.51.100.0", "198.51.100.1", "198.51.100.128", "198.51.100.255"],
        ["198.51.99.255", "198.51.101.0"],
    ),
    (
        VICTIM_V6,
        "2001:db8:5::/48",
        [
            "2001:db8:5::",
            "2001:db8:5::1",
            "2001:db8:5:8000::",
            "2001:db8:5:ffff:ffff:ffff:ffff:ffff",
        ],
        ["2001:db8:4:ffff:ffff:ffff:ffff:ffff", "2001:db8:6::"],
    ),
];

/// Gives the attacker these addresses, and the victim routes to them.
fn add_addresses(lab: &Lab, inside: &[&str], outside: &[&str]) {
    for address in inside.iter().chain(outside) {
        let (length, how) = if address.contains(':') { (128, "nodad") } else { (32, "") };
        lab.attacker.ip(&format!("addr add {address}/{length} dev eth0 {how}"));
        lab.victim.ip(&format!("route add {address}/{length} dev eth0"));
    }
}

/// Asserts whether the victim answers a connection from this address of the attacker.
#[track_caller]
fn assert_blocked(lab: &Lab, is_blocked: bool, from: &str, victim: IpAddr) {
    lab.attacker.ip(&format!("route replace {victim} dev eth0 src {from}"));
    if is_blocked {
        lab.attacker.assert_cannot_reach(victim, OPEN_PORT);
    } else {
        lab.attacker.assert_reaches(victim, OPEN_PORT);
    }
}

#[test]
fn network_block_covers_the_network_and_no_neighbours() {
    let lab = Lab::new();
    for (_, _, inside, outside) in NETWORKS {
        add_addresses(&lab, &inside, &outside);
    }
    let mut service = lab.start();
    for (victim, network, inside, outside) in NETWORKS {
        lab.bus.call("eth0", &["Block", "sts", network, "0", "all of it"]).ok();
        for from in inside {
            assert_blocked(&lab, true, from, victim);
        }
        for from in outside {
            assert_blocked(&lab, false, from, victim);
        }
        assert_eq!(lab.bus.block_of(&network).4, "all of it");
        // Unblocking an address in a blocked network unblocks the whole network.
        lab.bus.call("eth0", &["Unblock", "s", inside[2]]).ok();
        service.await_line(&format!("unblocked {network}: by root (uid 0)"));
        for from in inside {
            assert_blocked(&lab, false, from, victim);
        }
    }
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// Each nested network is a block of its own. Unblocking an address ends every block that contains
/// it.
#[test]
fn nested_networks_are_unblocked_as_documented() {
    let lab = Lab::new();
    let (victim, _, inside, outside) = NETWORKS[0];
    add_addresses(&lab, &inside, &outside);
    let mut service = lab.start();
    let block = |network: &str, seconds: &str| {
        lab.bus.call("eth0", &["Block", "sts", network, seconds, "nested"]).ok();
    };
    let blocked = || lab.bus.list().into_iter().map(|block| block.0).collect::<Vec<_>>();
    block("198.51.100.0/24", "0");
    block("198.51.100.128/25", "0");
    block("198.51.100.1", "0");
    assert_eq!(blocked(), ["198.51.100.0/24", "198.51.100.1", "198.51.100.128/25"]);

    // Only the networks that contain the address are unblocked.
    lab.bus.call("eth0", &["Unblock", "s", "198.51.100.0"]).ok();
    assert_eq!(blocked(), ["198.51.100.1", "198.51.100.128/25"]);
    assert_blocked(&lab, false, "198.51.100.0", victim);
    for from in ["198.51.100.1", "198.51.100.128", "198.51.100.255"] {
        assert_blocked(&lab, true, from, victim);
    }
    // Everything within the network is unblocked, whether the network itself is blocked or not.
    for is_blocked in [false, true] {
        if is_blocked {
            block("198.51.100.0/24", "0");
            block("198.51.100.128/25", "0");
        }
        lab.bus.call("eth0", &["Unblock", "s", "198.51.100.0/24"]).ok();
        assert_eq!(blocked(), Vec::<String>::new());
        for from in ["198.51.100.1", "198.51.100.255"] {
            assert_blocked(&lab, false, from, victim);
        }
    }

    // The smaller network expires, and the larger one is still blocked.
    block("198.51.100.0/24", "0");
    block("198.51.100.128/25", "1");
    service.await_line("unblocked 198.51.100.128/25: expired");
    assert_eq!(blocked(), ["198.51.100.0/24"]);
    assert_blocked(&lab, true, "198.51.100.255", victim);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// A VLAN's name contains a dot, which D-Bus names do not allow.
#[test]
fn vlan_interface_name_is_escaped_for_the_bus() {
    let lab = Lab::new();
    lab.second_link();
    lab.victim.ip("link set eth1 down");
    lab.victim.ip("link set eth1 name eth0.100");
    lab.victim.ip("link set eth0.100 up");
    lab.victim.ip("addr replace fd78::2/64 dev eth0.100 nodad");
    lab.attacker.ip("addr add fd78::1/64 dev eth1 nodad");
    let mut service = Start::on("eth0.100").begin(&lab).await_ready();
    Rules::of(&lab.victim).assert_enforced_for(&["eth0.100"]);
    for (attacker, victim) in [("10.78.0.1", "10.78.0.2"), ("fd78::1", "fd78::2")] {
        let victim: IpAddr = victim.parse().unwrap();
        lab.attacker.nmap("-sS -p 1-10", victim);
        service.await_line(&format!("WARN blocked {attacker} for 1h (offence 1)"));
        lab.attacker.assert_cannot_reach(victim, OPEN_PORT);
    }
    lab.bystander.assert_reaches(VICTIM, OPEN_PORT);
    assert_eq!(lab.bus.list_on("eth0_2e100").len(), 2);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}
