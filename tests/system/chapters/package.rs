//! Install, upgrade, remove and purge with apt.

use std::collections::BTreeSet;
use std::path::Path;

use super::UNIT;
use crate::site::{SCANNER, Site, as_earlier_version};

/// Directories that apt or other programs change at any time.
const NOT_COMPARED: [&str; 12] = [
    "/dev",
    "/proc",
    "/run",
    "/sys",
    "/tmp",
    "/root",
    "/var/cache",
    "/var/lib/apt",
    "/var/lib/dpkg",
    "/var/lib/private",
    "/var/log",
    "/var/tmp",
];

pub fn install_an_earlier_version(site: &Site) {
    let earlier = as_earlier_version(&site.package, &site.machine.path("/root"));
    install(site, &earlier);
    assert!(version(site).ends_with("~earlier"));
    let units = site.machine.sh("systemctl list-units --all --plain --no-legend 'tcptracker@*'");
    assert_eq!(units, "", "the package must not enable an instance");
}

pub fn upgrade_keeps_blocks(site: &mut Site) {
    let before = site.property(UNIT, "MainPID");
    let blocked = site.blocked("eth0");
    site.mark_journal();
    install(site, &site.package);
    assert!(!version(site).ends_with("~earlier"));
    site.await_start_after("eth0", &before);
    site.assert_active(UNIT);
    let now = site.property(UNIT, "MainPID");
    assert_ne!(now, before, "the old process is still running");
    assert_eq!(site.machine.sh(&format!("readlink /proc/{now}/exe")), "/usr/bin/tcptracker\n");
    assert_eq!(site.blocked("eth0"), blocked);
    site.assert_shut_out();
}

pub fn remove_leaves_no_rule(site: &mut Site) {
    assert_eq!(site.blocked("eth0"), [SCANNER.to_string()]);
    // A killed instance leaves its rule; the removal of the package must also remove that rule.
    site.cable("eth1", 77);
    site.machine.sh("systemctl start tcptracker@eth1");
    site.machine.sh("systemctl kill --signal=KILL tcptracker@eth1; systemctl stop tcptracker@eth1");
    assert!(site.firewall().contains("tcptracker@eth1"), "{}", site.firewall());
    remove(site);
    site.assert_let_in();
    assert!(
        site.machine.path("/var/lib/tcptracker/eth0/tcptracker.db").exists(),
        "removal without purge must keep the database"
    );
}

/// As after an interrupted upgrade that waited for an answer about the configuration.
pub fn remove_of_a_half_installed_package_leaves_no_rule(site: &Site) {
    install(site, &site.package);
    site.machine.sh("systemctl start tcptracker@eth0");
    site.assert_shut_out();
    let package = site.package.file_name().unwrap().display();
    site.machine.sh(&format!("dpkg --unpack ./{package}"));
    site.assert_active(UNIT);
    remove(site);
    site.assert_let_in();
}

/// Runs `apt remove` and asserts that nothing remains in the kernel.
#[track_caller]
fn remove(site: &Site) {
    site.machine.sh("DEBIAN_FRONTEND=noninteractive apt-get remove --yes tcptracker");
    assert_eq!(site.property(UNIT, "ActiveState"), "inactive");
    let firewall = site.firewall();
    assert!(!firewall.contains("-j tcptracker") && !firewall.contains(":tcptracker"), "{firewall}");
    assert!(!firewall.contains("tcptracker-eth0"), "{firewall}");
}

pub fn purge_leaves_no_file(site: &Site, before: &BTreeSet<String>) {
    site.machine.sh("DEBIAN_FRONTEND=noninteractive apt-get purge --yes tcptracker");
    let after = files(site);
    let left: Vec<_> = after.difference(before).collect();
    let missing: Vec<_> = before.difference(&after).collect();
    assert!(left.is_empty() && missing.is_empty(), "left: {left:#?}\nmissing: {missing:#?}");
    let failed = site.machine.sh("systemctl list-units --all --plain --no-legend 'tcptracker@*'");
    assert_eq!(failed, "");
}

/// Every file of the machine, except in `NOT_COMPARED`.
pub fn files(site: &Site) -> BTreeSet<String> {
    let pruned: Vec<String> = NOT_COMPARED.map(|path| format!("-path {path}")).to_vec();
    let found = format!("find / \\( {} \\) -prune -o -print", pruned.join(" -o "));
    site.machine.sh(&found).lines().map(str::to_owned).collect()
}

/// `apt install ./tcptracker_*.deb`.
#[track_caller]
fn install(site: &Site, package: &Path) {
    let name = package.file_name().unwrap().to_str().unwrap();
    let there = site.machine.path("/root").join(name);
    if package != there {
        std::fs::copy(package, there).unwrap();
    }
    site.machine.sh(&format!("DEBIAN_FRONTEND=noninteractive apt-get install --yes ./{name}"));
}

#[track_caller]
fn version(site: &Site) -> String {
    site.machine.sh("dpkg-query --show --showformat='${Version}' tcptracker")
}
