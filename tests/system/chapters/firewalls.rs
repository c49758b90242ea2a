//! iptables-legacy, which `update-alternatives` still offers.

use super::UNIT;
use crate::site::Site;

pub fn iptables_legacy_works(site: &mut Site) {
    // The running instance keeps its variant and removes its own rules when it stops.
    select_variant(site, "legacy");
    if site.machine.run("iptables -S && ip6tables -S").code == Some(0) {
        site.machine.sh("systemctl restart tcptracker@eth0");
        assert!(rules(site, "legacy").contains("tcptracker@eth0"), "{}", rules(site, "legacy"));
        assert!(!rules(site, "nft").contains("tcptracker"), "{}", rules(site, "nft"));
        site.assert_shut_out();
    } else {
        eprintln!("this kernel has no ip_tables: only the error message is checked");
        site.mark_journal();
        let restart = site.machine.run("systemctl restart tcptracker@eth0");
        assert_ne!(restart.code, Some(0), "{restart:?}");
        site.machine.journal().await_words(UNIT, "iptables-legacy-save");
        site.machine.sh("systemctl stop tcptracker@eth0");
    }
    select_variant(site, "nft");
    site.machine.sh("systemctl restart tcptracker@eth0");
    assert!(!rules(site, "legacy").contains("tcptracker"), "{}", rules(site, "legacy"));
    assert!(rules(site, "nft").contains("tcptracker@eth0"), "{}", rules(site, "nft"));
    site.assert_shut_out();
}

/// The rules of both families; empty if the kernel does not support this variant.
fn rules(site: &Site, variant: &str) -> String {
    site.machine.run(&format!("iptables-{variant}-save; ip6tables-{variant}-save")).out
}

fn select_variant(site: &Site, variant: &str) {
    for program in ["iptables", "ip6tables"] {
        site.machine
            .sh(&format!("update-alternatives --set {program} /usr/sbin/{program}-{variant}"));
    }
}
