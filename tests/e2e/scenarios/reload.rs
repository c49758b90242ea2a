//! Reloading the configuration: `tcptracker reload`, `Reload` and SIGHUP.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rustix::process::Signal;

use crate::flood::Flood;
use crate::kernel::Rules;
use crate::lab::{ATTACKER, Lab, OPEN_PORT, VICTIM};
use crate::service::Start;
use crate::tools::await_that;

/// Each reply compares the clocks again, and times are rounded to seconds.
const SLACK: u64 = 2;

#[test]
fn invalid_file_changes_nothing_and_is_reported_to_the_caller() {
    let lab = Lab::new();
    lab.configure("[detection]\nports = 5\n");
    let mut service = lab.start();
    let file = lab.configure("[detection]\nports = 2\n\n[block]\nenabled = maybe\n");
    let told = format!("{}:5: ", file.display());
    let answer = lab.bus.call("eth0", &["Reload"]);
    assert!(answer.err.contains(&told), "{answer:?}");
    lab.configure("[detection]\nports = 2\n\n[block]\nenabled = 7\n");
    let problem = format!("{told}block.enabled: expected true or false, found 7");
    let answer = lab.cli("reload -i eth0");
    assert_eq!(answer.code, Some(78), "{answer:?}");
    assert!(answer.err.starts_with(&format!("tcptracker: {problem}\n")), "{answer:?}");
    assert_eq!(
        lab.bus.error_of("Reload", ""),
        "org.tcptracker.Tracker1.Error.InvalidConfiguration"
    );
    service.await_line(&format!("configuration reload by root (uid 0) failed: {problem}"));
    service.signal(Signal::HUP);
    service.await_line(&format!("configuration reload by SIGHUP failed: {problem}"));
    service.await_notifications("RELOADING=1", 4);
    // Once at the start, and once after each reload, successful or not.
    service.await_notifications("READY=1", 5);

    // Neither the wrong value nor the valid one in the same file takes effect.
    lab.attacker.nmap("-sS -p 1-5", VICTIM);
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
    service.await_line("WARN blocked 10.77.0.1");
    // 4 reloads in a row delay heartbeats; that must not count as a hanging thread.
    assert_eq!(service.lines_with("no sign of life"), Vec::<String>::new());
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn changes_are_in_force_when_reload_returns() {
    let lab = Lab::new();
    lab.configure("[detection]\nports = 40\n");
    let mut service = lab.start();
    lab.bus.call("eth0", &["Block", "sts", "203.0.113.1", "0", "by hand"]).ok();
    lab.bus.call("eth0", &["Block", "sts", "198.51.100.7", "600", "too hasty"]).ok();
    // 3 ports are not a scan, but they count towards one after the reload.
    lab.attacker.nmap("-sS -p 1-3", VICTIM);
    await_that("three connections are seen", || lab.metric("tcptracker_new_connections") >= 3);
    lab.configure(
        "[detection]\nports = 3\n[exempt]\nnetworks = [\"198.51.100.0/24\"]\n\
         [block]\ndurations = [\"2h\"]\n[firewall]\nhooks = [\"INPUT\"]\ntarget = \"REJECT\"\n\
         [metrics]\nlisten = \"127.0.0.1:9099\"\n[log]\nconnections = false\n",
    );
    assert_eq!(lab.cli("reload").ok(), "reloaded the configuration of eth0\n");
    // The reply comes after every change has taken effect.
    let left: Vec<String> = lab.bus.list().into_iter().map(|block| block.0).collect();
    assert_eq!(left, ["203.0.113.1"], "the other is exempt");
    let rules = lab.victim_rules();
    assert!(!rules.contains("-A FORWARD -j tcptracker"), "{rules}");
    assert!(rules.contains("-A INPUT -j tcptracker"), "{rules}");
    assert!(rules.contains("-j REJECT --reject-with tcp-reset"), "{rules}");
    assert_eq!(lab.victim.http_get(9099, "/health").0, 200);
    service.await_line("unblocked 198.51.100.7: now exempt");
    let said = service.await_line("configuration reloaded by root (uid 0): ");
    assert!(said.contains("detection.ports = 3 (was 40)"), "{said}");
    assert!(!said.contains("tracked sources were reset"), "{said}");

    lab.attacker.nmap("-sS -p 4", VICTIM);
    service.await_line("WARN blocked 10.77.0.1 for 2h");
    lab.configure("");
    service.signal(Signal::HUP);
    service.await_line("configuration reloaded by SIGHUP: ");
    await_that("the metrics are back on the default port", || lab.victim.serves(8081));
    assert_eq!(lab.bus.list().len(), 2);
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    Rules::of(&lab.victim).assert_enforced_for(&["eth0"]);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// The presets use different capture filters. The reload replies once the capture is open again, so that
/// the first scan after it is detected.
#[test]
fn preset_change_reopens_the_capture_and_counts_the_gap() {
    let lab = Lab::new();
    let mut service = Start::on("eth0").flag("--observe").begin(&lab).await_ready();
    let gap = || {
        let (_, text) = lab.victim.http_get(8081, "/metrics");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("tcptracker_capture_gap_seconds_total "));
        line.unwrap().parse::<f64>().unwrap()
    };
    assert!(gap() < f64::EPSILON, "{}", gap());
    let mut counted = 0.0;
    for (preset, rule) in [
        ("balanced", "more than 3 failed ports of one host"),
        ("classic", "more than 3 within 60s"),
        ("balanced", "more than 3 failed ports of one host"),
    ] {
        lab.configure(&format!("[detection]\npreset = \"{preset}\"\n"));
        lab.cli("reload").ok();
        lab.attacker.nmap("-sS -p 1-10", VICTIM);
        service.await_line(rule);
        let line = service.await_line("capture reopened after ");
        let seconds = line.split("after ").nth(1).unwrap().split('s').next().unwrap();
        let seconds: f64 = seconds.parse().unwrap();
        assert!((0.0..5.0).contains(&seconds), "{line}");
        // The log rounds to milliseconds.
        assert!((gap() - counted - seconds).abs() < 0.001, "{line}: {counted}, {}", gap());
        counted = gap();
        service.clear_log();
    }
    assert_eq!(service.stop().code(), Some(0));
}

/// While packets arrive all the time, each is either counted as seen or falls into a gap.
#[test]
fn preset_changes_under_load_leave_the_capture_complete_afterwards() {
    const SEEN: &str = r#"tcptracker_connections_total{direction="inbound",family="ipv4"}"#;
    let lab = Lab::new();
    let IpAddr::V4(victim) = VICTIM else { panic!("the victim has an IPv4 address") };
    let mut service = Start::on("eth0").flag("--observe").begin(&lab).await_ready();
    let (sent, is_over) = (AtomicU32::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut flood = Flood::on(&lab);
            while !is_over.load(Ordering::Relaxed) {
                let number = sent.fetch_add(1, Ordering::Relaxed);
                flood.syn(Ipv4Addr::from(0x0b00_0000 + number), victim, 80);
            }
            flood.settle();
        });
        for number in 0..20 {
            let preset = ["balanced", "classic"][number % 2];
            lab.configure(&format!("[detection]\npreset = \"{preset}\"\n"));
            service.signal(Signal::HUP);
            service.await_lines("configuration reloaded", number + 1);
        }
        is_over.store(true, Ordering::Relaxed);
    });
    service.await_lines("capture reopened after ", 20);
    // No packet is counted twice.
    assert!(lab.metric(SEEN) <= sent.into_inner().into());
    // And none is lost once the last change is over.
    let before = lab.metric(SEEN);
    let mut flood = Flood::on(&lab);
    for number in 0..1000 {
        flood.syn(Ipv4Addr::from(0x0c00_0000 + number), victim, 80);
    }
    flood.settle();
    await_that("all are seen", || lab.metric(SEEN) == before + 1000);
    assert_eq!(service.stop().code(), Some(0));
}

