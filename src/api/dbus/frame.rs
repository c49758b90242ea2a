//! The first bytes of a D-Bus message, which say how long it is.
//!
//! Owns the arithmetic on lengths that the sender chose. Pure.

use zbus::message::Type;

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
    let number = |at: usize| {
        let bytes = [start[at], start[at + 1], start[at + 2], start[at + 3]];
        match start[0] {
            b'l' => Some(u64::from(u32::from_le_bytes(bytes))),
            b'B' => Some(u64::from(u32::from_be_bytes(bytes))),
            _ => None,
        }
    };
    // The header's fields are padded to 8 bytes.
    let head = (START as u64 + number(12)?).next_multiple_of(8);
    Some(Lengths { kind, head, total: head + number(4)? })
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
            let message = Message::method_call("/", member.as_str()).endian(endian).build(&text).unwrap();
            let bytes: &[u8] = message.data();
            let lengths = lengths(bytes[..START].try_into().unwrap()).unwrap();
            prop_assert_eq!(lengths.total, bytes.len() as u64);
            prop_assert_eq!(lengths.total - lengths.head, message.body().data().len() as u64);
            prop_assert_eq!(lengths.kind, Type::MethodCall);
        }

        #[test]
        fn greatest_lengths_do_not_overflow(start in any::<[u8; START]>()) {
            if let Some(Lengths { head, total, .. }) = lengths(&start) {
                prop_assert!(head >= START as u64 && total >= head);
            }
        }
    }
}
