//! iptables as it was before nf_tables, which `update-alternatives` still offers.

use super::UNIT;
use crate::site::Site;

pub fn iptables_of_old_does_as_well(site: &mut Site) {
    // While it runs: it goes on with the kind it has begun with, and leaves none of its rules behind.
    choose(site, "legacy");
    if site.machine.run("iptables -S && ip6tables -S").code == Some(0) {
        site.machine.sh("systemctl restart tcptracker@eth0");
        assert!(rules(site, "legacy").contains("tcptracker@eth0"), "{}", rules(site, "legacy"));
        assert!(!rules(site, "nft").contains("tcptracker"), "{}", rules(site, "nft"));
        site.assert_shut_out();
    } else {
        eprintln!("this kernel has no ip_tables: it is only seen that the service says so");
        site.forget();
        let restart = site.machine.run("systemctl restart tcptracker@eth0");
        assert_ne!(restart.code, Some(0), "{restart:?}");
        site.machine.journal().await_words(UNIT, "iptables-legacy-save");
        site.machine.sh("systemctl stop tcptracker@eth0");
    }
    choose(site, "nft");
    site.machine.sh("systemctl restart tcptracker@eth0");
    assert!(!rules(site, "legacy").contains("tcptracker"), "{}", rules(site, "legacy"));
    assert!(rules(site, "nft").contains("tcptracker@eth0"), "{}", rules(site, "nft"));
    site.assert_shut_out();
}

/// Of both families; none where the kernel has none of this kind.
fn rules(site: &Site, kind: &str) -> String {
    site.machine.run(&format!("iptables-{kind}-save; ip6tables-{kind}-save")).out
}

fn choose(site: &Site, kind: &str) {
    for program in ["iptables", "ip6tables"] {
        site.machine.sh(&format!("update-alternatives --set {program} /usr/sbin/{program}-{kind}"));
    }
}
