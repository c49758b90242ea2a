//! The format pcap (draft-ietf-opsawg-pcap).

use super::{ByteOrder, Damage, Header, Input, representable};

/// The rest of the file header after the first number.
const FILE_HEADER: usize = 20;
/// The header of a frame, and what the variant of Kuznetsov has after it.
const FRAME_HEADER: usize = 16;
const KUZNETSOV_EXTRA: u32 = 8;

/// The state of a file.
pub struct Pcap {
    order: ByteOrder,
    /// Nanoseconds in a unit of the fraction of a second.
    unit: u32,
    /// The bytes between the header and the frame.
    extra: u32,
    link_type: i32,
}

impl Pcap {
    /// Reads the file header, whose first number was read already.
    pub fn open(magic: [u8; 4], input: &mut Input) -> Result<Self, Damage> {
        let variant = |magic| match magic {
            0xa1b2_c3d4 => Some((1000, 0)),
            0xa1b2_3c4d => Some((1, 0)),
            0xa1b2_cd34 => Some((1000, KUZNETSOV_EXTRA)),
            _ => None,
        };
        let (order, (unit, extra)) = variant(u32::from_le_bytes(magic))
            .map(|variant| (ByteOrder::Little, variant))
            .or_else(|| Some((ByteOrder::Big, variant(u32::from_be_bytes(magic))?)))
            .ok_or(Damage::Invalid("its first number"))?;
        let header: [u8; FILE_HEADER] =
            input.read("the file header")?.ok_or(Damage::EndsWithin("the file header"))?;
        // The highest bits say whether frames end with a checksum.
        let link_type = order.u32_at(&header, 16) & 0x03ff_ffff;
        Ok(Self { order, unit, extra, link_type: i32::try_from(link_type).unwrap_or(-1) })
    }

    pub fn link_type(&self) -> i32 {
        self.link_type
    }

    /// Reads the next frame.
    pub fn next(&self, input: &mut Input) -> Result<Option<Header>, Damage> {
        let Some(header) = input.read::<FRAME_HEADER>("the header of a frame")? else {
            return Ok(None);
        };
        let [seconds, fraction, length, original_length] =
            [0, 4, 8, 12].map(|at| self.order.u32_at(&header, at));
        let whole = length.saturating_add(self.extra);
        input.read_record(whole, "a frame")?;
        let nanos = i128::from(seconds) * super::NANOS_PER_SECOND
            + i128::from(fraction) * i128::from(self.unit);
        Ok(Some(Header {
            link_type: self.link_type,
            unix_nanos: representable(nanos),
            bytes: self.extra as usize..whole as usize,
            original_length,
        }))
    }
}
