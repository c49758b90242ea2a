//! What others do to the kernel's side of the blocks is noticed, told and mended.

use rustix::process::Signal;

use crate::journal::Journal;
use crate::kernel::Rules;
use crate::lab::{ATTACKER, ATTACKER_V6, Lab, OPEN_PORT, VICTIM, VICTIM_V6};
use crate::namespace::Namespace;
use crate::service::{Service, Start};
use crate::tools::{await_that, install_script, run};

/// The identifier of the message that something was mended.
const MENDED: &str = "19a8d40cb80c4be493ce1d5c7abcd599";

/// A laboratory in which the attacker is blocked, in both families, and others beside it.
pub(super) fn with_blocked_attacker() -> (Lab, Service) {
    let lab = Lab::new();
    let service = lab.start();
    block(&lab);
    (lab, service)
}

pub(super) fn block(lab: &Lab) {
    for address in [&ATTACKER.to_string(), &ATTACKER_V6.to_string(), "198.51.100.0/24"] {
        lab.bus.call("eth0", &["Block", "sts", address, "3600", "until mended"]).ok();
    }
}

/// Runs a shell command in a host.
#[track_caller]
pub(super) fn shell(host: &Namespace, script: &str) {
    run(host.command("sh").args(["-ec", script])).ok();
}

/// Does damage in several steps, of which the service sees nothing before they are all done: it would mend the
/// first before the second, on a machine that is slow to start programs.
#[track_caller]
pub(super) fn damage_at_once(lab: &Lab, service: &Service, script: &str) {
    // Nor is it stopped in the middle of a look, at the one family, the other, or a large set: it would tell of a part,
    // and mend all.
    await_that("it looks at nothing", || {
        service.signal(Signal::STOP);
        let is_idle = service.is_idle("firewall");
        if !is_idle {
            service.signal(Signal::CONT);
        }
        is_idle
    });
    shell(&lab.victim, script);
    service.signal(Signal::CONT);
}

/// Damage is found and mended, told by log and state, and the attacker shut out again.
#[track_caller]
fn assert_heals(damage: &str, found: &[&str]) {
    let (lab, mut service) = with_blocked_attacker();
    let whole = Rules::of(&lab.victim);
    damage_at_once(&lab, &service, damage);
    let line = service.await_line("mended: ");
    for part in found {
        assert!(line.contains(part), "{part:?} is not in {line:?} after {damage:?}");
    }
    service.await_line("degraded: blocks are not enforced: ");
    service.await_line("enforcing: all is well again");
    Rules::of(&lab.victim).assert_enforced_for(&["eth0"]);
    for set in ["tcptracker-eth0-v4", "tcptracker-eth0-v6"] {
        assert_eq!(members(&lab, set), members_in(&whole.sets, set), "{damage}");
    }
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    lab.attacker.assert_cannot_reach(VICTIM_V6, OPEN_PORT);
    lab.bystander.assert_reaches(VICTIM, OPEN_PORT);
    assert_eq!(lab.bus.property("State").1, "enforcing");
    assert_eq!(lab.victim.http_get(8081, "/health").0, 200);
    for metric in ["blocked", "enforced"] {
        assert_eq!(lab.metric(&format!("tcptracker_{metric}{{family=\"ipv4\"}}")), 2);
    }
    assert_eq!(service.stop().code(), Some(0));
    let rules = Rules::of(&lab.victim);
    for rules in [&rules.ipv4, &rules.ipv6] {
        assert!(!rules.iter().any(|rule| rule.contains("tcptracker")), "{rules:#?}");
    }
    assert_eq!(rules.sets, "");
}

/// The members of a set, with their times left in whole hours.
fn members(lab: &Lab, set: &str) -> Vec<String> {
    members_in(&Rules::of(&lab.victim).sets, set)
}

fn members_in(listed: &str, set: &str) -> Vec<String> {
    let of_set = listed.split("Name: ").find(|part| part.starts_with(&format!("{set}\n")));
    let of_set = of_set.unwrap_or_else(|| panic!("no {set} in {listed}"));
    let mut members: Vec<String> = of_set
        .lines()
        .skip_while(|line| *line != "Members:")
        .skip(1)
        .filter_map(|line| {
            let (network, rest) = line.split_once(" timeout ")?;
            let left: u64 = rest.split(' ').next()?.parse().unwrap();
            assert!((3000..=3600).contains(&left), "{line}");
            let exception = if rest.contains("nomatch") { " nomatch" } else { "" };
            Some(format!("{network}{exception}"))
        })
        .collect();
    members.sort_unstable();
    members
}

#[test]
fn all_rules_flushed() {
    assert_heals(
        "iptables -F; ip6tables -F",
        &["hook INPUT (ipv4) gone", "hook FORWARD (ipv6) gone", "rule (ipv4) gone"],
    );
}

