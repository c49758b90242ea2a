//! SYNs in the wrappings that the kernel removes before it replies: VLAN 0 tags, IPv4 options, IPv6 extension
//! headers and fragments.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::tools::Random;

/// How a SYN is wrapped.
#[derive(Clone, Debug, Default)]
pub struct Wrapping {
    pub ipv6: bool,
    /// The tags, each with its `EtherType`.
    pub tags: Vec<u16>,
    /// Words of IPv4 options.
    pub option_words: usize,
    /// IPv6 extension headers: number and length in units of 8 bytes.
    pub extensions: Vec<(u8, usize)>,
    /// After how many bytes of the IP payload the second fragment begins.
    pub cut: Option<usize>,
    pub reversed: bool,
}

impl Wrapping {
    /// Makes a wrapping that the kernel may accept.
    pub fn random(random: &mut Random) -> Self {
        let ipv6 = random.below(3) > 0;
        let tags = (0..[0, 0, 1, 2, 3, 4, 9, 40][random.below(8)])
            .map(|_| [0x8100, 0x8100, 0x88a8][random.below(3)])
            .collect();
        let mut extensions = Vec::new();
        let mut room = 130;
        for at in 0..if ipv6 { [0, 0, 1, 1, 2, 3, 6, 20][random.below(8)] } else { 0 } {
            let number = if at == 0 { [0, 43, 60, 60, 44] } else { [43, 60, 60, 60, 44] };
            let number = number[random.below(5)];
            let mut units = [1, 1, 2, 3, 5, 29, 100][random.below(7)];
            // A routing header is as long as its addresses. A second fragment header is refused.
            units = if number == 44 { 1 } else { units };
            let is_second = number == 44 && extensions.iter().any(|(number, _)| *number == 44);
            if units < room && !is_second {
                room -= units;
                extensions.push((number, units));
            }
        }
        let is_atomic = extensions.iter().any(|(number, _)| *number == 44);
        let cut = (!is_atomic && random.below(3) == 0).then(|| 8 * (1 + random.below(5)));
        Self {
            ipv6,
            tags,
            option_words: if ipv6 { 0 } else { [0, 0, 1, 3, 10][random.below(5)] },
            extensions,
            cut,
            reversed: random.below(2) == 0,
        }
    }

    /// Returns the frames of a SYN.
    pub fn frames(&self, hardware: [u8; 6], from: IpAddr, to: IpAddr, port: u16) -> Vec<Vec<u8>> {
        let (ether_type, packets) = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => ([8, 0], self.ipv4(from, to, port)),
            (IpAddr::V6(from), IpAddr::V6(to)) => ([0x86, 0xdd], self.ipv6(from, to, port)),
            _ => panic!("{from} and {to} are of different families"),
        };
        let mut head = [hardware, [2, 0, 0, 0, 0, 0x66]].concat();
        for tag in &self.tags {
            head.extend(tag.to_be_bytes());
            // VLAN 0 with a priority.
            head.extend([0xa0, 0]);
        }
        head.extend(ether_type);
        let mut frames: Vec<Vec<u8>> =
            packets.into_iter().map(|packet| [&head[..], &packet].concat()).collect();
        if self.reversed {
            frames.reverse();
        }
        frames
    }

    fn ipv4(&self, from: Ipv4Addr, to: Ipv4Addr, port: u16) -> Vec<Vec<u8>> {
        let tcp = tcp(&[&from.octets()[..], &to.octets()].concat(), port);
        let header = 20 + self.option_words * 4;
        let packet = |offset: usize, more: bool, payload: &[u8]| {
            let length = u16::try_from(header + payload.len()).unwrap().to_be_bytes();
            let words = u8::try_from(header / 4).unwrap();
            let fragment = u16::try_from(offset / 8).unwrap() | u16::from(more) << 13;
            let [high, low] = fragment.to_be_bytes();
            let id = port.to_be_bytes();
            let mut ip = vec![0x40 | words, 0, length[0], length[1], id[0], id[1], high, low];
            ip.extend([64, 6, 0, 0]);
            ip.extend(from.octets());
            ip.extend(to.octets());
            ip.resize(header, 1);
            let sum = check_sum(&ip);
            ip[10..12].copy_from_slice(&sum);
            [&ip, payload].concat()
        };
        match self.cut {
            Some(cut) => vec![packet(0, true, &tcp[..cut]), packet(cut, false, &tcp[cut..])],
            None => vec![packet(0, false, &tcp)],
        }
    }

    fn ipv6(&self, from: Ipv6Addr, to: Ipv6Addr, port: u16) -> Vec<Vec<u8>> {
        const TCP: u8 = 6;
        const FRAGMENT: u8 = 44;
        let mut payload = tcp(&[&from.octets()[..], &to.octets()].concat(), port);
        let mut next = TCP;
        for (number, units) in self.extensions.iter().rev() {
            let mut header = match number {
                // Type 253 is for experiments; no segment is left.
                43 => vec![next, 0, 253, 0],
                44 => vec![next, 0, 0, 0],
                // An option that a receiver skips if it does not know it.
                _ => vec![next, 0, 0x1e, u8::try_from(units * 8 - 4).unwrap_or(0)],
            };
            header.resize(units * 8, 0);
            if *number != FRAGMENT {
                header[1] = u8::try_from(units - 1).unwrap();
            }
            // An option has at most 255 bytes.
            if units * 8 - 4 > 255 && *number != 43 {
                header.truncate(4);
                header[3] = 252;
                header.resize(256, 0);
                header[1] = 31;
            }
            payload = [header, payload].concat();
            next = *number;
        }
        let packet = |next: u8, payload: &[u8]| {
            let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
            let mut ip = vec![0x60, 0, 0, 0, length[0], length[1], next, 64];
            ip.extend(from.octets());
            ip.extend(to.octets());
            [&ip, payload].concat()
        };
        let Some(cut) = self.cut else { return vec![packet(next, &payload)] };
        let fragment = |offset: usize, more: bool, part: &[u8]| {
            let [high, low] = (u16::try_from(offset).unwrap() | u16::from(more)).to_be_bytes();
            let id = u32::from(port).to_be_bytes();
            packet(FRAGMENT, &[&[next, 0, high, low], &id[..], part].concat())
        };
        vec![fragment(0, true, &payload[..cut]), fragment(cut, false, &payload[cut..])]
    }
}

/// Returns a SYN with some data, so that it can be cut after its header.
fn tcp(addresses: &[u8], port: u16) -> Vec<u8> {
    let mut tcp = 40_000_u16.to_be_bytes().to_vec();
    tcp.extend(port.to_be_bytes());
    tcp.extend([0, 0, 0, 7, 0, 0, 0, 0, 0x50, 2, 0xfa, 0xf0, 0, 0, 0, 0]);
    tcp.resize(48, 0);
    let pseudo = [addresses, &[0, 0, 0, 48, 0, 0, 0, 6], &tcp].concat();
    let sum = check_sum(&pseudo);
    tcp[16..18].copy_from_slice(&sum);
    tcp
}

/// Returns the Internet checksum (RFC 1071).
fn check_sum(bytes: &[u8]) -> [u8; 2] {
    let pairs = bytes.chunks_exact(2);
    let mut sum: u32 = pairs.map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [.., high, low] = (!sum).to_be_bytes();
    [high, low]
}
