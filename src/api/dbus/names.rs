//! Names on the bus: one place spells them, for service and command line alike.

use crate::types::ifname::IfName;

/// The interface, and the name all instances queue for.
pub const INTERFACE: &str = "org.tcptracker.Tracker1";

/// The name all instances queue for, so that the bus's policy can name them all.
pub const COMMON_NAME: &str = INTERFACE;

/// The name of the instance on a network interface.
pub fn bus_name(interface: &IfName) -> String {
    format!("{INTERFACE}.{}", interface.bus_label())
}

/// The object of the instance on a network interface.
pub fn object_path(interface: &IfName) -> String {
    format!("/org/tcptracker/Tracker1/{}", interface.bus_label())
}

/// The network interface of the instance with this name, if it is one of ours.
pub fn interface_of(bus_name: &str) -> Option<IfName> {
    let label = bus_name.strip_prefix(INTERFACE)?.strip_prefix('.')?;
    IfName::from_bus_label(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_contract() {
        let vlan: IfName = "eth0.100".parse().unwrap();
        assert_eq!(bus_name(&vlan), "org.tcptracker.Tracker1.eth0_2e100");
        assert_eq!(object_path(&vlan), "/org/tcptracker/Tracker1/eth0_2e100");
        assert_eq!(interface_of("org.tcptracker.Tracker1.eth0_2e100"), Some(vlan));
        assert_eq!(interface_of("org.tcptracker.Tracker1"), None);
        assert_eq!(interface_of("org.freedesktop.DBus"), None);
    }
}
