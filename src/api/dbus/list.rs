//! The answer of `List`.
//!
//! Owns how long it may be. Its texts are made while it is sent: a copy of each of 100,000 addresses would be
//! needed for a moment only, and the allocator would keep the memory.

use serde::ser::SerializeSeq;
use serde::{Serialize, Serializer};
use zbus::wire::{Signature, Type};

use crate::handles::Listed;
use crate::types::show_network;

/// The longest list, in bytes. The bus disconnects the sender of a message above 32 MiB (dbus-daemon(1),
/// `max_message_size`).
const LONGEST: usize = 24 << 20;

/// The most bytes of an entry without its reason: the longest network with its length and final zero, the
/// same of the reason, two numbers of 8 bytes, one of 4, and their alignment.
const ENTRY: usize = 43 + 2 * 5 + 2 * 8 + 4 + 3 * 7;

/// A list that takes the bus long enough to delay other answers, in bytes.
const LONG: usize = 64 << 10;

/// Blocks, on the bus an array of address, since, until, offences and reason.
pub struct Blocks(Vec<Listed>);

impl Blocks {
    /// Returns no list if it would be too long for a message.
    pub fn new(blocks: Vec<Listed>) -> Option<Self> {
        let bytes: usize = blocks.iter().map(|block| ENTRY + block.reason.len()).sum();
        (bytes <= LONGEST).then_some(Self(blocks))
    }
}

/// Returns whether the list of so many blocks takes the bus long.
pub const fn is_long(count: u32) -> bool {
    count as usize * ENTRY > LONG
}

impl Serialize for Blocks {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.0.len()))?;
        for Listed { network, since, until, offences, reason } in &self.0 {
            list.serialize_element(&(show_network(network), since, until, offences, reason))?;
        }
        list.end()
    }
}

impl Type for Blocks {
    const SIGNATURE: &'static Signature = <Vec<(String, u64, u64, u32, String)>>::SIGNATURE;
}
