//! Makes frames for tests: segments and ICMP messages in every nesting of headers.
//!
//! Pure: random numbers determine the frame, so that proptest can shrink it.

use super::LinkLayer;

/// Random numbers. When they are used up, zeros follow.
pub struct Choices<'a>(pub &'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn below(&mut self, end: u8) -> usize {
        usize::from(self.byte() % end)
    }

    /// Returns true in one of `of` cases.
    fn one_in(&mut self, of: u8) -> bool {
        self.below(of) == 1
    }

    fn of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(u8::try_from(values.len()).unwrap())]
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.byte()).collect()
    }
}

/// Makes a frame of a link layer.
pub fn frame(link: LinkLayer, choices: &mut Choices<'_>) -> Vec<u8> {
    let mut frame = match link {
        LinkLayer::Ethernet => {
            let mut frame = vec![2; 12];
            if choices.one_in(10) {
                frame.extend([0, 60, 0xaa, 0xaa, 3, 0, 0, 0]);
            }
            frame.extend(ether_payload(choices));
            frame
        }
        LinkLayer::LinuxSll => {
            let mut frame = [vec![0; 14], ether_payload(choices)].concat();
            if choices.one_in(6) {
                let tag = [0x60, 0, frame[14], frame[15]];
                frame.splice(16..16, tag);
            }
            frame
        }
        LinkLayer::LinuxSll2 => {
            let mut frame = ether_payload(choices);
            frame.splice(2..2, [0; 18]);
            frame
        }
        LinkLayer::CiscoHdlc => [vec![0x0f, 0], ether_payload(choices)].concat(),
        LinkLayer::RawIp => ip(choices),
        LinkLayer::Loopback => [vec![2, 0, 0, 0], ip(choices)].concat(),
        LinkLayer::Ppp => {
            let address: &[u8] = choices.of(&[&[0xff, 3][..], &[]]);
            [address, &ppp(choices)].concat()
        }
    };
    frame.resize(frame.len() + choices.of(&[0, 0, 6, 200, 1000]), 0);
    if choices.one_in(4) {
        frame.truncate(choices.below(250));
    }
    if choices.one_in(4) && !frame.is_empty() {
        let at = choices.below(250).min(frame.len() - 1);
        frame[at] = choices.byte();
    }
    frame
}

/// Returns an `EtherType` and what follows it.
fn ether_payload(choices: &mut Choices<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..choices.of(&[0, 0, 0, 1, 1, 2, 3, 4, 7, 60, 90]) {
        bytes.extend(choices.of(&[[0x81, 0], [0x81, 0], [0x88, 0xa8], [0x91, 0], [0x93, 0]]));
        bytes.extend([0, choices.of(&[0, 5])]);
    }
    match choices.below(8) {
        0 => {
            bytes.extend([0x88, 0x64, 0x11, 0, 0, 1, 0, 42]);
            bytes.extend(ppp(choices));
        }
        1 => {
            bytes.extend(choices.of(&[[0x88, 0x47], [0x88, 0x48]]));
            for _ in 0..choices.of(&[0, 0, 1, 2, 70]) {
                bytes.extend([0, 1, 0, 64]);
            }
            bytes.extend([0, 1, 1, 64]);
            bytes.extend(ip(choices));
        }
        _ => {
            let packet = ip(choices);
            let is_v4 = packet[0] >> 4 == 4;
            // Some are wrong.
            let is_v4 = is_v4 != choices.one_in(20);
            bytes.extend(if is_v4 { [0x08, 0x00] } else { [0x86, 0xdd] });
            bytes.extend(packet);
        }
    }
    bytes
}

fn ppp(choices: &mut Choices<'_>) -> Vec<u8> {
    let packet = ip(choices);
    let protocol: &[u8] = match (packet[0] >> 4, choices.one_in(5)) {
        (4, false) => &[0, 0x21],
        (4, true) => &[0x21],
        (_, false) => &[0, 0x57],
        (_, true) => &[0x57],
    };
    [protocol, &packet].concat()
}

