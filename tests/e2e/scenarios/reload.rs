//! The configuration read again while running: `tcptracker reload`, `Reload` and SIGHUP.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rustix::process::Signal;

use crate::flood::Flood;
use crate::kernel::Rules;
use crate::lab::{ATTACKER, Lab, OPEN_PORT, VICTIM};
use crate::service::Start;
use crate::tools::await_that;

/// Each answer reads the clocks anew, and times are rounded to seconds.
const SLACK: u64 = 2;

#[test]
fn a_wrong_file_changes_nothing_and_the_caller_hears_what_is_wrong() {
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
    service.await_line(&format!("refused to reload the configuration (by uid 0): {problem}"));
    service.signal(Signal::HUP);
    service.await_line(&format!("SIGHUP did not reload the configuration: {problem}"));
    service.await_notifications("RELOADING=1", 4);
    // Once at the start, and after each reload, whatever came of it.
    service.await_notifications("READY=1", 5);

    // Neither the wrong value nor the right one beside it holds.
    lab.attacker.nmap("-sS -p 1-5", VICTIM);
    lab.attacker.assert_reaches(VICTIM, OPEN_PORT);
    service.await_line("WARN blocked 10.77.0.1");
    // Four reloads at once leave the threads no time to show that they are alive; nor need they.
    assert_eq!(service.lines_with("no sign of life"), Vec::<String>::new());
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn a_changed_file_holds_once_the_caller_has_his_answer() {
    let lab = Lab::new();
    lab.configure("[detection]\nports = 40\n");
    let mut service = lab.start();
    lab.bus.call("eth0", &["Block", "sts", "203.0.113.1", "0", "by hand"]).ok();
    lab.bus.call("eth0", &["Block", "sts", "198.51.100.7", "600", "too hasty"]).ok();
    // Three ports are no scan; they are remembered.
    lab.attacker.nmap("-sS -p 1-3", VICTIM);
    await_that("three connections are seen", || lab.metric("tcptracker_new_connections") >= 3);
    lab.configure(
        "[detection]\nports = 3\n[exempt]\nnetworks = [\"198.51.100.0/24\"]\n\
         [block]\ndurations = [\"2h\"]\n[firewall]\nhooks = [\"INPUT\"]\ntarget = \"REJECT\"\n\
         [metrics]\nlisten = \"127.0.0.1:9099\"\n[log]\nconnections = false\n",
    );
    assert_eq!(lab.cli("reload").ok(), "reloaded the configuration of eth0\n");
    // Everything holds by now.
    let left: Vec<String> = lab.bus.list().into_iter().map(|block| block.0).collect();
    assert_eq!(left, ["203.0.113.1"], "the other is exempt");
    let rules = lab.victim_rules();
    assert!(!rules.contains("-A FORWARD -j tcptracker"), "{rules}");
    assert!(rules.contains("-A INPUT -j tcptracker"), "{rules}");
    assert!(rules.contains("-j REJECT --reject-with tcp-reset"), "{rules}");
    assert_eq!(lab.victim.http_get(9099, "/health").0, 200);
    service.await_line("unblocked 198.51.100.7: it is exempt now");
    let said = service.await_line("configuration reloaded (by uid 0): ");
    assert!(said.contains("detection.ports = 3 (was 40)"), "{said}");
    assert!(!said.contains("begins anew"), "{said}");

    lab.attacker.nmap("-sS -p 4", VICTIM);
    service.await_line("WARN blocked 10.77.0.1 for 2h");
    lab.configure("");
    service.signal(Signal::HUP);
    service.await_line("configuration reloaded (by SIGHUP): ");
    await_that("the metrics are where they were", || lab.victim.serves(8081));
    assert_eq!(lab.bus.list().len(), 2);
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    Rules::of(&lab.victim).assert_enforced_for(&["eth0"]);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// The presets take other packets from the kernel: none is lost on the way from one to the other, or counted
/// twice.
#[test]
fn no_packet_is_lost_while_the_preset_changes() {
    const SEEN: &str = r#"tcptracker_connections_total{direction="inbound",family="ipv4"}"#;
    let lab = Lab::new();
    let IpAddr::V4(victim) = VICTIM else { panic!("it is IPv4") };
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
            // By those the thread that captures has been woken up.
            let before = sent.load(Ordering::Relaxed);
            await_that("more is sent", || sent.load(Ordering::Relaxed) > before + 500);
        }
        is_over.store(true, Ordering::Relaxed);
    });
    lab.assert_counted(&[SEEN], sent.into_inner().into());
    assert_eq!(service.stop().code(), Some(0));
}

/// Not for a moment: somebody blocked knocks all the time while everything is changed.
#[test]
fn nobody_blocked_is_let_in_while_the_firewall_changes() {
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
        assert!(!knocking.stop(), "{section}: let in");
        assert_eq!(lab.bus.property("Backend").1, backend);
        assert_eq!(lab.bus.list().len(), 1);
    }
    service.await_lines("configuration reloaded (by uid 0)", 4);
    assert_eq!(service.lines_with("mended").len(), 0);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn observing_begins_and_ends_without_forgetting_who_was_blocked() {
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
    service.await_line("observing: the 1 blocked are let in");

    lab.configure("");
    lab.cli("reload").ok();
    assert_eq!(lab.bus.property("State").1, "enforcing");
    let again = lab.bus.block_of(&ATTACKER);
    assert_eq!((&again.0, again.3), (&block.0, block.3));
    assert!(again.2.abs_diff(block.2) <= SLACK, "{again:?} {block:?}");
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();

    // One that was started as an observer gets its memory with the first reload.
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

/// What the environment or a flag says stays above the files.
#[test]
fn flags_outlast_a_reload() {
    let lab = Lab::new();
    let mut service = Start::on("eth0").flag("--observe").begin(&lab).await_ready();
    lab.configure("[block]\nenabled = true\n");
    lab.cli("reload").ok();
    service.await_line("configuration reloaded (by uid 0): nothing has changed");
    assert_eq!(lab.bus.property("State").1, "observing");
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}
