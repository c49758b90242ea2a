//! Others at the same table: who adds rules of his own to it, who fights for the first place, and other
//! instances.

use crate::kernel::Rules;
use crate::lab::{ATTACKER, Lab, OPEN_PORT, VICTIM, VICTIM_V6};
use crate::scenarios::repairs::{block, shell, with_blocked_attacker};
use crate::tools::{await_that, run};

/// Rules made with nft(8) that iptables cannot express keep it from showing any of the table's: that is no
/// damage, what is damaged is seen all the same, and nothing is left in the end.
#[test]
fn rules_that_iptables_cannot_show_keep_nothing_from_being_seen() {
    const NATIVE: &str = "ct state vmap { established : accept, invalid : drop }";
    for backend in ["ipset", "iptables"] {
        let lab = Lab::new();
        lab.configure(&format!("firewall.backend = \"{backend}\"\n"));
        let mut service = lab.start();
        block(&lab);
        let listed = |table: &str| {
            run(lab.victim.command("nft").args(["list", "table", table, "filter"])).ok()
        };
        let jumps = |table: &str| listed(table).matches("jump tcptracker").count();
        for (number, damage) in [
            &format!("nft insert rule ip filter INPUT '{NATIVE}'"),
            &format!("nft insert rule ip6 filter INPUT '{NATIVE}'"),
            "nft flush chain ip6 filter FORWARD",
            "nft flush chain ip filter tcptracker",
            "nft insert rule ip filter INPUT ct state new accept",
        ]
        .into_iter()
        .enumerate()
        {
            shell(&lab.victim, damage);
            service.await_lines("mended: ", number + 1);
            service.await_lines("enforcing: all is well again", number + 1);
            let victim = if damage.contains("ip6") { VICTIM_V6 } else { VICTIM };
            lab.attacker.assert_cannot_reach(victim, OPEN_PORT);
        }
        assert_eq!(lab.metric(r#"tcptracker_enforced{family="ipv4"}"#), 2);
        // What a dead instance has left is found, and blocks come and go.
        service.crash();
        let mut service = lab.start();
        lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
        lab.bus.call("eth0", &["Unblock", "s", &ATTACKER.to_string()]).ok();
        lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
        assert_eq!(["ip", "ip6"].map(jumps), [2, 2]);
        assert_eq!(service.lines_with("mended: "), Vec::<String>::new());
        assert_eq!(service.stop().code(), Some(0));
        for table in ["ip", "ip6"] {
            let left = listed(table);
            assert!(!left.contains("tcptracker"), "{left}");
            assert!(left.contains("ct state vmap"), "{left}");
        }
        assert_eq!(Rules::of(&lab.victim).sets, "");
    }
}

/// The chain is the instances': who puts a rule of his own in front of theirs lets in who is blocked.
#[test]
fn a_rule_of_others_in_front_of_ours() {
    for backend in ["ipset", "iptables"] {
        let lab = Lab::new();
        lab.configure(&format!("firewall.backend = \"{backend}\"\n"));
        let mut service = lab.start();
        block(&lab);
        let others = "tcptracker -s 10.77.0.0/24 -j ACCEPT";
        // One family after the other: who has just looked at the one would find the other's only, and mend both.
        for (number, family, damage) in [
            (1, "ipv4", format!("iptables -I {others}")),
            (2, "ipv6", "ip6tables -I tcptracker -j RETURN".to_owned()),
        ] {
            shell(&lab.victim, &damage);
            service.await_line(&format!("mended: rule ({family}) behind another's"));
            service.await_lines("enforcing: all is well again", number);
        }
        lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
        lab.attacker.assert_cannot_reach(VICTIM_V6, OPEN_PORT);
        lab.bystander.assert_reaches(VICTIM, OPEN_PORT);
        service.clear_log();
        // Nor is one that comes later behind it.
        lab.bus.call("eth0", &["Block", "sts", "10.77.0.3", "3600", "comes later"]).ok();
        lab.bystander.assert_cannot_reach(VICTIM, OPEN_PORT);
        assert_eq!(service.lines_with("behind another's"), Vec::<String>::new());
        // It is theirs, and stays.
        let rules = lab.victim_rules();
        assert!(rules.contains(&format!("-A {others}\n")), "{rules}");
        shell(&lab.victim, &format!("iptables -D {others}; ip6tables -D tcptracker -j RETURN"));
        assert_eq!(service.stop().code(), Some(0));
        lab.assert_untouched();
    }
}

/// Two programs that both want to be first must not keep each other busy for ever.
#[test]
fn a_fight_for_the_first_place_is_bounded_and_told() {
    let (lab, mut service) = with_blocked_attacker();
    let rival = "while :; do iptables -S INPUT 1 | grep -q tcptracker || { sleep 0.05; continue; }; \
                 iptables -D INPUT -p tcp -j ACCEPT 2>/dev/null; iptables -I INPUT -p tcp -j ACCEPT; done";
    let mut rival = lab.victim.command("sh").args(["-c", rival]).spawn().unwrap();
    service.await_line("degraded: another program keeps changing what blocks are enforced with");
    let mended = service.lines_with("mended: ").len();
    // The rival may have been back before a mend was looked at.
    assert!(mended < 8, "{mended}");
    assert_eq!(lab.bus.property("State").1, "degraded");
    // It is not given up.
    service.await_lines("mended: ", mended + 1);
    assert_eq!(lab.bus.property("State").1, "degraded", "one mend is not peace");
    let _ = rival.kill();
    let _ = rival.wait();
    // It may have lost the last round or won it.
    if Rules::of(&lab.victim).chain("INPUT")[0].first() != Some(&"-j tcptracker") {
        service.await_lines("mended: ", mended + 2);
    }
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    assert_eq!(service.stop().code(), Some(0));
}

/// Each mends its own rule, whoever is first the hooks and the chain.
#[test]
fn instances_mend_what_they_share_together() {
    let lab = Lab::new();
    let [mut first, mut second] = lab.start_on_two_links();
    block(&lab);
    for round in 1..=3 {
        shell(&lab.victim, "nft flush ruleset");
        for service in [&mut first, &mut second] {
            service.await_line("mended: ");
            service.clear_log();
        }
        // One may have had to look twice, while the other mended what they share.
        await_that(&format!("all is back in round {round}"), || {
            let rules = Rules::of(&lab.victim);
            rules.chain("tcptracker").iter().all(|chain| chain.len() == 2)
                && rules.chain("INPUT").iter().all(|hook| *hook == ["-j tcptracker"])
        });
        lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    }
    assert_eq!(first.stop().code(), Some(0));
    assert_eq!(second.stop().code(), Some(0));
    let left = Rules::of(&lab.victim);
    assert!(!left.ipv4.iter().any(|rule| rule.contains("tcptracker")), "{left:#?}");
}
