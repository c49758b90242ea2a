//! The D-Bus interface: members, errors, properties, signals and permissions.

use serde_json::{Value, json};

use crate::bus::target;
use crate::lab::{ATTACKER, ATTACKER_V6, Lab, OPEN_PORT, VICTIM, VICTIM_V6};
use crate::tools::await_that;

#[test]
fn invalid_requests_return_specific_errors() {
    let lab = Lab::new();
    let mut service = lab.start();
    for (member, text) in [
        // A network is refused if it contains an exempt address.
        (&["Block", "sts", "10.77.0.2", "60", ""][..], "10.77.0.2 is an address of this host"),
        (&["Block", "sts", "10.77.0.0/24", "60", ""], "10.77.0.2 is an address of this host"),
        (&["Block", "sts", "fd77::2", "60", ""], "fd77::2 is an address of this host"),
        (&["Block", "sts", "::ffff:10.77.0.2", "60", ""], "10.77.0.2 is an address of this host"),
        (
            &["Block", "sts", "::ffff:10.77.0.0/120", "60", ""],
            "10.77.0.2 is an address of this host",
        ),
        (&["Block", "sts", "127.0.0.1", "60", ""], "127.0.0.1"),
        (&["Block", "sts", "0.0.0.0/0", "0", ""], "0.0.0.0/0 is never blocked"),
        (&["Block", "sts", "10.77.0.300", "60", ""], "\"10.77.0.300\""),
        (&["Block", "sts", "nobody's host", "60", ""], "\"nobody's host\""),
        (&["Block", "sts", "10.77.0.1/24", "60", ""], "\"10.77.0.1/24\""),
        (&["Unblock", "s", "10.77.0."], "\"10.77.0.\""),
        (&["Unblock", "s", "10.77.0.1"], "10.77.0.1 is not blocked"),
    ] {
        let answer = lab.bus.call("eth0", member);
        assert_ne!(answer.code, Some(0), "{member:?}");
        assert!(answer.err.contains(text), "{member:?}: {answer:?}");
    }
    assert_eq!(lab.bus.list(), []);
    // The service logs a refused change with the caller's uid.
    service.await_line("refused to block 10.77.0.2 for root (uid 0): exempt: ");

    for (name, arguments) in [
        ("Exempt", "string:10.77.0.2 uint64:60 string:x"),
        ("InvalidAddress", "string:10.77.0.300 uint64:60 string:x"),
    ] {
        assert_eq!(lab.bus.error_of("Block", arguments), error(name));
    }
    for arguments in
        ["string:10.77.0.9 uint64:3155760001 string:x", "string:10.77.0.9 uint64:6 string:a\nb"]
    {
        let invalid = "org.freedesktop.DBus.Error.InvalidArgs";
        assert_eq!(
            lab.bus.error_of_call("Block", &arguments.split(' ').collect::<Vec<_>>()),
            invalid
        );
    }
    assert_eq!(lab.bus.error_of("Unblock", "string:10.77.0.9"), error("NotBlocked"));
    assert_eq!(lab.bus.error_of("Unblock", "string:10.77"), error("InvalidAddress"));

    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn signals_are_emitted_for_scans_blocks_and_unblocks() {
    let lab = Lab::new();
    let mut service = lab.start();
    let signals = lab.bus.listen();
    let expect = |name: &str, types: &str, check: &dyn Fn(&Value) -> bool| {
        let (signal_name, signal_types, data) = signals.next();
        assert_eq!((signal_name.as_str(), signal_types.as_str()), (name, types), "{data}");
        assert!(check(&data), "{name}: {data}");
    };

    lab.attacker.nmap("-sS -p 1-10", VICTIM);
    expect("ScanDetected", "saqs", &|data| *data == json!(["10.77.0.1", [1, 2, 3, 4], "vertical"]));
    let reason = "vertical scan: ports 1, 2, 3, 4";
    expect("Blocked", "sts", &|data| data[0] == "10.77.0.1" && data[2] == reason);
    let until = lab.bus.block_of(&ATTACKER).2;
    assert_eq!(lab.bus.property("Blocked"), ("u".to_owned(), json!(1)));
    lab.bus.call("eth0", &["Unblock", "s", "10.77.0.1"]).ok();
    expect("Unblocked", "ss", &|data| *data == json!(["10.77.0.1", "manual"]));

    lab.bus.call("eth0", &["Block", "sts", "10.77.0.1", "3", "for a moment"]).ok();
    expect("Blocked", "sts", &|data| {
        data[1].as_u64().is_some_and(|end| end < until) && data[2] == "for a moment"
    });
    expect("Unblocked", "ss", &|data| *data == json!(["10.77.0.1", "expired"]));
    lab.bus.call("eth0", &["Block", "sts", "203.0.113.0/24", "0", "for good"]).ok();
    expect("Blocked", "sts", &|data| *data == json!(["203.0.113.0/24", 0, "for good"]));
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

#[test]
fn properties_and_counters_match_the_documentation() {
    let lab = Lab::new();
    let mut service = lab.start();
    for (name, kind, value) in [
        ("Interface", "s", json!("eth0")),
        ("Version", "s", json!(env!("CARGO_PKG_VERSION"))),
        ("Backend", "s", json!("ipset")),
        ("State", "s", json!("enforcing")),
        ("Blocked", "u", json!(0)),
    ] {
        assert_eq!(lab.bus.property(name), (kind.to_owned(), value), "{name}");
    }
    let stats = lab.bus.call_json("eth0", "Stats");
    assert_eq!(stats["type"], "a{st}");
    assert_eq!(stats["data"][0]["scans"], 0, "{stats}");
    assert_eq!(service.stop().code(), Some(0));
    assert!(!lab.bus.has("org.tcptracker.Tracker1.eth0"));
}

/// The shipped policy allows every call, and the service authorizes changes.
#[test]
fn unprivileged_users_can_read_but_not_change() {
    let lab = Lab::new();
    let mut service = lab.start();
    lab.bus.call("eth0", &["Block", "sts", "10.77.0.1", "0", "seen by all"]).ok();
    let [name, object, interface] = &target("eth0");

    let call = |arguments: &[&str]| lab.bus.as_nobody(arguments);
    let listed = call(&["call", name, object, interface, "List"]).ok();
    assert!(listed.contains("seen by all"), "{listed}");
    call(&["call", name, object, interface, "Stats"]).ok();
    assert_eq!(call(&["get-property", name, object, interface, "Blocked"]).ok(), "u 1\n");
    let members = call(&["introspect", name, object, interface]).ok();
    for member in
        [".Block ", ".Unblock ", ".List ", ".Stats ", ".State ", ".ScanDetected ", ".StateChanged "]
    {
        assert!(members.contains(member), "no {member}in:\n{members}");
    }

    for change in [
        &["Unblock", "s", "10.77.0.1"][..],
        &["Block", "sts", "198.51.100.1", "60", "out of spite"],
    ] {
        let arguments = [&["call", name, object, interface][..], change].concat();
        let denied = lab.bus.as_nobody(&arguments);
        assert_eq!(denied.code, Some(1), "{denied:?}");
        assert!(denied.err.contains("Access denied"), "{denied:?}");
    }
    assert_eq!(lab.bus.list().len(), 1);
    lab.attacker.assert_cannot_reach(VICTIM, OPEN_PORT);
    // An unprivileged user cannot own the service's bus name.
    lab.bus.assert_nobody_cannot_own_name();
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

/// After an unblock or an expiry, only new probes count.
#[test]
fn unblocked_source_starts_with_empty_history() {
    for (attacker, victim) in [(ATTACKER, VICTIM), (ATTACKER_V6, VICTIM_V6)] {
        let lab = Lab::new();
        lab.configure(
            "[detection]\nwindow = \"10m\"\n\
             [block]\ndurations = [\"2s\", \"1h\"]\ngrace_after_unblock = \"0s\"\n",
        );
        let mut service = lab.start();
        // Send exactly the probes that trigger the block: probes after its end, 2 s later, would
        // count again.
        lab.attacker.nmap("-sS -p 1-4", victim);
        service.await_line(&format!("unblocked {attacker}: expired"));
        for (offence, port) in (2..).zip([20, 30]) {
            let before = lab.metric("tcptracker_new_connections");
            lab.attacker.nmap(&format!("-sS -p {port}-{}", port + 2), victim);
            await_that("three more probes are counted", || {
                lab.metric("tcptracker_new_connections") >= before + 3
            });
            assert_eq!(lab.bus.list(), []);
            // The fourth port exceeds the limit.
            lab.attacker.nmap(&format!("-sS -p {}", port + 3), victim);
            let ports =
                (port..port + 4).map(|port| port.to_string()).collect::<Vec<_>>().join(", ");
            service.await_line(&format!(
                "WARN blocked {attacker} for 1h (offence {offence}): vertical scan: ports {ports}"
            ));
            lab.bus.call("eth0", &["Unblock", "s", &attacker.to_string()]).ok();
        }
        assert_eq!(service.stop().code(), Some(0));
        lab.assert_untouched();
    }
}

#[test]
fn address_assigned_to_the_host_is_unblocked() {
    let lab = Lab::new();
    let mut service = lab.start();
    for address in ["10.77.0.99", "fd77::99"] {
        lab.bus.call("eth0", &["Block", "sts", address, "0", "not yet exempt"]).ok();
    }
    lab.victim.ip("addr add 10.77.0.99/24 dev eth0");
    service.await_line("unblocked 10.77.0.99: now exempt");
    lab.victim.ip("addr add fd77::99/64 dev eth0 nodad");
    service.await_line("unblocked fd77::99: now exempt");
    assert_eq!(lab.bus.list(), []);
    // The host's earlier addresses are still exempt.
    let answer = lab.bus.call("eth0", &["Block", "sts", &VICTIM_V6.to_string(), "0", ""]);
    assert!(answer.err.contains("never blocked"), "{answer:?}");
    assert_eq!(service.stop().code(), Some(0));
    lab.assert_untouched();
}

fn error(name: &str) -> String {
    format!("org.tcptracker.Tracker1.Error.{name}")
}
