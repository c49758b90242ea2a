//! The network interfaces of this host, so that errors and hints can name one.
//!
//! Reads /proc only, which shows the network namespace of this process.

use crate::types::IfName;

/// Flags of a route (linux/route.h, linux/ipv6_route.h).
const RTF_UP: u32 = 0x1;
const RTF_REJECT: u32 = 0x200;

/// Returns all interfaces, sorted by name.
pub fn present() -> Vec<IfName> {
    let text = read("/proc/net/dev");
    let names = text.lines().filter_map(|line| line.split_once(':')?.0.trim().parse().ok());
    let mut names: Vec<IfName> = names.collect();
    names.sort_unstable();
    names
}

pub fn is_present(interface: &IfName) -> bool {
    interface.is_any() || present().contains(interface)
}

/// Returns the interface that the service should watch on most hosts: the default route's, or the only
/// one besides loopback.
pub fn default_interface() -> Option<IfName> {
    let (ipv4, ipv6) = (read("/proc/net/route"), read("/proc/net/ipv6_route"));
    let routed = routed_ipv4(&ipv4).or_else(|| routed_ipv6(&ipv6));
    routed.and_then(|name| name.parse().ok()).or_else(|| {
        let mut others = present().into_iter().filter(|name| name.as_str() != "lo");
        others.next().filter(|_| others.next().is_none())
    })
}

/// Returns the command that starts the instance on an interface, or on this host's usual one.
pub fn start_command(interface: Option<&IfName>) -> String {
    let command = |unit: &str| format!("systemctl enable --now {unit}");
    match interface.cloned().or_else(default_interface) {
        Some(interface) => command(&interface.unit()),
        None => format!(
            "{}, with INTERFACE one of: {}",
            command("tcptracker@INTERFACE"),
            listed(&present())
        ),
    }
}

pub fn listed(names: &[IfName]) -> String {
    names.iter().map(IfName::as_str).collect::<Vec<_>>().join(", ")
}

fn read(file: &str) -> String {
    std::fs::read_to_string(file).unwrap_or_default()
}

/// Finds the default route with the lowest metric in /proc/net/route.
fn routed_ipv4(table: &str) -> Option<&str> {
    let routes = table.lines().skip(1).filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [interface, destination, _, flags, _, _, metric, mask, ..] = columns[..] else {
            return None;
        };
        let flags = u32::from_str_radix(flags, 16).ok()?;
        let is_default = destination == "00000000" && mask == "00000000";
        let is_usable = flags & RTF_UP != 0 && flags & RTF_REJECT == 0;
        (is_default && is_usable).then_some((metric.parse::<u32>().ok()?, interface))
    });
    routes.min_by_key(|(metric, _)| *metric).map(|(_, interface)| interface)
}

/// Finds the default route with the lowest metric in /proc/net/ipv6_route.
fn routed_ipv6(table: &str) -> Option<&str> {
    let routes = table.lines().filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [destination, length, _, _, _, metric, _, _, flags, interface] = columns[..] else {
            return None;
        };
        let flags = u32::from_str_radix(flags, 16).ok()?;
        let is_default = length == "00" && destination.bytes().all(|digit| digit == b'0');
        let is_usable = flags & RTF_UP != 0 && flags & RTF_REJECT == 0 && interface != "lo";
        (is_default && is_usable).then_some((u32::from_str_radix(metric, 16).ok()?, interface))
    });
    routes.min_by_key(|(metric, _)| *metric).map(|(_, interface)| interface)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_route_with_the_lowest_metric_wins() {
        let ipv4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                    eth0\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
                    wlan0\t00000000\t0100A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
                    eth1\t00000000\t0100A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n";
        assert_eq!(routed_ipv4(ipv4), Some("eth1"));
        let zero = "00000000000000000000000000000000";
        let ipv6 = format!(
            "{zero} 00 {zero} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eth2\n\
             {zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200       lo\n"
        );
        assert_eq!(routed_ipv6(&ipv6), Some("eth2"));
        assert_eq!((routed_ipv4(""), routed_ipv6("")), (None, None));
    }

    #[test]
    fn every_host_has_loopback() {
        assert!(present().iter().any(|name| name.as_str() == "lo"));
    }
}
