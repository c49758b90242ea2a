//! The bus connection: many calls, slow clients, loss of the bus, and both bus implementations.

use std::sync::mpsc::channel;

use rustix::process::Signal;
use serde_json::json;

use crate::bus_client::{BusClient, Reply};
use crate::lab::{Lab, OPEN_PORT, VICTIM};
use crate::saved_blocks::{FIRST, save_blocks};
use crate::tools::await_that;

/// Allowed memory growth. The allocator grows in large steps, but a leak of 10,000 messages would
/// be many times larger.
const GROWTH: u64 = 4 << 20;

#[test]
fn ten_thousand_calls_leak_no_memory() {
    let lab = Lab::new();
    let mut service = lab.start();
    let client = BusClient::on(&lab.bus);
    let calls = |count: u32| {
        for number in 0..count {
            let address = format!("198.51.100.{}", number % 200);
            match number % 4 {
                0 => assert_eq!(client.block(&address, 3600, "calls"), Reply::Value(())),
                1 => assert!(matches!(client.list(), Reply::Value(_))),
                // Half of these calls fail, and the service logs it.
                _ => drop(client.unblock(&address)),
            }
        }
    };
    // Warm up, so that one-time allocations do not count.
    calls(2000);
    let before = service.resident_bytes();
    calls(10_000);
    let after = service.resident_bytes();
    assert!(after < before + GROWTH, "{before} bytes before, {after} after");
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn property_changes_are_emitted() {
    let lab = Lab::new();
    let mut service = lab.start();
    let changes = lab.bus.listen_to("org.freedesktop.DBus.Properties");
    lab.bus.call("eth0", &["Block", "sts", "198.51.100.1", "0", ""]).ok();
    let (types, data) = changes.next_named("PropertiesChanged");
    assert_eq!(types, "sa{sv}as");
    assert_eq!(data[0], "org.tcptracker.Tracker1");
    assert_eq!(data[1], json!({"Blocked": {"type": "u", "data": 1}}));
    // The service may combine changes, but must emit the last one.
    for number in 2..40 {
        let address = format!("198.51.100.{number}");
        lab.bus.call("eth0", &["Block", "sts", &address, "0", ""]).ok();
    }
    while changes.next_named("PropertiesChanged").1[1]["Blocked"]["data"] != 39 {}
    lab.configure("[block]\nenabled = false\n");
    lab.bus.call("eth0", &["Reload"]).ok();
    let mut properties = Vec::new();
    while !["State", "Backend", "Blocked"]
        .iter()
        .all(|name| properties.contains(&(*name).to_owned()))
    {
        let (_, data) = changes.next_named("PropertiesChanged");
        properties.extend(data[1].as_object().unwrap().keys().cloned());
    }
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// The service goes on without the bus, says so, and joins it again when it returns.
#[test]
fn lost_bus_is_joined_again() {
    let mut lab = Lab::new();
    let mut service = lab.start();
    let lost = r#"tcptracker_events_lost_total{where="bus"}"#;
    for (round, scanner) in [(1, "10.77.0.1"), (2, "10.77.0.3")] {
        lab.bus.kill();
        service.await_lines("WARN degraded: the connection to the system bus was lost", round);
        assert_eq!(lab.metric(r#"tcptracker_state{state="degraded"}"#), 1);
        let before = lab.metric(lost);
        let from = if round == 1 { &lab.attacker } else { &lab.bystander };
        from.nmap("-sS -p 1-10", VICTIM);
        service.await_line(&format!("WARN blocked {scanner}"));
        from.assert_cannot_reach(VICTIM, OPEN_PORT);
        // A scan and a block.
        await_that("lost signals", || lab.metric(lost) >= before + 2);

        lab.restart_bus();
        service.await_lines("enforcing: no problems", round);
        assert!(lab.bus.has("org.tcptracker.Tracker1.eth0"));
        assert!(lab.bus.has("org.tcptracker.Tracker1"));
        assert_eq!(lab.bus.property("State").1, "enforcing");
        assert_eq!(lab.bus.list().len(), round);
        let polkit = crate::unresponsive_polkit::UnresponsivePolkit::on(&lab.bus);
        let [name, object, interface] = &crate::bus::target("eth0");
        let unblock = ["--timeout=1", "call", name, object, interface, "Unblock", "s", scanner];
        lab.bus.as_nobody(&unblock);
        polkit.await_requests(1);
        let signals = lab.bus.listen();
        lab.bus.call("eth0", &["Block", "sts", "198.51.100.1", "1", ""]).ok();
        signals.next_named("Blocked");
        signals.next_named("Unblocked");
    }
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn service_stops_in_order_without_its_bus() {
    let mut lab = Lab::new();
    let mut service = lab.start();
    lab.bus.kill();
    service.await_line("WARN degraded: the connection to the system bus was lost");
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// No text of a caller is echoed at length, and a call that is too long is not even kept.
#[test]
fn errors_about_long_arguments_are_short() {
    let lab = Lab::new();
    let mut service = lab.start();
    let client = BusClient::on(&lab.bus);
    let before = service.resident_bytes();
    for length in [50, 1000, 3000, 5000, 7_000_000, 16_000_000, 33_000_000] {
        for character in ["x", "\u{1}", "\"", "\u{202e}"] {
            let text = character.repeat(length / character.len());
            for (name, description) in [
                client.error_of("Why", &text.as_str()),
                client.error_of("Unblock", &text.as_str()),
                client.error_of("Block", &(text.as_str(), 60_u64, "")),
            ] {
                let limit = "org.freedesktop.DBus.Error.LimitsExceeded";
                let invalid = "org.tcptracker.Tracker1.Error.InvalidAddress";
                assert_eq!(name, if length < 4000 { invalid } else { limit }, "{length}");
                assert!(description.len() <= 1027, "{length}: {} bytes", description.len());
            }
        }
    }
    let after = service.resident_bytes();
    assert!(after < before + GROWTH, "{before} bytes before, {after} after");
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// The service answers concurrent callers although one caller never reads its replies.
#[test]
fn stalled_caller_does_not_delay_others() {
    let lab = Lab::new();
    let mut service = lab.start();
    for number in 0..200 {
        lab.block_over_bus(&format!("203.0.113.{number}"));
    }
    let stalled = crate::bus_client::NonReadingClient::on(&lab.bus);
    stalled.send_calls("List", 2000);
    let (sender, finished) = channel();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            let (lab, sender) = (&lab, sender.clone());
            scope.spawn(move || {
                let client = BusClient::on(&lab.bus);
                for _ in 0..50 {
                    assert!(matches!(client.list(), Reply::Value(blocks) if blocks.len() == 200));
                }
                sender.send(()).unwrap();
            });
        }
    });
    assert_eq!(finished.try_iter().count(), 8);
    drop(stalled);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// The bus disconnects a sender of oversized messages. A `List` call from any user must not cause
/// that for the service.
#[test]
fn list_larger_than_a_message_returns_an_error() {
    let lab = Lab::new();
    // The longest allowed reason, in characters of 4 bytes.
    save_blocks(&lab, 45_000, &"\u{1f50d}".repeat(200));
    let mut service = lab.start();
    let [name, object, interface] = &crate::bus::target("eth0");
    let refused = lab.bus.as_nobody(&["call", name, object, interface, "List"]);
    let message =
        "too many blocks (45000) on eth0 for one D-Bus reply; use `tcptracker why ADDRESS`";
    assert!(refused.err.contains(message), "{refused:?}");
    let limit = "org.freedesktop.DBus.Error.LimitsExceeded";
    assert_eq!(lab.bus.error_of("List", ""), limit);
    let listed = lab.cli("list");
    assert_eq!((listed.code, listed.out.as_str()), (Some(1), ""), "{listed:?}");
    assert!(listed.err.starts_with(&format!("tcptracker: {message}")), "{listed:?}");
    // Other calls still work.
    assert_eq!(lab.bus.why(FIRST)["blocked"]["data"], true);
    lab.bus.call("eth0", &["Unblock", "s", FIRST]).ok();
    assert_eq!(lab.bus.property("Blocked").1, 44_999);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// The service must not buffer all replies when the bus stops reading. It builds a long list only
/// after the previous one was sent.
#[test]
fn unread_long_lists_do_not_accumulate_in_memory() {
    const LISTS: u32 = 60;
    /// Bytes of one list entry in a message.
    const ENTRY: u64 = 230;
    const ENTRIES: u32 = 20_000;
    let lab = Lab::new();
    save_blocks(&lab, ENTRIES, &"x".repeat(200));
    let mut service = lab.start();
    let list = ENTRY * u64::from(ENTRIES);
    let client = BusClient::on(&lab.bus);
    // Warm up, so that the buffers of one list do not count.
    (0..3).for_each(|_| assert!(matches!(client.list(), Reply::Value(_))));
    let before = service.resident_bytes();

    // Queue all calls before the service handles the first one.
    service.signal(Signal::STOP);
    let stalled = crate::bus_client::NonReadingClient::on(&lab.bus);
    stalled.send_calls("List", LISTS);
    assert!(lab.bus.has("org.tcptracker.Tracker1.eth0"));
    lab.bus.signal(Signal::STOP);
    service.signal(Signal::CONT);
    // Each scrape costs the service CPU time, so 300 scrapes leave enough time to build many lists.
    (0..300).for_each(|_| assert_eq!(lab.metric("tcptracker_blocks_total{cause=\"manual\"}"), 0));
    let after = service.resident_bytes();
    assert!(after < before + 6 * list, "{before} bytes before, {after} after; a list has {list}");

    drop(stalled);
    lab.bus.signal(Signal::CONT);
    assert!(matches!(client.list(), Reply::Value(blocks) if blocks.len() == ENTRIES as usize));
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// The detector must process thousands of unblocks while no traffic wakes it up.
#[test]
fn mass_unblock_does_not_miss_heartbeats() {
    let lab = Lab::new();
    save_blocks(&lab, 10_000, "one of many");
    let mut service = lab.start();
    lab.bus.call("eth0", &["Unblock", "s", "100.64.0.0/10"]).ok();
    assert_eq!(lab.bus.list(), []);
    // The firewall thread never missed a heartbeat.
    assert_eq!(service.lines_with("threads not responding"), Vec::<String>::new());
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// dbus-broker has its own policy parser and its own error names.
#[test]
fn works_with_dbus_broker() {
    let lab = Lab::on_broker();
    let mut service = lab.start();
    let signals = lab.bus.listen();
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    assert_eq!(signals.next_named("ScanDetected").0, "saqs");
    signals.next_named("Blocked");
    assert_eq!(lab.bus.list().len(), 1);
    assert_eq!(lab.bus.why("10.77.0.1")["blocked"]["data"], true);
    let [name, object, interface] = &crate::bus::target("eth0");
    lab.bus.as_nobody(&["call", name, object, interface, "List"]).ok();
    let denied = lab.bus.as_nobody(&["call", name, object, interface, "Unblock", "s", "10.77.0.1"]);
    assert!(denied.err.contains("Access denied"), "{denied:?}");
    service.await_line("refused to unblock 10.77.0.1 for nobody (uid 65534): only root");
    crate::users::busctl(&lab, crate::users::MEMBER, &[crate::users::SERVICE], &["Reload"]).ok();
    lab.bus.call("eth0", &["Unblock", "s", "10.77.0.1"]).ok();
    signals.next_named("Unblocked");
    lab.bus.assert_nobody_cannot_own_name();
    await_that("the name is there", || lab.bus.has("org.tcptracker.Tracker1.eth0"));
    assert_eq!(service.stop().code(), Some(0));
    assert!(!lab.bus.has("org.tcptracker.Tracker1.eth0"));
    lab.assert_untouched();
}