#[test]
fn all_rules_and_chains_removed() {
    assert_heals(
        "iptables -F; iptables -X; ip6tables -F; ip6tables -X",
        &["chain tcptracker (ipv6) gone"],
    );
}

#[test]
fn all_rules_written_anew() {
    assert_heals(
        "printf '*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
         -A INPUT -i lo -j ACCEPT\nCOMMIT\n' | iptables-restore",
        &["chain tcptracker (ipv4) gone"],
    );
}

#[test]
fn the_whole_ruleset_flushed() {
    assert_heals(
        "nft flush ruleset",
        &["chain tcptracker (ipv4) gone", "chain tcptracker (ipv6) gone"],
    );
}

#[test]
fn the_rule_removed() {
    assert_heals("iptables -F tcptracker", &["rule (ipv4) gone"]);
}

#[test]
fn the_rule_replaced() {
    assert_heals(
        "iptables -R tcptracker 1 -m comment --comment tcptracker@eth0 -j ACCEPT",
        &["rule (ipv4) gone or changed"],
    );
}

#[test]
fn a_hook_removed() {
    assert_heals("ip6tables -D INPUT -j tcptracker", &["hook INPUT (ipv6) gone"]);
}

#[test]
fn a_hook_pushed_below_another_rule() {
    assert_heals(
        "iptables -I INPUT -p tcp -j ACCEPT; ip6tables -I INPUT -p tcp -j ACCEPT",
        &["hook INPUT (ipv4) not the first rule"],
    );
}

#[test]
fn a_set_flushed() {
    assert_heals("ipset flush tcptracker-eth0-v4", &["2 blocked (ipv4) missing"]);
}

#[test]
fn a_set_destroyed() {
    assert_heals(
        "iptables -F tcptracker; ipset destroy tcptracker-eth0-v4",
        &["set (ipv4) gone", "rule (ipv4) gone"],
    );
}

#[test]
fn a_set_of_another_kind_in_its_place() {
    assert_heals(
        "iptables -F tcptracker; ipset destroy tcptracker-eth0-v4; \
         ipset create tcptracker-eth0-v4 hash:ip",
        &["set (ipv4) gone or of another kind"],
    );
}

#[test]
fn a_set_swapped_with_an_empty_one() {
    assert_heals(
        "ipset create other hash:net timeout 60 counters; ipset swap other tcptracker-eth0-v4; \
         ipset destroy other",
        &["set (ipv4) gone or of another kind"],
    );
}

#[test]
fn a_member_removed_and_a_stranger_added() {
    assert_heals(
        "ipset del tcptracker-eth0-v4 10.77.0.1; ipset add tcptracker-eth0-v4 10.77.0.3",
        &["1 blocked (ipv4) missing and 1 not blocked there"],
    );
}

#[test]
fn a_member_made_an_exception() {
    assert_heals(
        "ipset del tcptracker-eth0-v4 10.77.0.1; \
         ipset add tcptracker-eth0-v4 10.77.0.1 nomatch timeout 3600",
        &["1 blocked (ipv4) missing"],
    );
}

#[test]
fn a_member_given_little_time() {
    assert_heals(
        "ipset add -exist tcptracker-eth0-v4 10.77.0.1 timeout 60",
        &["1 blocked (ipv4) missing"],
    );
}

