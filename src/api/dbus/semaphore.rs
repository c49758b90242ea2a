//! One at a time, for what is costly: the others wait their turn.
//!
//! A turn lasts until the answer is on its way: whoever does not take his answers must not have the service
//! keep them for him.

use serde::{Serialize, Serializer};
use zbus::wire::{Signature, Type};

/// Lets one caller pass at a time.
pub struct OneAtATime {
    leave: async_channel::Sender<()>,
    enter: async_channel::Receiver<()>,
}

impl Default for OneAtATime {
    fn default() -> Self {
        let (leave, enter) = async_channel::bounded(1);
        // There is room for exactly this.
        let _ = leave.try_send(());
        Self { leave, enter }
    }
}

impl OneAtATime {
    /// Waits for a turn.
    pub async fn turn(&self) -> Turn {
        // Both ends live here: it cannot be closed.
        let _ = self.enter.recv().await;
        Turn { leave: self.leave.clone() }
    }
}

/// Held by the one whose turn it is. Dropped, also if he goes away in between, it is the next one's.
pub struct Turn {
    leave: async_channel::Sender<()>,
}

impl Turn {
    /// An answer that keeps the turn until it was sent: the object server drops it then.
    pub fn until_sent<T>(self, answer: T) -> UntilSent<T> {
        UntilSent { answer, _turn: self }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let _ = self.leave.try_send(());
    }
}

/// An answer, and the turn it was made in. On the bus it is the answer alone.
pub struct UntilSent<T> {
    answer: T,
    _turn: Turn,
}

impl<T: Serialize> Serialize for UntilSent<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.answer.serialize(serializer)
    }
}

impl<T: Type> Type for UntilSent<T> {
    const SIGNATURE: &'static Signature = T::SIGNATURE;
}
