//! The back end `nftables`: a table of its own, without any program.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::kernel::Rules;
use crate::lab::{ATTACKER, ATTACKER_V6, Lab, OPEN_PORT, VICTIM, VICTIM_V6};
use crate::service::Start;
use crate::tools::{await_that, run};

const CONFIG: &str = "firewall.backend = \"nftables\"\n";

/// How soon a change by another program is repaired.
const REPAIR: Duration = Duration::from_millis(100);

fn nft(lab: &Lab, words: &str) -> String {
    run(lab.victim.command("nft").args(words.split(' '))).ok()
}

fn block(lab: &Lab, address: &str) {
    lab.bus.call("eth0", &["Block", "sts", address, "3600", "test"]).ok();
}

#[test]
fn scanner_is_dropped_without_any_program() {
    let lab = Lab::new();
    // The programs of iptables are in /usr/sbin. Without them, the back end "auto" is this one.
    let mut service = Start::on("eth0").env("PATH", "/usr/bin:/bin").begin(&lab).await_ready();
    assert_eq!(lab.bus.property("Backend").1, json!("nftables"));
    assert_eq!(lab.bus.property("State").1, json!("enforcing"));
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line(&format!("WARN blocked {ATTACKER} for 1h"));
    lab.attacker.nmap("-6 -sS -p 1-10", VICTIM_V6);
    service.await_lines("WARN blocked ", 2);
    for victim in [VICTIM, VICTIM_V6] {
        lab.attacker.assert_cannot_reach(victim, OPEN_PORT);
        lab.bystander.assert_reaches(victim, OPEN_PORT);
    }
    assert_eq!(lab.metric(r#"tcptracker_enforced{family="ipv4"}"#), 1);
    assert_eq!(lab.metric(r#"tcptracker_enforced{family="ipv6"}"#), 1);
    let rules = Rules::of(&lab.victim);
    assert!(rules.table.contains("type filter hook input priority filter - 10"), "{}", rules.table);
    assert_eq!(rules.chain("tcptracker").map(|rules| rules.len()), [0, 0]);
    assert!(!rules.sets.contains("tcptracker"), "{}", rules.sets);

    // Networks may overlap, and each ends by itself.
    let source = ATTACKER.to_string();
    lab.bus.call("eth0", &["Unblock", "s", &source]).ok();
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
    block(&lab, "10.77.0.0/31");
    lab.bus.call("eth0", &["Block", "sts", &source, "2", "test"]).ok();
    service.await_line(&format!("unblocked {ATTACKER}: expired"));
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    lab.bus.call("eth0", &["Unblock", "s", "10.77.0.0/31"]).ok();
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn auto_uses_the_table_where_nft_loads_the_rules_at_boot() {
    let lab = Lab::new();
    let enable = "mount -t tmpfs none /etc/systemd/system && \
                  mkdir /etc/systemd/system/sysinit.target.wants && \
                  ln -s /lib/systemd/system/nftables.service \
                  /etc/systemd/system/sysinit.target.wants/ && exec \"$0\" \"$@\"";
    let wrapper = ["unshare", "--mount", "sh", "-c", enable];
    let mut service = Start::on("eth0").through(wrapper).begin(&lab).await_ready();
    assert_eq!(lab.bus.property("Backend").1, json!("nftables"));
    assert_eq!(service.stop().code(), Some(0));
    let mut service = lab.start();
    assert_eq!(lab.bus.property("Backend").1, json!("ipset"));
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn what_other_programs_change_in_the_table_is_repaired() {
    let lab = Lab::new();
    lab.configure(CONFIG);
    let element = format!("delete element inet tcptracker v4-32-eth0 {{ {ATTACKER} }}");
    for damage in [
        "flush ruleset",
        "delete table inet tcptracker",
        "flush chain inet tcptracker input-eth0",
        "delete chain inet tcptracker input-eth0",
        "insert rule inet tcptracker input-eth0 accept",
        "flush set inet tcptracker v4-32-eth0",
        &element,
        "add element inet tcptracker v4-32-eth0 { 10.77.0.3 }",
        "add table inet tcptracker { flags dormant; }",
    ] {
        let mut service = lab.start();
        for address in [&ATTACKER.to_string(), &ATTACKER_V6.to_string(), "198.51.100.0/24"] {
            block(&lab, address);
        }
        let damaged = Instant::now();
        nft(&lab, damage);
        let line = service.await_line("repaired firewall: ");
        let took = damaged.elapsed();
        assert!(took < 5 * REPAIR, "{damage}: {took:?}");
        for victim in [VICTIM, VICTIM_V6] {
            lab.attacker.assert_cannot_reach(victim, OPEN_PORT);
            lab.bystander.assert_reaches(victim, OPEN_PORT);
        }
        assert_eq!(lab.metric(r#"tcptracker_enforced{family="ipv4"}"#), 2, "{damage}: {line}");
        assert_eq!(lab.bus.property("State").1, json!("enforcing"), "{damage}");
        assert_eq!(service.stop().code(), Some(0));
        assert_eq!(Rules::of(&lab.victim).table, "", "{damage}");
    }
}

#[test]
fn crashed_instance_leaves_its_table_to_the_next_one() {
    let lab = Lab::new();
    lab.configure(CONFIG);
    let mut service = lab.start();
    block(&lab, &ATTACKER.to_string());
    block(&lab, "198.51.100.0/24");
    service.crash();
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    let mut service = lab.start();
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    assert_eq!(lab.bus.list().len(), 2);
    assert_eq!(lab.metric(r#"tcptracker_enforced{family="ipv4"}"#), 2);

    // The next instance may have another back end.
    for backend in ["ipset", "nftables", "iptables", "nftables"] {
        service.crash();
        lab.configure(&format!("firewall.backend = \"{backend}\"\n"));
        service = lab.start();
        lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
        await_that(&format!("only the objects of {backend} are there"), || {
            let rules = Rules::of(&lab.victim);
            let has_chain = rules.chain("tcptracker").iter().any(|rules| !rules.is_empty());
            let found = (has_chain, rules.sets.contains("tcptracker"), !rules.table.is_empty());
            found == (backend != "nftables", backend == "ipset", backend == "nftables")
        });
        assert_eq!(lab.bus.list().len(), 2);
    }
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn instances_share_the_table_and_leave_each_others_chains_alone() {
    let lab = Lab::new();
    lab.configure(CONFIG);
    let [mut first, mut second] = lab.start_on_two_links();
    block(&lab, &ATTACKER.to_string());
    assert_eq!(second.stop().code(), Some(0));
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    assert!(!Rules::of(&lab.victim).table.contains("eth1"));
    assert_eq!(first.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn reload_changes_back_end_and_options_without_losing_a_block() {
    let lab = Lab::new();
    let mut service = lab.start();
    block(&lab, &ATTACKER.to_string());
    for config in [
        "firewall.backend = \"nftables\"\n",
        "firewall.backend = \"nftables\"\nfirewall.hooks = [\"INPUT\"]\n",
        "firewall.backend = \"nftables\"\nblock.established = \"cut\"\n",
        "firewall.backend = \"ipset\"\n",
        "firewall.backend = \"nftables\"\n",
    ] {
        lab.configure(config);
        lab.bus.call("eth0", &["Reload"]).ok();
        lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
        let rules = Rules::of(&lab.victim);
        let is_native = config.contains("nftables");
        assert_eq!(rules.table.contains("input-eth0"), is_native, "{config}: {rules:#?}");
        assert_eq!(rules.table.contains("forward-eth0"), is_native && !config.contains("hooks"));
        await_that(&format!("sets are right: {config}"), || {
            Rules::of(&lab.victim).sets.contains("tcptracker") != is_native
        });
        let is_limited_to_new = rules.table.contains("tcp flags ! rst,ack");
        assert_eq!(is_limited_to_new, is_native && !config.contains("cut"), "{config}");
        assert_eq!(lab.metric(r#"tcptracker_enforced{family="ipv4"}"#), 1, "{config}");
    }
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}
