//! The service detects, reports and repairs changes that other programs make to its rules and sets.

use rustix::process::Signal;

use crate::journal::Journal;
use crate::kernel::Rules;
use crate::lab::{ATTACKER, ATTACKER_V6, Lab, OPEN_PORT, VICTIM, VICTIM_V6};
use crate::namespace::Namespace;
use crate::service::{Service, Start};
use crate::tools::{await_that, install_script, run};

/// The message ID of a repair.
const REPAIRED: &str = "19a8d40cb80c4be493ce1d5c7abcd599";

/// Creates a lab in which the attacker's IPv4 and IPv6 addresses and another network are blocked.
pub(super) fn with_blocked_attacker() -> (Lab, Service) {
    let lab = Lab::new();
    let service = lab.start();
    block(&lab);
    (lab, service)
}

pub(super) fn block(lab: &Lab) {
    for address in [&ATTACKER.to_string(), &ATTACKER_V6.to_string(), "198.51.100.0/24"] {
        lab.bus.call("eth0", &["Block", "sts", address, "3600", "test"]).ok();
    }
}

/// Runs a shell command on a host.
#[track_caller]
pub(super) fn shell(host: &Namespace, script: &str) {
    run(host.command("sh").args(["-ec", script])).ok();
}

/// Runs a script while the service is stopped, so that the service sees all changes at once.
/// Otherwise it could repair the first change before the script makes the second.
#[track_caller]
pub(super) fn damage_at_once(lab: &Lab, service: &Service, script: &str) {
    // Do not stop the service during a check: it would report only a part of the damage and repair
    // all of it.
    await_that("the firewall thread is idle", || {
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

/// What damage means for the blocks, as the state says.
const NONE: &str = "blocks are not enforced";
const SOME: &str = "some blocks are not enforced";
const MAYBE: &str = "blocks may not be enforced";

/// Asserts that the service repairs the damage, reports it in the log and in its state, and blocks
/// the attacker again.
#[track_caller]
fn assert_repairs(damage: &str, effect: &str, found: &[&str]) {
    let (lab, mut service) = with_blocked_attacker();
    let before = Rules::of(&lab.victim);
    damage_at_once(&lab, &service, damage);
    // Rules and sets are repaired one after the other.
    service.await_until(&format!("repairs of {found:?} after {damage:?}"), |service| {
        let lines: Vec<&String> =
            service.log().iter().filter(|line| line.contains("repaired firewall: ")).collect();
        found.iter().all(|part| lines.iter().any(|line| line.contains(part))).then_some(())
    });
    service.await_line(&format!("degraded: {effect}: "));
    service.await_line("enforcing: no problems");
    Rules::of(&lab.victim).assert_enforced_for(&["eth0"]);
    for set in ["tcptracker-eth0-v4", "tcptracker-eth0-v6"] {
        assert_eq!(members(&lab, set), members_in(&before.sets, set), "{damage}");
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

/// Returns the members of a set. Asserts that each one has between 3000 s and 3600 s left.
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
            let nomatch = if rest.contains("nomatch") { " nomatch" } else { "" };
            Some(format!("{network}{nomatch}"))
        })
        .collect();
    members.sort_unstable();
    members
}

#[test]
fn repairs_flushed_rules() {
    assert_repairs(
        "iptables -F; ip6tables -F",
        NONE,
        &[
            "hook INPUT (ipv4) was missing",
            "hook FORWARD (ipv6) was missing",
            "rule (ipv4) was missing",
        ],
    );
}

#[test]
fn repairs_removed_rules_and_chains() {
    assert_repairs(
        "iptables -F; iptables -X; ip6tables -F; ip6tables -X",
        NONE,
        &["chain tcptracker (ipv6) was missing"],
    );
}

#[test]
fn repairs_after_iptables_restore() {
    assert_repairs(
        "printf '*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
         -A INPUT -i lo -j ACCEPT\nCOMMIT\n' | iptables-restore",
        NONE,
        &["chain tcptracker (ipv4) was missing"],
    );
}

#[test]
fn repairs_flushed_nft_ruleset() {
    assert_repairs(
        "nft flush ruleset",
        NONE,
        &["chain tcptracker (ipv4) was missing", "chain tcptracker (ipv6) was missing"],
    );
}

#[test]
fn repairs_removed_rule() {
    assert_repairs("iptables -F tcptracker", NONE, &["rule (ipv4) was missing"]);
}

#[test]
fn repairs_replaced_rule() {
    assert_repairs(
        "iptables -R tcptracker 1 -m comment --comment tcptracker@eth0 -j ACCEPT",
        NONE,
        &["rule (ipv4) was missing or changed"],
    );
}

#[test]
fn repairs_removed_hook() {
    assert_repairs("ip6tables -D INPUT -j tcptracker", NONE, &["hook INPUT (ipv6) was missing"]);
}

#[test]
fn repairs_hook_below_another_rule() {
    assert_repairs(
        "iptables -I INPUT -p tcp -j ACCEPT; ip6tables -I INPUT -p tcp -j ACCEPT",
        MAYBE,
        &["hook INPUT (ipv4) was not the first rule"],
    );
}

#[test]
fn repairs_flushed_set() {
    assert_repairs("ipset flush tcptracker-eth0-v4", SOME, &["2 set members (ipv4) were missing"]);
}

#[test]
fn repairs_destroyed_set() {
    assert_repairs(
        "iptables -F tcptracker; ipset destroy tcptracker-eth0-v4",
        NONE,
        &["set (ipv4) was missing", "rule (ipv4) was missing"],
    );
}

#[test]
fn repairs_set_of_wrong_type() {
    assert_repairs(
        "iptables -F tcptracker; ipset destroy tcptracker-eth0-v4; \
         ipset create tcptracker-eth0-v4 hash:ip",
        NONE,
        &["set (ipv4) was missing or of another type"],
    );
}

#[test]
fn repairs_swapped_set() {
    assert_repairs(
        "ipset create other hash:net timeout 60 counters; ipset swap other tcptracker-eth0-v4; \
         ipset destroy other",
        NONE,
        &["set (ipv4) was missing or of another type"],
    );
}

#[test]
fn repairs_removed_and_unexpected_members() {
    assert_repairs(
        "ipset del tcptracker-eth0-v4 10.77.0.1; ipset add tcptracker-eth0-v4 10.77.0.3",
        SOME,
        &["1 set member (ipv4) was missing, 1 was unexpected"],
    );
}

#[test]
fn repairs_member_turned_into_nomatch() {
    assert_repairs(
        "ipset del tcptracker-eth0-v4 10.77.0.1; \
         ipset add tcptracker-eth0-v4 10.77.0.1 nomatch timeout 3600",
        SOME,
        &["1 set member (ipv4) was missing"],
    );
}

#[test]
fn repairs_shortened_member_timeout() {
    assert_repairs(
        "ipset add -exist tcptracker-eth0-v4 10.77.0.1 timeout 60",
        SOME,
        &["1 set member (ipv4) was missing"],
    );
}

/// The service does not list a large set at every check, but still detects a missing member.
#[test]
fn repairs_large_set() {
    let lab = Lab::new();
    let mut service = lab.start();
    service.crash();
    // Members without saved blocks, as if the service had added them just before the crash.
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
        (
            "ipset del tcptracker-eth0-v4 10.77.0.1",
            vec!["repaired firewall: 1 set member (ipv4) was missing"],
        ),
        (
            "ipset flush tcptracker-eth0-v4",
            vec!["repaired firewall: 20001 set members (ipv4) were missing"],
        ),
        (
            "ipset del tcptracker-eth0-v4 10.77.0.1; ipset add tcptracker-eth0-v4 10.77.0.3",
            vec!["repaired firewall: 1 set member (ipv4) was missing, 1 was unexpected"],
        ),
        (
            "ipset create other hash:net timeout 2147483 counters maxelem 524288; \
             ipset swap other tcptracker-eth0-v4; ipset destroy other",
            vec!["repaired firewall: 20001 set members (ipv4) were missing"],
        ),
        (
            "iptables -F tcptracker; ipset rename tcptracker-eth0-v4 other; ipset destroy other",
            vec![
                "repaired firewall: rule (ipv4) was missing or changed",
                "repaired firewall: set (ipv4) was missing",
            ],
        ),
    ] {
        service.clear_log();
        damage_at_once(&lab, &service, damage);
        for line in found {
            service.await_line(line);
        }
        lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
        assert_eq!(lab.metric(r#"tcptracker_enforced{family="ipv4"}"#), 20_001);
    }
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// While a repair fails, state, health and metrics show it. The service retries until the repair
/// succeeds.
#[test]
fn failed_repair_is_reported_and_retried() {
    let lab = Lab::new();
    // An iptables-restore that fails while a file exists.
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
    service.await_line(
        "degraded: blocks are not enforced: hook INPUT (ipv4) was missing; repair failed: ",
    );
    // Skip signals of the earlier blocks, which may arrive late.
    assert_eq!(signals.next_named("StateChanged").1[0], "degraded");
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
    assert_eq!(lab.bus.property("State").1, "degraded");
    let (code, body) = lab.victim.http_get(8081, "/health");
    assert!(code == 503 && body.contains("hook INPUT (ipv4) was missing"), "{code} {body}");
    assert_eq!(lab.metric(r#"tcptracker_blocked{family="ipv4"}"#), 2);
    assert_eq!(lab.metric(r#"tcptracker_enforced{family="ipv4"}"#), 0);
    assert_eq!(lab.metric(r#"tcptracker_enforced{family="ipv6"}"#), 1);
    assert_eq!(service.lines_with("repaired firewall: "), Vec::<String>::new());

    std::fs::remove_file(&broken).unwrap();
    service.await_line("repaired firewall: hook INPUT (ipv4) was missing");
    service.await_line("enforcing: no problems");
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    assert_eq!(lab.metric(r#"tcptracker_enforced{family="ipv4"}"#), 2);
    assert_eq!(service.stop().code(), Some(0));
}

#[test]
fn repair_has_its_own_journal_entry() {
    let lab = Lab::new();
    let journal = Journal::new(&lab);
    let mut service = Start::on("eth0").through(journal.wrapper()).begin(&lab).await_ready();
    block(&lab);
    shell(&lab.victim, "iptables -F INPUT");
    let entry = journal.next_with("MESSAGE_ID", REPAIRED);
    assert_eq!(entry["TCPTRACKER_INTERFACE"], "eth0");
    assert_eq!(entry["TCPTRACKER_REASON"], "hook INPUT (ipv4) was missing");
    assert_eq!(entry["MESSAGE"], "repaired firewall: hook INPUT (ipv4) was missing");
    assert_eq!(service.stop().code(), Some(0));
}

/// The service's own changes must not trigger checks of the rules.
#[test]
fn own_changes_do_not_trigger_repeated_checks() {
    let lab = Lab::new();
    let log = lab.path("checks");
    let shim = lab.path("shim");
    std::fs::create_dir(&shim).unwrap();
    let file = shim.join("iptables-nft-save");
    let script = format!(
        "#!/bin/sh\necho check >> {}\nexec /usr/sbin/iptables-nft-save \"$@\"\n",
        log.display()
    );
    install_script(&file, &script);
    let path = format!("{}:{}", shim.display(), std::env::var("PATH").unwrap());
    let mut service = Start::on("eth0").env("PATH", &path).begin(&lab).await_ready();
    shell(&lab.victim, "iptables -F INPUT");
    service.await_line("repaired firewall: ");
    let checks = || std::fs::read_to_string(&log).unwrap().lines().count();
    // Blocks and expiries change no rule. Each is followed by at least one check of the sets.
    let before = checks();
    for number in 1..=3 {
        lab.bus.call("eth0", &["Block", "sts", "10.77.0.1", "1", "for a moment"]).ok();
        service.await_lines("unblocked 10.77.0.1: expired", number);
    }
    assert!(checks() <= before + 1, "{} checks, {before} before the blocks", checks());
    assert_eq!(service.stop().code(), Some(0));
}

/// A shim for a program of iptables that hangs while a file exists.
fn hanging(lab: &Lab, programs: &[&str]) -> (String, std::path::PathBuf) {
    let (shim, hangs) = (lab.path("shim"), lab.path("hangs"));
    std::fs::create_dir(&shim).unwrap();
    for program in programs {
        let script = format!(
            "#!/bin/sh\nwhile [ -e {} ]; do sleep 0.1; done\nexec /usr/sbin/{program} \"$@\"\n",
            hangs.display()
        );
        install_script(&shim.join(program), &script);
    }
    (format!("{}:{}", shim.display(), std::env::var("PATH").unwrap()), hangs)
}

/// While a program hangs that rules need, blocks in sets go on, the watchdog is fed, and the state
/// names the program.
#[test]
fn hanging_program_stops_no_block() {
    let lab = Lab::new();
    let (path, hangs) = hanging(&lab, &["iptables-nft-save"]);
    let start = Start::on("eth0").env("PATH", &path).env("WATCHDOG_USEC", "3000000");
    let mut service = start.begin(&lab).await_ready();
    std::fs::write(&hangs, "").unwrap();
    shell(&lab.victim, "iptables -F FORWARD");

    let degraded = "degraded: cannot look after the firewall rules: `iptables-nft-save -c -t filter` \
                    did not end within 6 s and was killed; find out what it waits for";
    service.await_line(degraded);
    let (code, body) = lab.victim.http_get(8081, "/health");
    assert!(code == 503 && body.contains("did not end within 6 s"), "{code} {body}");
    // Enough to be late if a block, a call or a heartbeat waited for the program.
    for number in 1..=3 {
        let begun = std::time::Instant::now();
        block(&lab);
        lab.cli(&format!("unblock {ATTACKER}")).ok();
        lab.attacker.nmap(&format!("-sS -p {number}-1{number}"), VICTIM_V6);
        assert!(begun.elapsed() < crate::tools::TIMEOUT / 2, "{:?}", begun.elapsed());
        let so_far = service.notifications().iter().filter(|sent| *sent == "WATCHDOG=1").count();
        service.await_notifications("WATCHDOG=1", so_far + 3);
    }
    lab.attacker.assert_cannot_reach(VICTIM_V6, OPEN_PORT);
    assert_eq!(service.lines_with("did not end within").len(), 1, "logged once");
    assert_eq!(service.lines_with("threads not responding"), Vec::<String>::new());

    std::fs::remove_file(&hangs).unwrap();
    service.await_line("repaired firewall: hook FORWARD (ipv4) was missing");
    service.await_line("enforcing: no problems");
    assert_eq!(lab.victim.http_get(8081, "/health").0, 200);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// The back end with one rule per address needs a program for each block. Calls get an error after a
/// deadline, and what came too late is undone.
#[test]
fn hanging_program_delays_calls_of_the_iptables_backend_for_a_limited_time() {
    let lab = Lab::new();
    lab.configure("firewall.backend = \"iptables\"\n");
    let (path, hangs) = hanging(&lab, &["iptables-nft"]);
    let start = Start::on("eth0").env("PATH", &path).env("WATCHDOG_USEC", "3000000");
    let mut service = start.begin(&lab).await_ready();
    std::fs::write(&hangs, "").unwrap();
    let refused = lab.cli("block 198.51.100.1");
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.err.contains("has not ended for more than 6 s"), "{refused:?}");
    // The next calls do not wait.
    let begun = std::time::Instant::now();
    for _ in 0..20 {
        assert_eq!(lab.cli("block 198.51.100.2").code, Some(1));
    }
    assert!(begun.elapsed() < std::time::Duration::from_secs(12), "{:?}", begun.elapsed());
    assert_eq!(lab.bus.list(), []);
    service.await_line("the rules are not looked after until it ends");
    assert_eq!(lab.bus.property("State").1, "degraded");
    let fed = service.notifications().iter().filter(|sent| *sent == "WATCHDOG=1").count();
    service.await_notifications("WATCHDOG=1", fed + 3);

    std::fs::remove_file(&hangs).unwrap();
    service.await_line("enforcing: no problems");
    await_that("the rule that came too late is gone", || {
        Rules::of(&lab.victim).chain("tcptracker")[0].is_empty()
    });
    lab.cli("block 198.51.100.1").ok();
    assert_eq!(Rules::of(&lab.victim).chain("tcptracker")[0].len(), 1);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}
