//! `detection.preset = "balanced"`: what failed counts, is told, and what cannot be seen counts against nobody.

use std::net::{IpAddr, Ipv4Addr, TcpListener};

use super::legitimate_clients::start;
use crate::clients::{Clients, Server};
use crate::flood::Flood;
use crate::lab::{ATTACKER, Lab, OPEN_PORT, VICTIM};
use crate::service::{Service, Start};
use crate::tools::{await_that, run};

const BYSTANDER: &str = "10.77.0.3";

fn balanced(lab: &Lab) -> Service {
    start(lab, "balanced")
}

fn blocked(lab: &Lab) -> Vec<String> {
    lab.bus.list().into_iter().map(|block| block.0).collect()
}

fn rule(lab: &Lab, rule: &str) {
    run(lab.victim.command("iptables").args(rule.split(' '))).ok();
}

#[test]
fn refused_ports_block_and_are_told_with_what_became_of_them() {
    let lab = Lab::new();
    let mut service = balanced(&lab);
    lab.attacker.nmap("-sS -p 1-4", VICTIM);
    service.await_line(&format!("blocked {ATTACKER} for 1h (offence 1)"));
    let told = service.await_line("vertical port scan by");
    assert!(told.contains(" refused"), "{told}");
    assert!(told.contains("more than 3 failed ports of one host in 60s"), "{told}");
    let why = lab.bus.why("10.77.0.1").to_string();
    assert!(why.contains("refused") && why.contains("failed ports"), "{why}");
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    lab.bystander.assert_reaches(VICTIM, OPEN_PORT);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// Where a firewall drops what comes to closed ports, nobody answers; where it rejects, ICMP does, for ports
/// on which somebody listens as well.
#[test]
fn what_a_firewall_keeps_away_has_failed() {
    for (target, outcome) in [("DROP", "unanswered"), ("REJECT", "refused")] {
        let lab = Lab::new();
        let server = Server::on(&lab, &[11, 12, 13, 14, 15]);
        rule(&lab, &format!("-A INPUT -p tcp --dport 11:30 -j {target}"));
        let mut service = balanced(&lab);
        lab.attacker.nmap("-sS -p 11-15", VICTIM);
        service.await_line(&format!("blocked {ATTACKER}"));
        let told = service.await_line("vertical port scan by");
        assert!(told.contains(outcome), "{told}");
        drop(server);
    }
}

#[test]
fn half_open_and_stealthy_scans_of_open_ports_block() {
    for scan in ["-sS", "-sF", "-sX", "-sN"] {
        let lab = Lab::new();
        let open: Vec<TcpListener> = (21..=28).map(|port| lab.victim.listen(port)).collect();
        let mut service = balanced(&lab);
        lab.attacker.nmap(&format!("{scan} -p 21-28"), VICTIM);
        service.await_line(&format!("blocked {ATTACKER}"));
        let told = service.await_line("port scan by");
        assert!(told.contains("more than 3 failed ports of one host in 60s"), "{told}");
        assert_eq!(told.contains("half-open"), scan == "-sS", "{told}");
        drop(open);
    }
}

/// A connect scan that finds nearly all ports open is one all the same, once it is clear that it is no load
/// balancer.
#[test]
fn a_connect_scan_of_open_ports_blocks_by_the_one_that_is_closed() {
    let lab = Lab::new();
    let open: Vec<TcpListener> = (21..=27).map(|port| lab.victim.listen(port)).collect();
    let mut service = balanced(&lab);
    lab.attacker.nmap("-sT -p 21-28", VICTIM);
    service.await_line(&format!("blocked {ATTACKER}"));
    let told = service.await_line("vertical port scan by");
    assert!(told.contains("28 refused") && told.contains("answered"), "{told}");
    drop(open);
}

/// The view of a gateway: one port of forty hosts behind it, of which ten are open.
#[test]
fn a_sweep_over_the_hosts_behind_blocks() {
    let lab = Lab::new();
    let behind = lab.add_forwarded_host();
    rule(&lab, "-P FORWARD ACCEPT");
    for last in 100..140 {
        behind.ip(&format!("addr add 10.78.0.{last}/24 dev eth0"));
    }
    let open: Vec<TcpListener> = behind.inside(|| {
        (100..110)
            .map(|last| TcpListener::bind((Ipv4Addr::new(10, 78, 0, last), 22)).unwrap())
            .collect()
    });
    let mut service = balanced(&lab);
    let hosts = "10.78.0.100-139";
    run(lab.attacker.command("nmap").args(["-n", "-Pn", "-sS", "-p", "22", hosts])).ok();
    service.await_line(&format!("blocked {ATTACKER}"));
    let told = service.await_line("sweep port scan by");
    assert!(told.contains(" and others: port 22 "), "{told}");
    assert!(told.contains("more than 29 failed hosts on one port in 5m"), "{told}");
    let why = lab.bus.why("10.77.0.1").to_string();
    assert!(why.contains("sweep: port 22 of more than 29 hosts"), "{why}");
    drop(open);
}

/// Replies that take another way are not seen: this is said, the classic rule holds for a while, and when
/// replies are seen that is said, too.
#[test]
fn one_sided_capture_is_noticed_and_goes_back_to_the_classic_rule() {
    let lab = Lab::new();
    let server = Server::on(&lab, &[80, 443]);
    lab.second_link();
    for host in [&lab.victim, &lab.attacker] {
        host.inside(|| {
            for interface in ["all", "eth0", "eth1"] {
                let setting = format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter");
                std::fs::write(setting, "0").unwrap();
            }
        });
    }
    lab.victim.ip("route add 10.77.0.1/32 via 10.78.0.1 dev eth1");
    let mut service = balanced(&lab);
    Clients::at(&lab.attacker).visit(&[80, 443]);
    service.await_line("answers to probes are not seen here");
    lab.attacker.nmap("-sS -p 80,443,8000,8001", VICTIM);
    service.await_line(&format!("blocked {ATTACKER}"));
    let told = service.await_line("vertical port scan by");
    assert!(told.contains("more than 3"), "{told}");
    Clients::at(&lab.bystander).visit(&[80]);
    service.await_line("answers to probes are seen again");
    lab.bystander.assert_reaches(VICTIM, OPEN_PORT);
    drop(server);
}

/// Sources by the hundred thousand, each of which fails on two ports, as many as are remembered and more: memory
/// stays where it is, and a scanner among them is seen.
#[test]
fn a_flood_of_failures_costs_no_more_memory_than_is_fixed() {
    const FORGED: u32 = 200_000;
    let lab = Lab::new();
    let mut service = balanced(&lab);
    let mut flood = Flood::on(&lab);
    let IpAddr::V4(victim) = VICTIM else { unreachable!() };
    let mut send = |from: u32, to: u32| {
        for number in from..to {
            let source = Ipv4Addr::from(0x0b00_0000 + number);
            flood.syn(source, victim, 81);
            flood.syn(source, victim, 82);
        }
        flood.settle();
    };
    send(0, FORGED);
    let filled = service.resident_bytes();
    assert!(filled < 128 << 20, "{filled} bytes");
    send(FORGED, 2 * FORGED);
    let after = service.resident_bytes();
    assert!(after < filled + (4 << 20), "{filled} bytes, then {after}");
    assert_eq!(lab.bus.list(), []);
    lab.attacker.nmap("-sS -p 1-20", VICTIM);
    service.await_line(&format!("blocked {ATTACKER}"));
    assert_eq!(blocked(&lab), [ATTACKER.to_string()]);
}

/// The preset is changed while the service runs, to and fro.
#[test]
fn another_preset_holds_from_a_reload_on() {
    let lab = Lab::new();
    let server = Server::on(&lab, &[25, 80, 110, 143, 443]);
    let mut service = lab.start();
    lab.configure("[detection]\npreset = \"balanced\"\n");
    service.signal(rustix::process::Signal::HUP);
    service.await_line("configuration reloaded");
    Clients::at(&lab.bystander).visit(&[25, 80, 110, 143, 443]);
    // The change itself is over.
    await_that("the scanner is blocked", || {
        lab.attacker.nmap("-sS -p 31-40", VICTIM);
        blocked(&lab) == [ATTACKER.to_string()]
    });
    lab.configure("");
    service.signal(rustix::process::Signal::HUP);
    service.await_lines("configuration reloaded", 2);
    let _shut_out = Clients::at(&lab.bystander).begin(&[25, 80, 110, 143]);
    service.await_line(&format!("blocked {BYSTANDER}"));
    drop(server);
}

/// `--observe` and balanced: reported, not blocked.
#[test]
fn observing_reports_by_the_balanced_rules() {
    let lab = Lab::new();
    lab.configure("[detection]\npreset = \"balanced\"\n");
    let mut service = Start::on("eth0").flag("--observe").begin(&lab).await_ready();
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line("more than 3 failed ports of one host in 60s");
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
}
