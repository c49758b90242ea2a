//! The bus itself: how it is used, overused, lost, and that it may be either of two.

use std::sync::mpsc::channel;

use rustix::process::Signal;
use serde_json::json;

use crate::bus_client::{BusClient, Reply};
use crate::kernel::Rules;
use crate::lab::{Lab, OPEN_PORT, VICTIM};
use crate::saved_blocks::{FIRST, save_blocks};
use crate::tools::await_that;

/// Memory may be given to the process in larger pieces than a call needs; ten thousand leaks of a
/// message each would be many times as much.
const GROWTH: u64 = 4 << 20;

#[test]
fn ten_thousand_calls_leave_nothing_behind() {
    let lab = Lab::new();
    let mut service = lab.start();
    let caller = BusClient::on(&lab.bus);
    let calls = |count: u32| {
        for number in 0..count {
            let address = format!("198.51.100.{}", number % 200);
            match number % 4 {
                0 => assert_eq!(caller.block(&address, 3600, "calls"), Reply::Value(())),
                1 => assert!(matches!(caller.list(), Reply::Value(_))),
                // Half of them are refused, which is logged.
                _ => drop(caller.unblock(&address)),
            }
        }
    };
    // What is needed once is there after some.
    calls(2000);
    let before = service.resident_bytes();
    calls(10_000);
    let after = service.resident_bytes();
    assert!(after < before + GROWTH, "{before} bytes before, {after} after");
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn properties_that_change_are_told() {
    let lab = Lab::new();
    let mut service = lab.start();
    let changes = lab.bus.listen_to("org.freedesktop.DBus.Properties");
    lab.bus.call("eth0", &["Block", "sts", "198.51.100.1", "0", ""]).ok();
    let (types, data) = changes.next_named("PropertiesChanged");
    assert_eq!(types, "sa{sv}as");
    assert_eq!(data[0], "org.tcptracker.Tracker1");
    assert_eq!(data[1], json!({"Blocked": {"type": "u", "data": 1}}));
    // The last of many is told as well, if not each.
    for number in 2..40 {
        let address = format!("198.51.100.{number}");
        lab.bus.call("eth0", &["Block", "sts", &address, "0", ""]).ok();
    }
    while changes.next_named("PropertiesChanged").1[1]["Blocked"]["data"] != 39 {}
    lab.configure("[block]\nenabled = false\n");
    lab.bus.call("eth0", &["Reload"]).ok();
    let mut told = Vec::new();
    while !["State", "Backend", "Blocked"].iter().all(|name| told.contains(&(*name).to_owned())) {
        let (_, data) = changes.next_named("PropertiesChanged");
        told.extend(data[1].as_object().unwrap().keys().cloned());
    }
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// The service ends, for the service manager to start it again; the kernel goes on blocking meanwhile.
#[test]
fn a_lost_bus_ends_the_process_and_frees_nobody() {
    let mut lab = Lab::new();
    let mut service = lab.start();
    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    service.await_line("WARN blocked 10.77.0.1");
    lab.bus.die();
    assert_eq!(service.await_end().code(), Some(1));
    let said = service.lines_with("failed: ");
    assert!(said.iter().any(|line| line.contains("the connection to the system bus was lost")));
    Rules::of(&lab.victim).assert_enforced_for(&["eth0"]);
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);

    lab.restart_bus();
    let mut service = lab.start();
    assert_eq!(lab.bus.list().len(), 1);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// Many at once, one of whom does not take his answers: the others are answered.
#[test]
fn callers_do_not_wait_for_each_other() {
    let lab = Lab::new();
    let mut service = lab.start();
    for number in 0..200 {
        lab.block_over_bus(&format!("203.0.113.{number}"));
    }
    let deaf = crate::bus_client::NonReadingClient::on(&lab.bus);
    deaf.send_calls("List", 2000);
    let (tell, told) = channel();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            let (lab, tell) = (&lab, tell.clone());
            scope.spawn(move || {
                let caller = BusClient::on(&lab.bus);
                for _ in 0..50 {
                    assert!(matches!(caller.list(), Reply::Value(blocks) if blocks.len() == 200));
                }
                tell.send(()).unwrap();
            });
        }
    });
    assert_eq!(told.try_iter().count(), 8);
    drop(deaf);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// Whoever sends too long a message is thrown off the bus: that everybody may ask for the list must not cost
