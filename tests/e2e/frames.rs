//! Crafted frames that no scan tool can send.

use std::net::{IpAddr, Ipv4Addr};

use etherparse::{PacketBuilder, VlanId};
use pcap::{Active, Capture};

use crate::lab::{ATTACKER, ATTACKER_V6, Lab, VICTIM, VICTIM_V6};
use crate::namespace::Namespace;

/// The Ethernet broadcast address. The switch floods it to all hosts.
pub const BROADCAST: [u8; 6] = [0xff; 6];

/// Length of an Ethernet header: two addresses and the EtherType.
pub const ETHERNET_HEADER: usize = 14;

/// VLAN tags of a frame.
#[derive(Clone, Copy)]
pub enum Tags {
    None,
    Vlan,
    QinQ,
}

/// A raw socket on a host's `eth0`.
pub struct Wire(Capture<Active>);

impl Wire {
    pub fn of(host: &Namespace) -> Self {
        Self(host.inside(|| Capture::from_device("eth0").unwrap().open().unwrap()))
    }

    pub fn send(&mut self, frame: &[u8]) {
        self.0.sendpacket(frame).unwrap();
    }

    /// Sends a frame and returns whether the kernel accepted it. The kernel rejects some lengths.
    pub fn try_send(&mut self, frame: &[u8]) -> bool {
        self.0.sendpacket(frame).is_ok()
    }
}

/// Sends an IPv4 SYN from the attacker to each of these ports of the victim.
pub fn send_syns(lab: &Lab, tags: Tags, ports: impl IntoIterator<Item = u16>) {
    send(lab, tags, [ATTACKER, VICTIM], ports);
}

/// Sends an IPv6 SYN from the attacker to each of these ports of the victim.
pub fn send_syns_v6(lab: &Lab, tags: Tags, ports: impl IntoIterator<Item = u16>) {
    send(lab, tags, [ATTACKER_V6, VICTIM_V6], ports);
}

fn send(lab: &Lab, tags: Tags, [from, to]: [IpAddr; 2], ports: impl IntoIterator<Item = u16>) {
    let mut wire = Wire::of(&lab.attacker);
    for port in ports {
        wire.send(&frame(tags, BROADCAST, from, to, port));
    }
}

/// Builds an Ethernet frame with a SYN.
pub fn syn(hardware: [u8; 6], from: IpAddr, to: IpAddr, port: u16) -> Vec<u8> {
    frame(Tags::None, hardware, from, to, port)
}

/// A reusable IPv4 SYN frame, for fast generation of many SYNs.
pub struct SynTemplate(Vec<u8>);

impl SynTemplate {
    pub fn new(hardware: [u8; 6]) -> Self {
        Self(syn(hardware, ATTACKER, VICTIM, 0))
    }

    pub fn syn(&mut self, from: Ipv4Addr, to: Ipv4Addr, port: u16) -> &[u8] {
        /// The constant part of the pseudo header: the TCP protocol number and the length of the
        /// TCP header.
        const PSEUDO: u32 = 6 + 20;
        let ip = &mut self.0[ETHERNET_HEADER..];
        ip[12..16].copy_from_slice(&from.octets());
        ip[16..20].copy_from_slice(&to.octets());
        ip[22..24].copy_from_slice(&port.to_be_bytes());
        ip[10..12].fill(0);
        let sum = check_sum(&ip[..20], 0);
        ip[10..12].copy_from_slice(&sum);
        ip[36..38].fill(0);
        let sum = check_sum(&ip[12..40], PSEUDO);
        ip[36..38].copy_from_slice(&sum);
        &self.0
    }
}

/// Returns the Internet checksum (RFC 1071).
fn check_sum(bytes: &[u8], start: u32) -> [u8; 2] {
    let mut sum = start;
    for pair in bytes.chunks_exact(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair[1]);
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [.., high, low] = (!sum).to_be_bytes();
    [high, low]
}

/// Sets the TCP flags of a frame.
pub fn with_flags(frame: &mut [u8], flags: u8) {
    let ip = &frame[ETHERNET_HEADER..];
    let header = if ip[0] >> 4 == 4 { usize::from(ip[0] & 15) * 4 } else { 40 };
    frame[ETHERNET_HEADER + header + 13] = flags;
}

fn frame(tags: Tags, hardware: [u8; 6], from: IpAddr, to: IpAddr, port: u16) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], hardware);
    let (outer, inner) = (VlanId::try_new(5).unwrap(), VlanId::try_new(6).unwrap());
    macro_rules! finish {
        ($link:expr) => {{
            let ip = match (from, to) {
                (IpAddr::V4(from), IpAddr::V4(to)) => $link.ipv4(from.octets(), to.octets(), 64),
                (IpAddr::V6(from), IpAddr::V6(to)) => $link.ipv6(from.octets(), to.octets(), 64),
                _ => panic!("{from} and {to} are of different families"),
            };
            let mut frame = Vec::with_capacity(96);
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
