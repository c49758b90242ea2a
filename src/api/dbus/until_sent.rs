//! An answer that holds a permit until it has been sent.
//!
//! A client that does not read its answers must not make the service keep more than one large answer.

use async_lock::SemaphoreGuardArc;
use serde::{Serialize, Serializer};
use zbus::wire::{Signature, Type};

/// The object server drops this after it has sent the answer. On the bus it is the answer alone.
pub struct UntilSent<T> {
    answer: T,
    _permit: SemaphoreGuardArc,
}

impl<T> UntilSent<T> {
    /// Holds the permit for an answer.
    pub const fn new(answer: T, permit: SemaphoreGuardArc) -> Self {
        Self { answer, _permit: permit }
    }
}

impl<T: Serialize> Serialize for UntilSent<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.answer.serialize(serializer)
    }
}

impl<T: Type> Type for UntilSent<T> {
    const SIGNATURE: &'static Signature = T::SIGNATURE;
}