/// the service its place there.
#[test]
fn a_list_that_no_message_can_hold_is_refused() {
    let lab = Lab::new();
    // The longest reason there may be, in characters of four bytes.
    save_blocks(&lab, 45_000, &"\u{1f50d}".repeat(200));
    let mut service = lab.start();
    let [name, object, interface] = &crate::bus::target("eth0");
    let asked = lab.bus.as_nobody(&["call", name, object, interface, "List"]);
    let told = "the 45000 blocks on eth0 are more than a message of the bus can hold; ask for one";
    assert!(asked.err.contains(told), "{asked:?}");
    let limit = "org.freedesktop.DBus.Error.LimitsExceeded";
    assert_eq!(lab.bus.error_of("List", ""), limit);
    let listed = lab.cli("list");
    assert_eq!((listed.code, listed.out.as_str()), (Some(1), ""), "{listed:?}");
    assert!(listed.err.starts_with(&format!("tcptracker: {told}")), "{listed:?}");
    // Everything else goes on.
    assert_eq!(lab.bus.why(FIRST)["blocked"]["data"], true);
    lab.bus.call("eth0", &["Unblock", "s", FIRST]).ok();
    assert_eq!(lab.bus.property("Blocked").1, 44_999);
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// A bus that does not take answers, as one does not for somebody who takes none: the service must not keep
/// them all. A long list is made when the one before is on its way.
#[test]
fn long_lists_nobody_takes_fill_no_memory() {
    const LISTS: u32 = 60;
    /// A reason and what is beside it, as a message has it.
    const ENTRY: u64 = 230;
    const ENTRIES: u32 = 20_000;
    let lab = Lab::new();
    save_blocks(&lab, ENTRIES, &"x".repeat(200));
    let mut service = lab.start();
    let list = ENTRY * u64::from(ENTRIES);
    let caller = BusClient::on(&lab.bus);
    // What one list takes is there after a few.
    (0..3).for_each(|_| assert!(matches!(caller.list(), Reply::Value(_))));
    let before = service.resident_bytes();

    // They have all been asked for when the first is made.
    service.signal(Signal::STOP);
    let deaf = crate::bus_client::NonReadingClient::on(&lab.bus);
    deaf.send_calls("List", LISTS);
    assert!(lab.bus.has("org.tcptracker.Tracker1.eth0"));
    lab.bus.signal(Signal::STOP);
    service.signal(Signal::CONT);
    // Long enough for many lists: each of these takes a part of the time the service has.
    (0..300).for_each(|_| assert_eq!(lab.metric("tcptracker_blocks_total{cause=\"manual\"}"), 0));
    let after = service.resident_bytes();
    assert!(after < before + 6 * list, "{before} bytes before, {after} after; a list has {list}");

    drop(deaf);
    lab.bus.signal(Signal::CONT);
    assert!(matches!(caller.list(), Reply::Value(blocks) if blocks.len() == ENTRIES as usize));
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// Thousands are let in at once, with nothing on the wire that would wake the detector, which has to forget
/// each.
#[test]
fn many_are_let_in_without_a_pause() {
    let lab = Lab::new();
    save_blocks(&lab, 10_000, "one of many");
    let mut service = lab.start();
    lab.bus.call("eth0", &["Unblock", "s", "100.64.0.0/10"]).ok();
    assert_eq!(lab.bus.list(), []);
    // The firewall's thread has never been away for so long that it was missed.
    assert_eq!(service.lines_with("no sign of life"), Vec::<String>::new());
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// The other bus there is: its policy is read by other code, and its errors and names are its own.
#[test]
fn dbus_broker_does_as_well() {
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
    service.await_line("refused to unblock 10.77.0.1 (by uid 65534): only root");
    crate::users::busctl(&lab, crate::users::MEMBER, &[crate::users::SERVICE], &["Reload"]).ok();
    lab.bus.call("eth0", &["Unblock", "s", "10.77.0.1"]).ok();
    signals.next_named("Unblocked");
    lab.bus.assert_nobody_cannot_own_name();
    await_that("the name is there", || lab.bus.has("org.tcptracker.Tracker1.eth0"));
    assert_eq!(service.stop().code(), Some(0));
    assert!(!lab.bus.has("org.tcptracker.Tracker1.eth0"));
    lab.assert_untouched();
}