/// A blocked client tries to connect all the time while the firewall settings change.
#[test]
fn firewall_changes_leave_no_gap() {
    let lab = Lab::new();
    let mut service = lab.start();
    let attacker = ATTACKER.to_string();
    lab.bus.call("eth0", &["Block", "sts", &attacker, "0", "knocks"]).ok();
    for (section, backend) in [
        ("[firewall]\nbackend = \"iptables\"\n", "iptables"),
        ("[firewall]\nhooks = [\"INPUT\"]\n", "ipset"),
        ("[block]\nestablished = \"cut\"\n", "ipset"),
        ("", "ipset"),
    ] {
        lab.configure(section);
        let knocking = lab.attacker.connect_in_loop(VICTIM, OPEN_PORT);
        lab.bus.call("eth0", &["Reload"]).ok();
        assert!(!knocking.stop(), "{section}: a connection was accepted");
        assert_eq!(lab.bus.property("Backend").1, backend);
        assert_eq!(lab.bus.list().len(), 1);
    }
    service.await_lines("configuration reloaded by root (uid 0)", 4);
    assert_eq!(service.lines_with("repaired firewall").len(), 0);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn observe_mode_keeps_blocks_for_later() {
    let lab = Lab::new();
    let mut service = lab.start();
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line("WARN blocked 10.77.0.1");
    let block = lab.bus.block_of(&ATTACKER);
    lab.configure("[block]\nenabled = false\n");
    lab.cli("reload").ok();
    assert_eq!(lab.bus.property("State").1, "observing");
    assert_eq!(lab.bus.property("Backend").1, "none");
    assert_eq!(lab.bus.list(), []);
    lab.assert_untouched();
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
    service.await_line("observe mode: 1 block suspended until block.enabled = true");

    lab.configure("");
    lab.cli("reload").ok();
    assert_eq!(lab.bus.property("State").1, "enforcing");
    let again = lab.bus.block_of(&ATTACKER);
    assert_eq!((&again.0, again.3), (&block.0, block.3));
    assert!(again.2.abs_diff(block.2) <= SLACK, "{again:?} {block:?}");
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();

    // An instance that starts in observe mode loads the blocks at the first reload.
    let flag = Start::on("eth0").env("TCPTRACKER_LOG__RATE", "7");
    lab.configure("[block]\nenabled = false\n");
    let mut service = flag.begin(&lab).await_ready();
    assert_eq!(lab.bus.list(), []);
    lab.configure("");
    lab.cli("reload").ok();
    assert!(lab.bus.block_of(&ATTACKER).2.abs_diff(block.2) <= SLACK);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// Environment and flags override the files.
#[test]
fn flags_override_reloaded_files() {
    let lab = Lab::new();
    let mut service = Start::on("eth0").flag("--observe").begin(&lab).await_ready();
    lab.configure("[block]\nenabled = true\n");
    lab.cli("reload").ok();
    service.await_line("configuration reloaded by root (uid 0): no changes");
    assert_eq!(lab.bus.property("State").1, "observing");
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}
