//! One at a time, for what is costly: the others wait their turn.
//!
//! A turn lasts until the answer is on its way: whoever does not take his answers must not have the service
//! keep them for him.

use serde::{Serialize, Serializer};
use zbus::wire::{Signature, Type};

/// Lets one caller pass at a time.
pub struct Semaphore {
    leave: async_channel::Sender<()>,
    enter: async_channel::Receiver<()>,
}

impl Default for Semaphore {
    fn default() -> Self {
        let (leave, enter) = async_channel::bounded(1);
        // There is room for exactly this.
        let _ = leave.try_send(());
        Self { leave, enter }
    }
}

impl Semaphore {
    /// Waits for a turn.
    pub async fn permit(&self) -> Permit {
        // Both ends live here: it cannot be closed.
        let _ = self.enter.recv().await;
        Permit { leave: self.leave.clone() }
    }
}

/// Held by the one whose turn it is. Dropped, also if he goes away in between, it is the next one's.
pub struct Permit {
    leave: async_channel::Sender<()>,
}

impl Permit {
    /// An answer that keeps the turn until it was sent: the object server drops it then.
    pub fn until_sent<T>(self, answer: T) -> WithPermit<T> {
        WithPermit { answer, _turn: self }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let _ = self.leave.try_send(());
    }
}

/// An answer, and the turn it was made in. On the bus it is the answer alone.
pub struct WithPermit<T> {
    answer: T,
    _turn: Permit,
}

impl<T: Serialize> Serialize for WithPermit<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.answer.serialize(serializer)
    }
}

impl<T: Type> Type for WithPermit<T> {
    const SIGNATURE: &'static Signature = T::SIGNATURE;
}
