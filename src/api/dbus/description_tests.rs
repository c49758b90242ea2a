//! The interface's description, `dbus/org.tcptracker.Tracker1.xml`, held against the code.

use std::sync::Arc;
use std::sync::mpsc::{channel, sync_channel};

use zbus::object_server::Interface;

use crate::api::dbus::authority::Authority;
use crate::api::dbus::semaphore::Semaphore;
use crate::api::dbus::tracker::Tracker;
use crate::api::metrics::Metrics;
use crate::handles::events::EventSink;
use crate::handles::firewall::FirewallHandle;
use crate::handles::health::Health;
use crate::handles::reload::Reloader;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/dbus/org.tcptracker.Tracker1.xml");

fn tracker() -> Tracker {
    let metrics = Arc::new(Metrics::new().unwrap());
    let events = EventSink::new(sync_channel(1).0, None, Arc::clone(&metrics) as _);
    Tracker {
        interface: "eth0".parse().unwrap(),
        authority: Authority::new(events.clone()),
        reloader: Reloader::new(channel().0),
        firewall: FirewallHandle::new(sync_channel(1).0),
        health: Arc::new(Health::new(true, "none", events)),
        metrics,
        one_list: Semaphore::default(),
        one_reload: Semaphore::default(),
    }
}

fn description() -> String {
    let mut members = String::new();
    tracker().introspect_to_writer(&mut members, 2);
    format!(
        "<!DOCTYPE node PUBLIC \"-//freedesktop//DTD D-BUS Object Introspection 1.0//EN\"\n \
         \"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd\">\n\
         <!-- What tcptracker serves at /org/tcptracker/Tracker1/INTERFACE. Made from the code: make interface -->\n\
         <node>\n{}</node>\n",
        members.trim_start_matches('\n')
    )
}

#[test]
fn the_description_is_that_of_the_code() {
    if std::env::var_os("TCPTRACKER_WRITE_INTERFACE").is_some() {
        std::fs::write(FILE, description()).unwrap();
    }
    let written = std::fs::read_to_string(FILE).unwrap_or_default();
    assert_eq!(written, description(), "make it anew: make interface");
}

#[test]
fn every_member_is_described_and_every_argument_named() {
    let description = description();
    let mut is_described = false;
    for line in description.lines().map(str::trim) {
        for member in ["<method ", "<signal ", "<property "] {
            assert!(!line.starts_with(member) || is_described, "not described: {line}");
        }
        assert!(!line.starts_with("<arg ") || line.contains("name=\""), "without a name: {line}");
        is_described = line.ends_with("-->");
    }
    assert!(description.contains("<signal name=\"StateChanged\">"));
}
