//! The way from capture to detector: batches of probes in a bounded channel, used over and over.
//!
//! Capture never waits here. While the channel is full it goes on filling the batch in its hand;
//! when that is full too, probes are dropped and counted. One lock is taken per batch, and nothing
//! is allocated once the pool is made.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use crate::types::segment::Segment;

/// Probes handed over together.
pub type Batch = Vec<Segment>;

/// Probes in a full batch.
const BATCH: usize = 4096;

/// BatchReceiver that may wait for the detector.
const DEPTH: usize = 16;

/// Capture's end.
pub struct BatchSender {
    full: SyncSender<Batch>,
    empty: Receiver<Batch>,
    current: Batch,
    lost: u64,
}

/// The detector's end.
pub struct BatchReceiver {
    full: Receiver<Batch>,
    empty: SyncSender<Batch>,
}

/// Both ends of a new channel.
pub fn channel() -> (BatchSender, BatchReceiver) {
    // Room for all there are: a full channel shows by the pool that is empty.
    let (full_in, full_out) = sync_channel(DEPTH + 2);
    // One batch more than may wait: the one the detector works on. Capture holds another.
    let (empty_in, empty_out) = sync_channel(DEPTH + 1);
    for _ in 0..=DEPTH {
        // The channel has room for exactly these.
        let _ = empty_in.try_send(Batch::with_capacity(BATCH));
    }
    let current = Batch::with_capacity(BATCH);
    (
        BatchSender { full: full_in, empty: empty_out, current, lost: 0 },
        BatchReceiver { full: full_out, empty: empty_in },
    )
}

impl BatchSender {
    /// Adds a probe to the batch in hand.
    pub fn push(&mut self, probe: Segment) {
        if self.current.len() == BATCH {
            self.flush();
        }
        if self.current.len() < BATCH {
            self.current.push(probe);
        } else {
            self.lost += 1;
        }
    }

    /// Hands the batch over if there is room; keeps it otherwise.
    pub fn flush(&mut self) {
        if self.current.is_empty() {
            return;
        }
        // Without an empty batch to go on with, the detector has as many as it may.
        let Ok(empty) = self.empty.try_recv() else { return };
        let full = std::mem::replace(&mut self.current, empty);
        match self.full.try_send(full) {
            Ok(()) => {}
            // The detector has ended: the process is about to. (There is a place for every batch.)
            Err(TrySendError::Disconnected(batch) | TrySendError::Full(batch)) => {
                self.lost += batch.len() as u64;
            }
        }
    }

    /// Probes dropped since the last call.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }
}

impl BatchReceiver {
    /// Waits for the next batch, at most `timeout`.
    pub fn next(&self, timeout: Duration) -> Result<Batch, RecvTimeoutError> {
        self.full.recv_timeout(timeout)
    }

    /// Gives a batch back to be filled again.
    pub fn give_back(&self, mut batch: Batch) {
        batch.clear();
        // Full only if a batch was made from nothing; then this one is simply freed.
        let _ = self.empty.try_send(batch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::clock::Moment;
    use crate::types::segment::{Port, SegmentKind};

    fn probe(number: u64) -> Segment {
        Segment {
            moment: Moment::from_nanos(number),
            source: [192, 0, 2, 1].into(),
            destination: [192, 0, 2, 2].into(),
            source_port: Port(1),
            port: Port(2),
            kind: SegmentKind::Syn,
            sequence: 0,
            acknowledged: 0,
            crafted: false,
        }
    }

    #[test]
    fn a_stalled_detector_costs_probes_and_never_capture_time() {
        let (mut out, batches) = channel();
        let sent = (BATCH * (DEPTH + 4)) as u64;
        for number in 0..sent {
            out.push(probe(number));
        }
        out.flush();
        let lost = out.take_lost();
        let mut received = 0;
        while let Ok(batch) = batches.next(Duration::ZERO) {
            received += batch.len() as u64;
            batches.give_back(batch);
        }
        out.flush();
        while let Ok(batch) = batches.next(Duration::ZERO) {
            received += batch.len() as u64;
            batches.give_back(batch);
        }
        assert!(lost > 0, "there was no room for all");
        assert_eq!(received + lost, sent, "each probe arrives or is counted");
        assert_eq!(out.take_lost(), 0);
    }

    #[test]
    fn order_is_kept_across_batches() {
        let (mut out, batches) = channel();
        for number in 0..10 {
            out.push(probe(number));
            out.flush();
        }
        let mut seen = Vec::new();
        while let Ok(batch) = batches.next(Duration::ZERO) {
            seen.extend(batch.iter().map(|probe| probe.moment.as_nanos()));
            batches.give_back(batch);
        }
        assert_eq!(seen, (0..10).collect::<Vec<_>>());
    }
}
