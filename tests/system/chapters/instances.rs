//! Several interfaces, and interface names that systemd and D-Bus escape.

use super::message;
use crate::site::Site;

/// Interface, unit, bus name, and the second octet of the network to the scanner.
const OTHERS: [(&str, &str, &str, u8); 3] = [
    ("eth1", "tcptracker@eth1.service", "org.tcptracker.Tracker1.eth1", 77),
    ("eth0.100", "tcptracker@eth0.100.service", "org.tcptracker.Tracker1.eth0_2e100", 78),
    ("wg-0", r"tcptracker@wg\x2d0.service", "org.tcptracker.Tracker1.wg_2d0", 79),
];

pub fn each_interface_has_an_instance(site: &mut Site) {
    site.mark_journal();
    for (interface, unit, name, net) in OTHERS {
        site.cable(interface, net);
        site.machine
            .sh(&format!("systemctl enable --now tcptracker@$(systemd-escape {interface})"));
        site.assert_active(unit);
        assert!(site.machine.sh("busctl --no-pager list").contains(name), "{name}");
        let machine = std::net::IpAddr::from([10, net, 0, 10]);
        site.scanner.assert_reaches(machine, 7000);
        site.scanner.nmap("-sS --top-ports 20", machine);
        let scanner = format!("10.{net}.0.66");
        let blocked = [("TCPTRACKER_INTERFACE", interface), ("TCPTRACKER_SOURCE", &scanner)];
        site.await_message(message::BLOCKED, &blocked);
        site.scanner.assert_cannot_reach(machine, 7000);
        assert_eq!(site.blocked(interface), [scanner]);
    }
    site.machine.sh("systemctl start tcptracker@any");
    site.assert_active("tcptracker@any.service");
    let firewall = site.firewall();
    let all = OTHERS.map(|(interface, ..)| interface).into_iter().chain(["eth0", "any"]);
    for interface in all {
        let comment = format!("--comment \"tcptracker@{interface}\" ");
        assert_eq!(firewall.matches(&comment).count(), 2, "{interface}: {firewall}");
    }

    // Stopping one instance does not affect the others.
    site.machine.sh("systemctl stop tcptracker@any");
    for (interface, unit, _, net) in OTHERS {
        site.scanner.assert_cannot_reach(std::net::IpAddr::from([10, net, 0, 10]), 7000);
        site.machine.sh(&format!("systemctl disable --now '{unit}'"));
        let firewall = site.firewall();
        assert!(!firewall.contains(&format!("\"tcptracker@{interface}\"")), "{firewall}");
        assert!(firewall.contains("\"tcptracker@eth0\""), "{firewall}");
    }
    site.assert_shut_out();
}

pub fn unescaped_name_is_refused_with_the_escaped_name(site: &mut Site) {
    let unit = "tcptracker@wg-0.service";
    site.mark_journal();
    let start = site.machine.run(&format!("systemctl start {unit}"));
    assert_ne!(start.code, Some(0), "{start:?}");
    site.machine.journal().await_words(unit, "tcptracker@$(systemd-escape wg-0)");
    assert_eq!(site.property(unit, "ActiveState"), "failed");
    assert_eq!(site.property(unit, "NRestarts"), "0");
    site.machine.sh(&format!("systemctl reset-failed {unit}"));
}