fn ip(choices: &mut Choices<'_>) -> Vec<u8> {
    let is_v4 = choices.one_in(2);
    let (protocol, payload) = match choices.below(5) {
        0 => icmp(choices, is_v4),
        1 => (choices.of(&[17, 50, 59, 47]), choices.bytes(20)),
        _ => (6, tcp(choices)),
    };
    if is_v4 { ipv4(choices, protocol, &payload) } else { ipv6(choices, protocol, &payload) }
}

fn tcp(choices: &mut Choices<'_>) -> Vec<u8> {
    let mut tcp = choices.bytes(12);
    let flags = choices.of(&[0x02, 0x12, 0x10, 0x00, 0x29, 0x08, 0x04, 0x11, 0xc2, 0xff]);
    tcp.extend([0x50, flags, 1, 1, 0, 0, 0, 0]);
    tcp.truncate(choices.of(&[20, 20, 20, 20, 8, 13, 14, 3]));
    tcp
}

/// Returns a message about an undelivered segment.
fn icmp(choices: &mut Choices<'_>, is_v4: bool) -> (u8, Vec<u8>) {
    let kind = choices.of(&[if is_v4 { 3 } else { 1 }, 8, 0]);
    let mut message = vec![kind, choices.of(&[3, 4, 13]), 0, 0, 0, 0, 0, 0];
    let quoted = tcp(choices);
    let quotes_v4 = is_v4 != choices.one_in(10);
    message.extend(if quotes_v4 { ipv4(choices, 6, &quoted) } else { ipv6(choices, 6, &quoted) });
    (if is_v4 { 1 } else { 58 }, message)
}

fn ipv4(choices: &mut Choices<'_>, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let option_words = choices.of(&[0, 0, 0, 1, 2, 5, 9, 10]);
    let header = 20 + option_words * 4;
    let length = u16::try_from(header + payload.len()).unwrap().to_be_bytes();
    let version_and_length = 0x45 + u8::try_from(option_words).unwrap();
    let fragment = choices.of(&[[0, 0], [0, 0], [0x40, 0], [0x20, 0], [0, 1], [0x20, 2]]);
    let mut packet = vec![version_and_length, 0, length[0], length[1], 0, 1];
    packet.extend(fragment);
    packet.extend([64, protocol, 0, 0, 192, 0, 2, choices.byte(), 198, 51, 100, 2]);
    packet.resize(header, 1);
    packet.extend(payload);
    packet
}

fn ipv6(choices: &mut Choices<'_>, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let count = choices.of(&[0, 0, 0, 1, 1, 2, 3, 5, 17, 40]);
    let extensions: Vec<u8> =
        (0..count).map(|_| choices.of(&[0, 43, 44, 51, 60, 60, 135, 139, 140])).collect();
    let next_of = |at: usize| extensions.get(at).copied().unwrap_or(protocol);
    let mut body = Vec::new();
    for (at, extension) in extensions.iter().enumerate() {
        let next = next_of(at + 1);
        match extension {
            44 => body.extend([next, 0, 0, choices.of(&[0, 0, 0, 1, 8]), 0, 0, 0, 9]),
            51 => {
                body.extend([next, 1]);
                body.extend([0; 10]);
            }
            _ => {
                let units = choices.of(&[0, 0, 0, 1, 3, 30, 255]);
                body.extend([next, units, 1, 4]);
                body.resize(body.len() + usize::from(units) * 8 + 4, 0);
            }
        }
    }
    body.extend(payload);
    let length = u16::try_from(body.len()).unwrap_or(0).to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], next_of(0), 64];
    packet.extend([0x20, 1, 0x0d, 0xb8]);
    packet.resize(24, choices.byte());
    packet.resize(40, 2);
    packet.extend(body);
    packet
}
