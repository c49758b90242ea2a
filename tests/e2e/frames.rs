//! Frames no tool sends as wanted: crafted, and put onto the attacker's wire as they are.

use std::net::IpAddr;

use etherparse::{PacketBuilder, VlanId};
use pcap::{Active, Capture};

use crate::lab::{ATTACKER, ATTACKER_V6, Lab, VICTIM, VICTIM_V6};

/// Tags in front of the packet.
#[derive(Clone, Copy)]
pub enum Tags {
    None,
    Vlan,
    QinQ,
}

/// Sends a SYN to each of these ports of the victim, from the attacker, over IPv4.
pub fn send_syns(lab: &Lab, tags: Tags, ports: impl IntoIterator<Item = u16>) {
    send(lab, tags, false, ports);
}

/// The same over IPv6.
pub fn send_syns_v6(lab: &Lab, tags: Tags, ports: impl IntoIterator<Item = u16>) {
    send(lab, tags, true, ports);
}

fn send(lab: &Lab, tags: Tags, ipv6: bool, ports: impl IntoIterator<Item = u16>) {
    let frames: Vec<Vec<u8>> = ports.into_iter().map(|port| frame(tags, ipv6, port)).collect();
    lab.attacker.inside(move || {
        let mut wire: Capture<Active> = Capture::from_device("eth0").unwrap().open().unwrap();
        for frame in frames {
            wire.sendpacket(frame).unwrap();
        }
    });
}

fn frame(tags: Tags, ipv6: bool, port: u16) -> Vec<u8> {
    // To everybody: the switch and the capture do not mind.
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [0xff; 6]);
    let (outer, inner) = (VlanId::try_new(5).unwrap(), VlanId::try_new(6).unwrap());
    macro_rules! finish {
        ($link:expr) => {{
            let ip = if ipv6 {
                let (from, to) = (octets_v6(ATTACKER_V6), octets_v6(VICTIM_V6));
                $link.ipv6(from, to, 64)
            } else {
                $link.ipv4(octets(ATTACKER), octets(VICTIM), 64)
            };
            let mut frame = Vec::new();
            ip.tcp(40_000, port, 7, 64_240).syn().write(&mut frame, &[]).unwrap();
            frame
        }};
    }
    match tags {
        Tags::None => finish!(ethernet),
        Tags::Vlan => finish!(ethernet.single_vlan(outer)),
        Tags::QinQ => finish!(ethernet.double_vlan(outer, inner)),
    }
}

fn octets(address: IpAddr) -> [u8; 4] {
    let IpAddr::V4(address) = address else { panic!("{address} is not IPv4") };
    address.octets()
}

fn octets_v6(address: IpAddr) -> [u8; 16] {
    let IpAddr::V6(address) = address else { panic!("{address} is not IPv6") };
    address.octets()
}
