//! Frames no tool sends as wanted: crafted, and put onto the attacker's wire as they are.

use std::net::{IpAddr, Ipv4Addr};

use etherparse::{PacketBuilder, VlanId};
use pcap::{Active, Capture};

use crate::lab::{ATTACKER, ATTACKER_V6, Lab, VICTIM, VICTIM_V6};
use crate::namespace::Namespace;

/// To everybody: the switch and the capture do not mind.
pub const BROADCAST: [u8; 6] = [0xff; 6];

/// Ethernet's two addresses and the type of what follows.
pub const ETHERNET_HEADER: usize = 14;

/// Tags in front of the packet.
#[derive(Clone, Copy)]
pub enum Tags {
    None,
    Vlan,
    QinQ,
}

/// A host's `eth0`, to put frames onto.
pub struct Wire(Capture<Active>);

impl Wire {
    pub fn of(host: &Namespace) -> Self {
        Self(host.inside(|| Capture::from_device("eth0").unwrap().open().unwrap()))
    }

    pub fn send(&mut self, frame: &[u8]) {
        self.0.sendpacket(frame).unwrap();
    }

    /// Whether the kernel has taken it: it does not take all of any length.
    pub fn try_send(&mut self, frame: &[u8]) -> bool {
        self.0.sendpacket(frame).is_ok()
    }
}

/// Sends a SYN to each of these ports of the victim, from the attacker, over IPv4.
pub fn send_syns(lab: &Lab, tags: Tags, ports: impl IntoIterator<Item = u16>) {
    send(lab, tags, [ATTACKER, VICTIM], ports);
}

/// The same over IPv6.
pub fn send_syns_v6(lab: &Lab, tags: Tags, ports: impl IntoIterator<Item = u16>) {
    send(lab, tags, [ATTACKER_V6, VICTIM_V6], ports);
}

fn send(lab: &Lab, tags: Tags, [from, to]: [IpAddr; 2], ports: impl IntoIterator<Item = u16>) {
    let mut wire = Wire::of(&lab.attacker);
    for port in ports {
        wire.send(&frame(tags, BROADCAST, from, to, port));
    }
}

/// A SYN in an Ethernet frame to this hardware address.
pub fn syn(hardware: [u8; 6], from: IpAddr, to: IpAddr, port: u16) -> Vec<u8> {
    frame(Tags::None, hardware, from, to, port)
}

/// IPv4 SYNs from one mould, for whoever needs a great many.
pub struct SynTemplate(Vec<u8>);

impl SynTemplate {
    pub fn new(hardware: [u8; 6]) -> Self {
        Self(syn(hardware, ATTACKER, VICTIM, 0))
    }

    pub fn syn(&mut self, from: Ipv4Addr, to: Ipv4Addr, port: u16) -> &[u8] {
        /// TCP's protocol number and the length of its header: the rest of the pseudo header.
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

/// RFC 1071.
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

/// Gives a frame other flags.
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
