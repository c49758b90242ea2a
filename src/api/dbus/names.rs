//! Names on the bus, for the service and the command line.

use crate::types::IfName;

/// The D-Bus interface.
pub const INTERFACE: &str = "org.tcptracker.Tracker1";

/// The name that all instances queue for, so that one rule of the bus policy covers them all.
pub const COMMON_NAME: &str = INTERFACE;

/// Returns the bus name of the instance on a network interface.
pub fn bus_name(interface: &IfName) -> String {
    format!("{INTERFACE}.{}", interface.bus_label())
}

/// Returns the object path of the instance on a network interface.
pub fn object_path(interface: &IfName) -> String {
    format!("/org/tcptracker/Tracker1/{}", interface.bus_label())
}

/// Returns the network interface of the instance with this bus name, if it is one.
pub fn interface_of(bus_name: &str) -> Option<IfName> {
    let label = bus_name.strip_prefix(INTERFACE)?.strip_prefix('.')?;
    IfName::from_bus_label(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bus_names_are_stable() {
        let vlan: IfName = "eth0.100".parse().unwrap();
        assert_eq!(bus_name(&vlan), "org.tcptracker.Tracker1.eth0_2e100");
        assert_eq!(object_path(&vlan), "/org/tcptracker/Tracker1/eth0_2e100");
        assert_eq!(interface_of("org.tcptracker.Tracker1.eth0_2e100"), Some(vlan));
        assert_eq!(interface_of("org.tcptracker.Tracker1"), None);
        assert_eq!(interface_of("org.freedesktop.DBus"), None);
    }
}
