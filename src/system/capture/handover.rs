//! Where one capture takes the place of another: no packet is lost there, and none taken twice.
//!
//! Owns which of two captures that run beside each other a frame is taken from: until a moment from the old
//! one, then from the new one. Each has read the clock for itself; so close to that moment it is the frame
//! that tells whether it is the same.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::system::capture::live::Frame;

/// How far apart, in nanoseconds, two captures may have seen the same frame. The kernel hands it to one after
/// the other, some microseconds apart, unless it is interrupted: on a busy virtual machine for milliseconds.
const APART: u64 = 10_000_000;

/// The moment between them, and what was taken just before it, each as often as it was.
pub struct Seam {
    at: u64,
    taken: HashMap<u64, u32>,
}

impl Seam {
    /// At this time, in nanoseconds since the Unix epoch. Both captures have to be running.
    pub fn at(unix_nanos: u64) -> Self {
        Self { at: unix_nanos, taken: HashMap::new() }
    }

    /// Whether a frame of the old capture is to be taken. They come first.
    pub fn takes_old(&mut self, frame: &Frame<'_>) -> bool {
        let takes = frame.unix_nanos < self.at;
        // The new capture may have seen it later.
        if takes && frame.unix_nanos + 2 * APART >= self.at {
            *self.taken.entry(hash(frame)).or_default() += 1;
        }
        takes
    }

    /// Whether a frame of the new capture is to be taken.
    pub fn takes_new(&mut self, frame: &Frame<'_>) -> bool {
        if self.is_behind(frame) {
            return true;
        }
        if frame.unix_nanos + APART < self.at {
            return false;
        }
        let taken = self.taken.get_mut(&hash(frame)).filter(|times| **times > 0);
        taken.map(|times| *times -= 1).is_none()
    }

    /// Whether a frame of the new capture, and with it all later ones, can only be its own.
    pub const fn is_behind(&self, frame: &Frame<'_>) -> bool {
        frame.unix_nanos >= self.at + APART
    }
}

fn hash(frame: &Frame<'_>) -> u64 {
    let mut hasher = DefaultHasher::new();
    frame.bytes.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AT: u64 = 5 * APART;

    proptest! {
        /// Each capture has its own idea of when it has seen one. The new one has begun later.
        #[test]
        fn each_frame_is_taken_once(
            frames in prop::collection::vec((0..2 * AT, 0..APART, 0..APART), 0..200),
            opened in 0..AT / 2,
        ) {
            // Each has the time at which it is seen, and its number.
            let mut old: Vec<_> = (0..).zip(&frames).map(|(n, (at, late, _))| (at + late, n)).collect();
            let mut new: Vec<_> = (0..).zip(&frames).map(|(n, (at, _, late))| (at + late, n)).collect();
            old.sort_unstable();
            new.sort_unstable();
            new.retain(|(unix_nanos, _)| *unix_nanos >= opened);

            let mut seam = Seam::at(AT);
            let mut taken = vec![0; frames.len()];
            for (unix_nanos, number) in old {
                let bytes = &[number];
                let takes = seam.takes_old(&Frame { bytes, unix_nanos });
                taken[usize::from(number)] += u32::from(takes);
            }
            for (unix_nanos, number) in new {
                let bytes = &[number];
                let takes = seam.takes_new(&Frame { bytes, unix_nanos });
                taken[usize::from(number)] += u32::from(takes);
            }
            prop_assert!(taken.iter().all(|times| *times == 1), "{taken:?}");
        }
    }
}
