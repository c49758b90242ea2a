//! `detection.preset = "balanced"`: failed probes count and are reported; invisible replies do not
//! count as failures.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::time::Duration;

use super::legitimate_clients::start;
use crate::clients::{Clients, Server};
use crate::flood::Flood;
use crate::lab::{ATTACKER, Lab, OPEN_PORT, VICTIM};
use crate::service::{Service, Start};
use crate::tools::run;

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
fn refused_ports_block_and_are_reported_with_their_outcome() {
    let lab = Lab::new();
    let mut service = balanced(&lab);
    lab.attacker.nmap("-sS -p 1-4", VICTIM);
    service.await_line(&format!("blocked {ATTACKER} for 1h (offence 1)"));
    let report = service.await_line("vertical port scan by");
    assert!(report.contains(" refused"), "{report}");
    assert!(report.contains("more than 3 failed ports of one host in 60s"), "{report}");
    let why = lab.bus.why("10.77.0.1").to_string();
    assert!(why.contains("refused") && why.contains("failed ports"), "{why}");
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    lab.bystander.assert_reaches(VICTIM, OPEN_PORT);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// A firewall that drops causes unanswered probes. A firewall that rejects answers with ICMP, also
/// for open ports.
#[test]
fn probes_filtered_by_a_firewall_count_as_failed() {
    for (target, outcome) in [("DROP", "unanswered"), ("REJECT", "refused")] {
        let lab = Lab::new();
        let server = Server::on(&lab, &[11, 12, 13, 14, 15]);
        rule(&lab, &format!("-A INPUT -p tcp --dport 11:30 -j {target}"));
        let mut service = balanced(&lab);
        lab.attacker.nmap("-sS -p 11-15", VICTIM);
        service.await_line(&format!("blocked {ATTACKER}"));
        let report = service.await_line("vertical port scan by");
        assert!(report.contains(outcome), "{report}");
        drop(server);
    }
}

#[test]
fn half_open_and_stealth_scans_of_open_ports_block() {
    for scan in ["-sS", "-sF", "-sX", "-sN"] {
        let lab = Lab::new();
        let open: Vec<TcpListener> = (21..=28).map(|port| lab.victim.listen(port)).collect();
        let mut service = balanced(&lab);
        lab.attacker.nmap(&format!("{scan} -p 21-28"), VICTIM);
        service.await_line(&format!("blocked {ATTACKER}"));
        let report = service.await_line("port scan by");
        assert!(report.contains("more than 3 failed ports of one host in 60s"), "{report}");
        assert_eq!(report.contains("half-open"), scan == "-sS", "{report}");
        drop(open);
    }
}

/// The SYNs of a connect scan are those of an operating system: the eighth closed port blocks at once.
#[test]
fn connect_scan_blocks_at_the_eighth_closed_port() {
    let lab = Lab::new();
    let open: Vec<TcpListener> = (21..=27).map(|port| lab.victim.listen(port)).collect();
    let mut service = balanced(&lab);
    lab.attacker.nmap("-sT -p 21-35", VICTIM);
    service.await_line(&format!("blocked {ATTACKER}"));
    let report = service.await_line("vertical port scan by");
    assert_eq!(report.matches(" refused").count(), 8, "{report}");
    drop(open);
}

/// A connect scan of few ports, or of mostly open ports, blocks after 90 seconds, once the detector has ruled out an
/// honest client. It wakes up for that although no segment arrives.
#[test]
fn connect_scan_of_few_ports_blocks_later() {
    for (ports, outcomes) in [("31-34", [" refused", ""]), ("21-28", [" refused", " answered"])] {
        let lab = Lab::new();
        let open: Vec<TcpListener> = (21..=27).map(|port| lab.victim.listen(port)).collect();
        let mut service = balanced(&lab);
        lab.attacker.nmap(&format!("-sT -p {ports}"), VICTIM);
        let scan = "vertical port scan by";
        let report = service.await_line_within(Duration::from_secs(120), scan);
        assert!(outcomes.iter().all(|outcome| report.contains(outcome)), "{report}");
        service.await_line(&format!("blocked {ATTACKER}"));
        drop(open);
    }
}

/// A single probe of a trap port blocks in both presets, and so does no other port.
#[test]
fn single_probe_of_a_trap_port_blocks() {
    for preset in ["classic", "balanced"] {
        let lab = Lab::new();
        lab.configure(&format!("[detection]\npreset = \"{preset}\"\ntrap_ports = [23, 2323]\n"));
        let mut service = Start::on("eth0").begin(&lab).await_ready();
        lab.bystander.nmap("-sS -p 24", VICTIM);
        lab.attacker.nmap("-sS -p 2323", VICTIM);
        service.await_line(&format!("blocked {ATTACKER}"));
        let report = service.await_line("trap port scan by");
        assert!(report.contains("port 2323; a trap port (detection.trap_ports)"), "{report}");
        assert_eq!(blocked(&lab), [ATTACKER.to_string()]);
        let why = lab.bus.why("10.77.0.1").to_string();
        assert!(why.contains("trap scan: ports 2323"), "{why}");
    }
}

/// `nmap --scanflags` with a mix that has a name in no scan.
#[test]
fn scan_with_any_flags_blocks() {
    for preset in ["classic", "balanced"] {
        let lab = Lab::new();
        lab.configure(&format!("[detection]\npreset = \"{preset}\"\n"));
        let mut service = Start::on("eth0").begin(&lab).await_ready();
        lab.attacker.nmap("-sF --scanflags PSHURG -p 1-8", VICTIM);
        service.await_line(&format!("blocked {ATTACKER}"));
        service.await_line("stealth port scan by");
    }
}

/// The victim is a gateway. The scan tries one port on 40 forwarded hosts, of which 10 listen.
#[test]
fn sweep_of_forwarded_hosts_blocks() {
    let lab = Lab::new();
    let inner = lab.add_forwarded_host();
    rule(&lab, "-P FORWARD ACCEPT");
    for last in 100..140 {
        inner.ip(&format!("addr add 10.78.0.{last}/24 dev eth0"));
    }
    let open: Vec<TcpListener> = inner.inside(|| {
        (100..110)
            .map(|last| TcpListener::bind((Ipv4Addr::new(10, 78, 0, last), 22)).unwrap())
            .collect()
    });
    let mut service = balanced(&lab);
    let hosts = "10.78.0.100-139";
    run(lab.attacker.command("nmap").args(["-n", "-Pn", "-sS", "-p", "22", hosts])).ok();
    service.await_line(&format!("blocked {ATTACKER}"));
    let report = service.await_line("sweep port scan by");
    assert!(report.contains(" and others: port 22 "), "{report}");
    assert!(report.contains("more than 29 failed ports of several hosts in 1d"), "{report}");
    let why = lab.bus.why("10.77.0.1").to_string();
    assert!(why.contains("sweep: more than 29 ports of several hosts"), "{why}");
    drop(open);
}

/// With an asymmetric route the capture contains no replies. The service reports this, applies the
/// classic rule, and reports when replies are visible again.
#[test]
fn one_sided_capture_falls_back_to_the_classic_rule() {
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
    Clients::at(&lab.attacker).run(&[80, 443]);
    service.await_line("replies are missing from this capture");
    lab.attacker.nmap("-sS -p 80,443,8000,8001", VICTIM);
    service.await_line(&format!("blocked {ATTACKER}"));
    let report = service.await_line("vertical port scan by");
    assert!(report.contains("more than 3"), "{report}");
    Clients::at(&lab.bystander).run(&[80]);
    service.await_line("replies are visible again");
    lab.bystander.assert_reaches(VICTIM, OPEN_PORT);
    drop(server);
}

/// More failing sources than the detector tracks do not increase its memory, and a scanner among
/// them is still detected.
#[test]
fn flood_of_failures_does_not_exceed_the_memory_limit() {
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

#[test]
fn reload_switches_the_preset_in_both_directions() {
    let lab = Lab::new();
    let server = Server::on(&lab, &[25, 80, 110, 143, 443]);
    let mut service = lab.start();
    lab.configure("[detection]\npreset = \"balanced\"\n");
    service.signal(rustix::process::Signal::HUP);
    service.await_line("configuration reloaded");
    Clients::at(&lab.bystander).run(&[25, 80, 110, 143, 443]);
    lab.attacker.nmap("-sS -p 31-40", VICTIM);
    service.await_line(&format!("blocked {ATTACKER}"));
    assert_eq!(blocked(&lab), [ATTACKER.to_string()]);
    lab.configure("");
    service.signal(rustix::process::Signal::HUP);
    service.await_lines("configuration reloaded", 2);
    let _blocked_client = Clients::at(&lab.bystander).begin(&[25, 80, 110, 143]);
    service.await_line(&format!("blocked {BYSTANDER}"));
    drop(server);
}

#[test]
fn observe_mode_reports_by_balanced_rules_without_blocking() {
    let lab = Lab::new();
    lab.configure("[detection]\npreset = \"balanced\"\n");
    let mut service = Start::on("eth0").flag("--observe").begin(&lab).await_ready();
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line("more than 3 failed ports of one host in 60s");
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
}
