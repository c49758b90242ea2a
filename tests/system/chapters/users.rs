//! Permissions: root and group `tcptracker` may change blocks, other users may not.

use super::message;
use crate::site::Site;

/// Creates alice, a later member of the group, and bob.
pub fn create(site: &Site) {
    site.machine.sh("useradd alice && useradd bob");
}

pub fn only_group_members_may_unblock(site: &mut Site) {
    site.machine.sh("usermod -aG tcptracker alice && tcptracker block 192.0.2.7");
    site.mark_journal();
    let as_user = |site: &Site, user: &str, line: &str| {
        site.machine.run(&format!("runuser -u {user} -- {line}"))
    };
    let uid = |user: &str| site.machine.sh(&format!("id -u {user}")).trim().to_owned();
    let (alice, bob) = (uid("alice"), uid("bob"));
    let bus = "org.tcptracker.Tracker1.eth0 /org/tcptracker/Tracker1/eth0 org.tcptracker.Tracker1";

    assert!(as_user(site, "bob", &format!("busctl call {bus} List")).ok().contains("192.0.2.7"));
    let refused = as_user(site, "bob", &format!("busctl call {bus} Unblock s 192.0.2.7"));
    assert_ne!(refused.code, Some(0), "{refused:?}");
    let refused = as_user(site, "bob", "tcptracker unblock 192.0.2.7");
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("permission denied: polkit requires a password"), "{refused:?}");
    site.await_message(message::REFUSED, &[("TCPTRACKER_UID", &bob)]);
    assert!(site.blocked("eth0").contains(&"192.0.2.7".to_owned()));
    assert_eq!(site.machine.sh("systemctl is-active polkit"), "active\n", "polkit was not asked");

    as_user(site, "alice", &format!("busctl call {bus} Unblock s 192.0.2.7")).ok();
    let by_alice = [("TCPTRACKER_SOURCE", "192.0.2.7"), ("TCPTRACKER_UID", &*alice)];
    site.await_message(message::UNBLOCKED, &by_alice);
    assert!(!site.blocked("eth0").contains(&"192.0.2.7".to_owned()));
}
