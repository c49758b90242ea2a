//! What a D-Bus message says about itself, without making anything of it.
//!
//! Owns the arithmetic on lengths that the sender chose. Pure.

use zbus::message::Type;

/// Header fields (D-Bus specification, "Header Fields").
pub const MEMBER: u8 = 3;
pub const SENDER: u8 = 7;

/// Bytes that contain the lengths of the rest.
pub const START: usize = 16;

/// What the first bytes of a message say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    pub kind: Type,
    /// Bytes up to the body.
    pub head: u64,
    /// Bytes of the whole message.
    pub total: u64,
}

/// Reads the first bytes of a message (D-Bus specification, "Message Format"). None: it is none.
pub fn lengths(start: &[u8; START]) -> Option<Lengths> {
    let kind = match start[1] {
        1 => Type::MethodCall,
        2 => Type::MethodReturn,
        3 => Type::Error,
        4 => Type::Signal,
        _ => return None,
    };
    let number = |at| number(start, at).map(u64::from);
    // The header's fields are padded to 8 bytes.
    let head = (START as u64 + number(12)?).next_multiple_of(8);
    Some(Lengths { kind, head, total: head + number(4)? })
}

/// Returns a text among the header fields of a message.
pub fn text_field(message: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut at = START;
    let end = START + usize::try_from(number(message, 12)?).ok()?;
    while at < end {
        at = at.next_multiple_of(8);
        // The code of the field, then the signature of its value: one letter.
        let &[code, 1, kind, 0] = message.get(at..at + 4)? else { return None };
        at += 4;
        let length = match kind {
            b's' | b'o' => {
                let length = usize::try_from(number(message, at)?).ok()?;
                at += 4;
                length + 1
            }
            b'g' => {
                let length = usize::from(*message.get(at)?);
                at += 1;
                length + 1
            }
            b'u' => 4,
            _ => return None,
        };
        let value = message.get(at..at.checked_add(length)?)?;
        if code == wanted {
            // Without the final zero.
            return matches!(kind, b's' | b'o').then(|| &value[..length - 1]);
        }
        at += length;
    }
    None
}

/// Returns a number of 32 bits in the byte order of the message.
fn number(message: &[u8], at: usize) -> Option<u32> {
    let bytes = message.get(at..)?.first_chunk()?;
    match message.first()? {
        b'l' => Some(u32::from_le_bytes(*bytes)),
        b'B' => Some(u32::from_be_bytes(*bytes)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zbus::Message;
    use zbus::wire::Endian;

    proptest! {
        #[test]
        fn lengths_are_those_of_the_message(
            text in ".{0,100}",
            member in "[A-Za-z]{1,40}",
            is_little in any::<bool>(),
        ) {
            let endian = if is_little { Endian::Little } else { Endian::Big };
            let builder = Message::method_call("/", member.as_str()).sender(":1.5");
            let message = builder.endian(endian).build(&text).unwrap();
            let bytes: &[u8] = message.data();
            let lengths = lengths(bytes[..START].try_into().unwrap()).unwrap();
            prop_assert_eq!(lengths.total, bytes.len() as u64);
            prop_assert_eq!(lengths.total - lengths.head, message.body().data().len() as u64);
            prop_assert_eq!(lengths.kind, Type::MethodCall);
            prop_assert_eq!(text_field(bytes, MEMBER), Some(member.as_bytes()));
            prop_assert_eq!(text_field(bytes, SENDER), Some(&b":1.5"[..]));
            prop_assert_eq!(text_field(bytes, 4), None);
        }

        #[test]
        fn fields_of_any_bytes_are_within_them(mut bytes in any::<Vec<u8>>(), code in any::<u8>()) {
            for order in *b"lB" {
                if let Some(first) = bytes.first_mut() {
                    *first = order;
                }
                let _ = text_field(&bytes, code);
            }
        }

        #[test]
        fn greatest_lengths_do_not_overflow(start in any::<[u8; START]>()) {
            if let Some(Lengths { head, total, .. }) = lengths(&start) {
                prop_assert!(head >= START as u64 && total >= head);
            }
        }
    }
}