/// A large set is not looked through each time; what is missing is noticed all the same.
#[test]
fn a_member_of_many_removed_and_all_of_them() {
    let lab = Lab::new();
    let mut service = lab.start();
    service.crash();
    // As if so many had been blocked in its last moment.
    let mut fill: String = (0..20_000_u32)
        .map(|number| {
            let [_, _, c, d] = number.to_be_bytes();
            format!("add tcptracker-eth0-v4 198.18.{c}.{d} timeout 7200\n")
        })
        .collect();
    fill.push_str("add tcptracker-eth0-v4 10.77.0.1 timeout 7200\n");
    std::fs::write(lab.path("fill"), fill).unwrap();
    shell(&lab.victim, &format!("ipset restore <{}", lab.path("fill").display()));
    let mut service = lab.start();
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    for (damage, found) in [
        ("ipset del tcptracker-eth0-v4 10.77.0.1", "mended: 1 blocked (ipv4) missing"),
        ("ipset flush tcptracker-eth0-v4", "mended: 20001 blocked (ipv4) missing"),
        (
            "ipset del tcptracker-eth0-v4 10.77.0.1; ipset add tcptracker-eth0-v4 10.77.0.3",
            "mended: 1 blocked (ipv4) missing and 1 not blocked there",
        ),
        (
            "ipset create other hash:net timeout 2147483 counters maxelem 524288; \
             ipset swap other tcptracker-eth0-v4; ipset destroy other",
            "mended: 20001 blocked (ipv4) missing",
        ),
        (
            "iptables -F tcptracker; ipset rename tcptracker-eth0-v4 other; ipset destroy other",
            "mended: rule (ipv4) gone or changed, set (ipv4) gone",
        ),
    ] {
        service.clear_log();
        damage_at_once(&lab, &service, damage);
        service.await_line(found);
        lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
        assert_eq!(lab.metric(r#"tcptracker_enforced{family="ipv4"}"#), 20_001);
    }
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// While it cannot be mended everybody is told, and the gap shows; then it is, by itself.
#[test]
fn what_cannot_be_mended_is_told_until_it_can() {
    let lab = Lab::new();
    // An iptables that cannot change anything while a file is there.
    let (shim, broken) = (lab.path("shim"), lab.path("broken"));
    std::fs::create_dir(&shim).unwrap();
    for program in ["iptables-nft-restore", "ip6tables-nft-restore"] {
        let file = shim.join(program);
        let script = format!(
            "#!/bin/sh\n[ ! -e {} ] || {{ echo out of order >&2; exit 4; }}\nexec /usr/sbin/{program} \"$@\"\n",
            broken.display()
        );
        install_script(&file, &script);
    }
    let path = format!("{}:{}", shim.display(), std::env::var("PATH").unwrap());
    let mut service = Start::on("eth0").env("PATH", &path).begin(&lab).await_ready();
    block(&lab);
    let signals = lab.bus.listen();

    std::fs::write(&broken, "").unwrap();
    shell(&lab.victim, "iptables -F INPUT");
    service
        .await_line("degraded: blocks are not enforced: hook INPUT (ipv4) gone; mending failed: ");
    // That somebody was blocked before may be told as late.
    assert_eq!(signals.next_named("StateChanged").1[0], "degraded");
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
    assert_eq!(lab.bus.property("State").1, "degraded");
    let (code, body) = lab.victim.http_get(8081, "/health");
    assert!(code == 503 && body.contains("hook INPUT (ipv4) gone"), "{code} {body}");
    assert_eq!(lab.metric(r#"tcptracker_blocked{family="ipv4"}"#), 2);
    assert_eq!(lab.metric(r#"tcptracker_enforced{family="ipv4"}"#), 0);
    assert_eq!(lab.metric(r#"tcptracker_enforced{family="ipv6"}"#), 1);
    assert_eq!(service.lines_with("mended: "), Vec::<String>::new());

    std::fs::remove_file(&broken).unwrap();
    service.await_line("mended: hook INPUT (ipv4) gone");
    service.await_line("enforcing: all is well again");
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    assert_eq!(lab.metric(r#"tcptracker_enforced{family="ipv4"}"#), 2);
    assert_eq!(service.stop().code(), Some(0));
}

/// The journal says what was found and mended, so that a program can tell.
#[test]
fn the_journal_has_an_entry_of_its_own_for_it() {
    let lab = Lab::new();
    let journal = Journal::new(&lab);
    let mut service = Start::on("eth0").through(journal.wrapper()).begin(&lab).await_ready();
    block(&lab);
    shell(&lab.victim, "iptables -F INPUT");
    let entry = journal.next_with("MESSAGE_ID", MENDED);
    assert_eq!(entry["TCPTRACKER_INTERFACE"], "eth0");
    assert_eq!(entry["TCPTRACKER_REASON"], "hook INPUT (ipv4) gone");
    assert_eq!(entry["MESSAGE"], "mended: hook INPUT (ipv4) gone");
    assert_eq!(service.stop().code(), Some(0));
}

/// What the service does itself is no damage.
#[test]
fn its_own_changes_are_not_looked_at_for_ever() {
    let lab = Lab::new();
    let log = lab.path("looks");
    let shim = lab.path("shim");
    std::fs::create_dir(&shim).unwrap();
    let file = shim.join("iptables-nft-save");
    let script = format!(
        "#!/bin/sh\necho look >> {}\nexec /usr/sbin/iptables-nft-save \"$@\"\n",
        log.display()
    );
    install_script(&file, &script);
    let path = format!("{}:{}", shim.display(), std::env::var("PATH").unwrap());
    let mut service = Start::on("eth0").env("PATH", &path).begin(&lab).await_ready();
    shell(&lab.victim, "iptables -F INPUT");
    service.await_line("mended: ");
    let looks = || std::fs::read_to_string(&log).unwrap().lines().count();
    // Blocks and their ends change no rule; each is followed by at least one look at the sets.
    let before = looks();
    for number in 1..=3 {
        lab.bus.call("eth0", &["Block", "sts", "10.77.0.1", "1", "for a moment"]).ok();
        service.await_lines("unblocked 10.77.0.1: its time was up", number);
    }
    assert!(looks() <= before + 1, "{} looks after {before}", looks());
    assert_eq!(service.stop().code(), Some(0));
}
