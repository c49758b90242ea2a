//! The format pcapng (draft-ietf-opsawg-pcapng).
//!
//! The crates for it reject resolutions in powers of two or allocate for each frame (pcap-parser 0.17), or
//! are not released (pcap-file 3).

use super::{ByteOrder, Damage, Header, Input, NANOS_PER_SECOND, representable};

/// The block types that matter. The first is the same in both byte orders.
pub const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
/// Obsolete since 2009.
const PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;

/// The first number of a section after its length, which tells the byte order.
const BYTE_ORDER: u32 = 0x1a2b_3c4d;

/// The bytes of a block around its body: type, length, and the length again at the end.
const AROUND_BODY: u32 = 12;

/// Options of an interface.
const RESOLUTION: u16 = 9;
const OFFSET: u16 = 14;

/// The most interfaces of a section: a packed file of some megabytes could describe a billion.
const INTERFACES: usize = 1 << 16;

/// The state of a file.
pub struct Pcapng {
    order: ByteOrder,
    interfaces: Vec<Interface>,
}

/// What a section says about an interface.
struct Interface {
    link_type: i32,
    /// Zero: unlimited.
    snapshot: u32,
    /// Units per second. None if no time has such units.
    resolution: Option<i128>,
    /// Seconds to be added to each time.
    offset: i64,
}

impl Pcapng {
    /// Reads the first section header, whose type was read already.
    pub fn open(input: &mut Input) -> Result<Self, Damage> {
        let mut file = Self { order: ByteOrder::Little, interfaces: Vec::new() };
        let length = input.read("a block")?.ok_or(Damage::EndsWithin("a block"))?;
        file.begin_section(length, input)?;
        Ok(file)
    }

    /// Reads the next frame.
    pub fn next(&mut self, input: &mut Input) -> Result<Option<Header>, Damage> {
        while let Some([kind @ .., l0, l1, l2, l3]) = input.read::<8>("a block")? {
            let (kind, length) = (self.order.u32_at(&kind, 0), [l0, l1, l2, l3]);
            if kind == SECTION {
                self.begin_section(length, input)?;
                continue;
            }
            self.read_body(self.order.u32_at(&length, 0), AROUND_BODY, input)?;
            let header = match kind {
                INTERFACE => {
                    self.add_interface(&input.record)?;
                    continue;
                }
                ENHANCED_PACKET => self.packet(&input.record, self.order.u32_at(&input.record, 0)),
                PACKET => self.packet(&input.record, self.order.u16_at(&input.record, 0).into()),
                SIMPLE_PACKET => self.simple_packet(&input.record),
                _ => continue,
            };
            return header.map(Some);
        }
        Ok(None)
    }

    fn begin_section(&mut self, length: [u8; 4], input: &mut Input) -> Result<(), Damage> {
        let magic: [u8; 4] = input.read("a block")?.ok_or(Damage::EndsWithin("a block"))?;
        self.order = [ByteOrder::Little, ByteOrder::Big]
            .into_iter()
            .find(|order| order.u32_at(&magic, 0) == BYTE_ORDER)
            .ok_or(Damage::Invalid("the byte order of a section"))?;
        self.interfaces.clear();
        self.read_body(self.order.u32_at(&length, 0), AROUND_BODY + 4, input)
    }

    /// Reads what follows the first bytes of a block of this length, and checks the length at its end.
    fn read_body(&self, length: u32, around: u32, input: &mut Input) -> Result<(), Damage> {
        let body = length.checked_sub(around).filter(|_| length.is_multiple_of(4));
        let body = body.ok_or(Damage::Length(length))?;
        input.read_record(body + 4, "a block")?;
        if self.order.u32_at(&input.record, body as usize) != length {
            return Err(Damage::Invalid("the second length of a block"));
        }
        input.record.truncate(body as usize);
        Ok(())
    }

    fn add_interface(&mut self, body: &[u8]) -> Result<(), Damage> {
        if self.interfaces.len() == INTERFACES {
            return Err(Damage::Invalid("the number of interfaces"));
        }
        let mut interface = Interface {
            link_type: self.order.u16_at(body, 0).into(),
            snapshot: self.order.u32_at(body, 4),
            resolution: Some(1_000_000),
            offset: 0,
        };
        let mut options = body.get(8..).unwrap_or_default();
        while let [_, _, _, _, rest @ ..] = options {
            let [code, length] = [0, 2].map(|at| self.order.u16_at(options, at));
            let Some(value) = rest.get(..length.into()) else { break };
            match (code, value) {
                (0, _) => break,
                (RESOLUTION, [exponent]) => interface.resolution = resolution(*exponent),
                (OFFSET, [_, _, _, _, _, _, _, _]) => {
                    let [first, second] = [0, 4].map(|at| u64::from(self.order.u32_at(value, at)));
                    let offset = match self.order {
                        ByteOrder::Little => second << 32 | first,
                        ByteOrder::Big => first << 32 | second,
                    };
                    interface.offset = offset.cast_signed();
                }
                _ => {}
            }
            options = rest.get(usize::from(length).next_multiple_of(4)..).unwrap_or_default();
        }
        self.interfaces.push(interface);
        Ok(())
    }

    fn packet(&self, body: &[u8], interface: u32) -> Result<Header, Damage> {
        const START: usize = 20;
        let interface = self.interface(interface)?;
        let [high, low, length, original_length] =
            [4, 8, 12, 16].map(|at| self.order.u32_at(body, at));
        if body.len() < START || body.len() - START < length as usize {
            return Err(Damage::Length(length));
        }
        Ok(Header {
            link_type: interface.link_type,
            unix_nanos: interface.unix_nanos(u64::from(high) << 32 | u64::from(low)),
            bytes: START..START + length as usize,
            original_length,
        })
    }

    /// A frame without a time, and with no length but its original one.
    fn simple_packet(&self, body: &[u8]) -> Result<Header, Damage> {
        const START: usize = 4;
        let interface = self.interface(0)?;
        let original_length = self.order.u32_at(body, 0);
        let kept = match interface.snapshot {
            0 => original_length,
            snapshot => original_length.min(snapshot),
        };
        let bytes = START..body.len().min(START.saturating_add(kept as usize));
        Ok(Header { link_type: interface.link_type, unix_nanos: None, bytes, original_length })
    }

    fn interface(&self, number: u32) -> Result<&Interface, Damage> {
        self.interfaces.get(number as usize).ok_or(Damage::Invalid("the interface of a frame"))
    }
}

impl Interface {
    fn unix_nanos(&self, time: u64) -> Option<u64> {
        let nanos = i128::from(time) * NANOS_PER_SECOND / self.resolution?;
        representable(nanos + i128::from(self.offset) * NANOS_PER_SECOND)
    }
}

/// Returns the units per second: a power of ten, or a power of two if the highest bit is set.
fn resolution(exponent: u8) -> Option<i128> {
    let (base, exponent): (i128, _) =
        if exponent & 0x80 == 0 { (10, exponent) } else { (2, exponent & 0x7f) };
    base.checked_pow(exponent.into())
}
