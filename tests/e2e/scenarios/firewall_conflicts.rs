//! Other programs that change the same firewall table: foreign rules, competition for the first
//! position, and other instances.

use crate::kernel::Rules;
use crate::lab::{ATTACKER, Lab, OPEN_PORT, VICTIM, VICTIM_V6};
use crate::scenarios::repairs::{block, shell, with_blocked_attacker};
use crate::tools::{await_that, run};

/// iptables-save shows no rule of a table that contains nft(8) rules it cannot express. Such rules
/// are not damage; real damage is still repaired, and the stop still removes everything.
#[test]
fn native_nft_rules_do_not_prevent_repairs() {
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
            service.await_lines("repaired firewall: ", number + 1);
            service.await_lines("enforcing: no problems", number + 1);
            let victim = if damage.contains("ip6") { VICTIM_V6 } else { VICTIM };
            lab.attacker.assert_cannot_reach(victim, OPEN_PORT);
        }
        assert_eq!(lab.metric(r#"tcptracker_enforced{family="ipv4"}"#), 2);
        // A start after a crash adopts the blocks, and unblocking works.
        service.crash();
        let mut service = lab.start();
        lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
        lab.bus.call("eth0", &["Unblock", "s", &ATTACKER.to_string()]).ok();
        lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
        assert_eq!(["ip", "ip6"].map(jumps), [2, 2]);
        assert_eq!(service.lines_with("repaired firewall: "), Vec::<String>::new());
        assert_eq!(service.stop().code(), Some(0));
        for table in ["ip", "ip6"] {
            let left = listed(table);
            assert!(!left.contains("tcptracker"), "{left}");
            assert!(left.contains("ct state vmap"), "{left}");
        }
        assert_eq!(Rules::of(&lab.victim).sets, "");
    }
}

/// A foreign rule at the head of the chain `tcptracker` could accept packets of blocked sources.
#[test]
fn own_rule_moves_in_front_of_a_foreign_rule() {
    for backend in ["ipset", "iptables"] {
        let lab = Lab::new();
        lab.configure(&format!("firewall.backend = \"{backend}\"\n"));
        let mut service = lab.start();
        block(&lab);
        let foreign = "tcptracker -s 10.77.0.0/24 -j ACCEPT";
        // One family after the other: otherwise one repair could cover both, with one message.
        for (number, family, damage) in [
            (1, "ipv4", format!("iptables -I {foreign}")),
            (2, "ipv6", "ip6tables -I tcptracker -j RETURN".to_owned()),
        ] {
            shell(&lab.victim, &damage);
            service.await_line(&format!("repaired firewall: rule ({family}) was not first"));
            service.await_lines("enforcing: no problems", number);
        }
        lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
        lab.attacker.assert_cannot_reach(VICTIM_V6, OPEN_PORT);
        lab.bystander.assert_reaches(VICTIM, OPEN_PORT);
        service.clear_log();
        // The rule of a later block is also in front of the foreign rule.
        lab.bus.call("eth0", &["Block", "sts", "10.77.0.3", "3600", "comes later"]).ok();
        lab.bystander.assert_cannot_reach(VICTIM, OPEN_PORT);
        assert_eq!(service.lines_with("was not first"), Vec::<String>::new());
        // The foreign rule stays.
        let rules = lab.victim_rules();
        assert!(rules.contains(&format!("-A {foreign}\n")), "{rules}");
        shell(&lab.victim, &format!("iptables -D {foreign}; ip6tables -D tcptracker -j RETURN"));
        assert_eq!(service.stop().code(), Some(0));
        lab.assert_untouched();
    }
}

/// Two programs that both insist on the first position must not keep each other busy forever.
#[test]
fn competition_for_the_first_position_is_bounded_and_reported() {
    let (lab, mut service) = with_blocked_attacker();
    let competitor = "while :; do iptables -S INPUT 1 | grep -q tcptracker || { sleep 0.05; continue; }; \
                 iptables -D INPUT -p tcp -j ACCEPT 2>/dev/null; iptables -I INPUT -p tcp -j ACCEPT; done";
    let mut competitor = lab.victim.command("sh").args(["-c", competitor]).spawn().unwrap();
    service.await_line("degraded: another program keeps undoing repairs of the firewall");
    let repairs = service.lines_with("repaired firewall: ").len();
    // The other program may undo a repair before the service has verified it.
    assert!(repairs < 8, "{repairs}");
    assert_eq!(lab.bus.property("State").1, "degraded");
    // The service keeps repairing.
    service.await_lines("repaired firewall: ", repairs + 1);
    assert_eq!(
        lab.bus.property("State").1,
        "degraded",
        "a single repair must not end the degraded state"
    );
    let _ = competitor.kill();
    let _ = competitor.wait();
    // If the other program acted last, one more repair follows, which is not reported.
    await_that("the hook is first again", || {
        Rules::of(&lab.victim).chain("INPUT")[0].first() == Some(&"-j tcptracker")
    });
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    assert_eq!(service.stop().code(), Some(0));
}

/// Each instance repairs its own rule; the first one also repairs hooks and chain.
#[test]
fn instances_repair_shared_rules_together() {
    let lab = Lab::new();
    let [mut first, mut second] = lab.start_on_two_links();
    block(&lab);
    for round in 1..=3 {
        shell(&lab.victim, "nft flush ruleset");
        for service in [&mut first, &mut second] {
            service.await_line("repaired firewall: ");
            service.clear_log();
        }
        // One instance may need a second pass while the other repairs the shared parts.
        await_that(&format!("all rules are repaired in round {round}"), || {
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
