//! Turns for answers that are large, or take long to make.
//!
//! Owns how many of them there are at once, and how much of the time of the threads they take. A client that
//! does not read its answers must not make the service keep more than one.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_lock::{Semaphore, SemaphoreGuardArc};
use serde::{Serialize, Serializer};
use zbus::wire::{Signature, Type};
use zruntime::SharedRuntime;

use crate::types::Moment;

/// After a turn, others have the threads for so many times its length, but not longer than this: a bus that
/// does not read makes a turn long.
const REST: u32 = 4;
const LONGEST_REST: Duration = Duration::from_millis(500);

/// Gives one turn at a time.
pub struct Turns {
    permit: Arc<Semaphore>,
    /// The next turn does not begin before this moment. None: it begins at once.
    next: Option<Arc<Mutex<Moment>>>,
}

impl Turns {
    /// One turn follows the other.
    pub fn without_rest() -> Self {
        Self { permit: Arc::new(Semaphore::new(1)), next: None }
    }

    /// Turns leave most of the time to other work.
    pub fn with_rest() -> Self {
        Self { next: Some(Arc::default()), ..Self::without_rest() }
    }

    /// Waits for a turn.
    pub async fn next(&self) -> Turn {
        let permit = self.permit.acquire_arc().await;
        if let Some(next) = &self.next
            && let Ok(runtime) = SharedRuntime::current()
        {
            let next = *next.lock().unwrap_or_else(PoisonError::into_inner);
            runtime.sleep(next.since(Moment::now())).await;
        }
        Turn { begun: Moment::now(), next: self.next.clone(), _permit: permit }
    }
}

/// A turn, which ends when it is dropped.
pub struct Turn {
    begun: Moment,
    next: Option<Arc<Mutex<Moment>>>,
    _permit: SemaphoreGuardArc,
}

impl Turn {
    /// Whether others have to wait for it without a rest.
    pub const fn is_privileged(&self) -> bool {
        self.next.is_none()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(next) = &self.next {
            let now = Moment::now();
            let rest = (now.since(self.begun) * REST).min(LONGEST_REST);
            *next.lock().unwrap_or_else(PoisonError::into_inner) = now + rest;
        }
    }
}

/// An answer whose turn ends when it has been sent: the object server drops it then. On the bus it is the
/// answer alone.
pub struct UntilSent<T> {
    answer: T,
    _turn: Turn,
}

impl<T> UntilSent<T> {
    pub const fn new(answer: T, turn: Turn) -> Self {
        Self { answer, _turn: turn }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The lengths are far above what a busy machine adds.
    #[test]
    fn long_turn_is_followed_by_a_longer_rest_but_not_for_privileged_callers() {
        zbus::block_on(async {
            for (turns, is_rested) in [(Turns::with_rest(), true), (Turns::without_rest(), false)] {
                let turn = turns.next().await;
                SharedRuntime::current().unwrap().sleep(Duration::from_millis(100)).await;
                drop(turn);
                let begun = Moment::now();
                drop(turns.next().await);
                let waited = Moment::now().since(begun);
                assert_eq!(waited >= Duration::from_millis(350), is_rested, "{waited:?}");
            }
        });
    }
}
